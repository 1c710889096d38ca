//go:build !linux

package peer

import "net"

// writeMore writes b.
func writeMore(nc net.Conn, b []byte) error {
	_, err := nc.Write(b)
	return err
}

// tune does nothing.
func tune(net.Conn) {}

const gathered = 128 << 10

func lowWater(net.Conn, int) {}
