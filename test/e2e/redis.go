package e2e

import (
	"net"
	"testing"
)

// StartRedis runs Debian's redis-server on the node until the end of the test,
// and returns its URL.
func (n *Node) StartRedis(t testing.TB) string {
	t.Helper()
	program := NeedProgram(t, "redis-server", "redis-server")
	var addr string
	startOnPorts(t, 1, func(ports []string) (*Process, error) {
		addr = net.JoinHostPort(n.Addr, ports[0])
		proc := n.Start(t, "redis", n.Command(program, "--bind", n.Addr, "--port", ports[0], "--save", "", "--dir", n.Dir))
		return proc, proc.waitReady(func() error {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err
		})
	})
	return "redis://" + addr
}
