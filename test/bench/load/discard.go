package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// headLimit bounds the head of a response.
	headLimit = 16 << 10
	// gulp is how many bytes one system call throws away at most.
	gulp = 4 << 20
	// patience is how long a server may send nothing: after that, containerd
	// cancels a pull (image_pull_progress_timeout).
	patience = 5 * time.Minute
)

// Discard gets a path again and again over each of conns connections, for a
// time; with no time, once over each. It throws the bodies away in the kernel
// (MSG_TRUNC, see tcp(7)), without copying them: the client must not be what
// limits the server, nor take the CPU from it on the same machine.
func Discard(ctx context.Context, addr, path string, conns int, d time.Duration) (Outcome, error) {
	g, ctx := errgroup.WithContext(ctx)
	var bytes, requests, silence atomic.Int64
	start := time.Now()
	until := func() bool { return d > 0 && time.Since(start) < d && ctx.Err() == nil }
	for range conns {
		g.Go(func() error {
			c, err := dialRaw(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			defer func() { atomicMax(&silence, int64(c.silence)) }()
			for again := true; again; again = until() {
				n, err := c.get(path, func() bool { return d == 0 || until() })
				bytes.Add(n)
				if err != nil {
					return fmt.Errorf("%s from %s: %w", path, addr, err)
				}
				requests.Add(1)
			}
			return nil
		})
	}
	err := g.Wait()
	return Outcome{Seconds: time.Since(start).Seconds(), Bytes: bytes.Load(), Requests: requests.Load(), Silence: time.Duration(silence.Load()).Seconds()}, err
}

func atomicMax(to *atomic.Int64, v int64) {
	for old := to.Load(); v > old && !to.CompareAndSwap(old, v); old = to.Load() {
	}
}

// raw is a connection whose calls block their threads: with few connections
// that costs less than asking which of them is ready.
type raw struct {
	fd   int
	file io.Closer
	addr string
	buf  [headLimit]byte
	// silence is the longest time within a response without a byte.
	silence time.Duration
}

func dialRaw(addr string) (*raw, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd()) // makes it block
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		f.Close()
		return nil, err
	}
	return &raw{fd: fd, file: f, addr: addr}, nil
}

func (c *raw) Close() error { return c.file.Close() }

// get asks for a path and throws its body away, up to the end or until more
// says no; the connection cannot be used after that.
func (c *raw) get(path string, more func() bool) (int64, error) {
	if _, err := unix.Write(c.fd, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, c.addr)); err != nil {
		return 0, fmt.Errorf("asking: %w", err)
	}
	length, got, err := c.head()
	if err != nil {
		return 0, err
	}
	for last := time.Now(); got < length && more(); {
		n, err := discard(c.fd, min(length-got, gulp))
		now := time.Now()
		c.silence, last = max(c.silence, now.Sub(last)), now
		if err != nil {
			return got, fmt.Errorf("reading at %d of %d: %w", got, length, err)
		}
		got += n
	}
	return got, nil
}

// head reads the head of a response, and returns the length of the body and
// how much of it was read already.
func (c *raw) head() (length, got int64, err error) {
	n := 0
	for {
		m, err := unix.Read(c.fd, c.buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err == nil && m == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, 0, fmt.Errorf("reading the head: %w", err)
		}
		n += m
		end := bytes.Index(c.buf[:n], []byte("\r\n\r\n"))
		if end < 0 {
			if n == len(c.buf) {
				return 0, 0, fmt.Errorf("a head of more than %d bytes", n)
			}
			continue
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.buf[:n])), nil)
		if err != nil {
			return 0, 0, err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
			return 0, 0, fmt.Errorf("answered %s with a body of %d bytes", resp.Status, resp.ContentLength)
		}
		return resp.ContentLength, int64(n - end - 4), nil
	}
}

var nowhere [1]byte

// discard throws away up to n bytes, and returns how many. The kernel does not
// touch the buffer.
func discard(fd int, n int64) (int64, error) {
	for {
		m, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&nowhere)), uintptr(n), unix.MSG_TRUNC, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, errno
		case m == 0:
			return 0, io.ErrUnexpectedEOF
		default:
			return int64(m), nil
		}
	}
}
