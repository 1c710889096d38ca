package peer

import (
	"net"

	"golang.org/x/sys/unix"
)

// writeMore writes b and tells TCP that more follows at once, so that the
// header of a block shares its segment with the payload that sendfile brings.
func writeMore(nc net.Conn, b []byte) error {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		_, err := nc.Write(b)
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) (done bool) {
		for len(b) > 0 {
			n, err := unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			switch err {
			case nil:
				b = b[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				sendErr = &net.OpError{Op: "write", Net: "tcp", Addr: tcp.RemoteAddr(), Err: err}
				return true
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	return sendErr
}

// gathered is how many bytes of a block are waited for before the reader is
// woken. On a link of 200 Mbit/s a socket has something new every 100 µs, and
// being woken for it costs more than moving the bytes.
const gathered = 128 << 10

// lowWater makes reads of a plain TCP connection wait until n bytes are there
// (SO_RCVLOWAT). It is no harm where it fails, as long as they come.
func lowWater(nc net.Conn, n int) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
	})
}

// unsent is how many bytes that TCP cannot send yet may pile up in a socket.
// By itself a socket takes megabytes, and HAVE would wait behind them.
const unsent = 512 << 10

// tune bounds what piles up in the socket. It is no harm where it fails.
func tune(nc net.Conn) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}
