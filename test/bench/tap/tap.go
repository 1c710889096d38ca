// Package tap counts what an origin sends. A tap stands before a registry, in
// the same namespace, and passes requests on, so that requests and payload are
// counted where they leave, whoever asks. It looks at the heads of requests
// and responses only; bodies go from socket to socket by splice(2). It knows HTTP/1.1
// and the paths of the distribution API, nothing else.
package tap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// headLimit bounds the head of a request or response, in bytes.
const headLimit = 64 << 10

// Counts is what has passed a tap.
type Counts struct {
	// Payload is how many bytes of bodies went out onto the network: what was
	// handed to the kernel, but for what it had not sent when it was asked, or
	// when the connection ended. Bytes sent again count once.
	Payload int64 `json:"payload"`
	// Heads is how many bytes of response heads were handed to the kernel.
	Heads int64 `json:"heads"`
	// Requests by method and kind: "GET blob", "HEAD manifest", "GET other".
	Requests map[string]int64 `json:"requests"`
	// Total is the number of all requests.
	Total int64 `json:"total"`
	// InFlight is how many requests are being answered.
	InFlight int64 `json:"in_flight"`
	// Unsent and Unacked are bytes on connections that are still open.
	Unsent  int64 `json:"unsent"`
	Unacked int64 `json:"unacked"`
	// Connections is how many were made to the tap.
	Connections int64 `json:"connections"`
	// Failed is how many requests were not answered to the end, most often
	// because the client did not want more.
	Failed int64 `json:"failed"`
}

// Tap is a counting proxy before one server.
type Tap struct {
	backend string

	mu    sync.Mutex // guards what follows, and the counts of each connection
	done  Counts     // of connections that have ended, and all but Payload of others
	conns map[*conn]struct{}
}

// New makes a tap before a server, HOST:PORT.
func New(backend string) *Tap {
	return &Tap{backend: backend, done: Counts{Requests: map[string]int64{}}, conns: map[*conn]struct{}{}}
}

// Serve passes on what comes until the context ends; then it cuts all
// connections.
func (t *Tap) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("accepting at %s: %w", l.Addr(), err)
		}
		wg.Go(func() { t.serve(ctx, c.(*net.TCPConn)) })
	}
}

// Counts returns what has passed so far.
func (t *Tap) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.done
	out.Requests = map[string]int64{}
	for k, n := range t.done.Requests {
		out.Requests[k] = n
	}
	for c := range t.conns {
		unsent, unacked := c.pending()
		out.Payload += max(0, c.payload-unsent)
		out.Unsent += unsent
		out.Unacked += unacked
	}
	return out
}

// conn is a connection to the tap, and the one to the server that it has for
// itself.
type conn struct {
	tap              *Tap
	client, server   *net.TCPConn
	requests, answer *bufio.Reader

	// Guarded by the tap's mu: bytes handed to the kernel.
	payload, heads int64
}

func (t *Tap) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	var d net.Dialer
	s, err := d.DialContext(ctx, "tcp", t.backend)
	if err != nil {
		return // as if the server were not there
	}
	defer s.Close()
	c := &conn{tap: t, client: client, server: s.(*net.TCPConn)}
	c.requests, c.answer = bufio.NewReaderSize(client, 4<<10), bufio.NewReaderSize(s, 4<<10)
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		s.Close()
	})
	defer stop()
	t.mu.Lock()
	t.conns[c] = struct{}{}
	t.done.Connections++
	t.mu.Unlock()
	for c.pass() == nil {
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	unsent, _ := c.pending()
	t.done.Payload += max(0, c.payload-unsent)
	delete(t.conns, c)
}

// pending is how many bytes wait in the kernel to be sent, and to be
// acknowledged. When bytes wait, they are taken to be of a body.
func (c *conn) pending() (unsent, unacked int64) {
	raw, err := c.client.SyscallConn()
	if err != nil {
		return 0, 0
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
		return 0, 0
	}
	handed := c.payload + c.heads
	sent := int64(info.Bytes_sent) - int64(info.Bytes_retrans)
	return max(0, handed-sent), max(0, handed-int64(info.Bytes_acked))
}

// pass passes on one request and its response. An error ends the connection.
func (c *conn) pass() (err error) {
	head, err := readHead(c.requests)
	if err != nil {
		return err
	}
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return err
	}
	if req.ContentLength != 0 {
		return errors.New("a request with a body")
	}
	t := c.tap
	t.mu.Lock()
	t.done.Requests[req.Method+" "+kind(req.URL.Path)]++
	t.done.Total++
	t.done.InFlight++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.done.InFlight--
		if err != nil {
			t.done.Failed++
		}
	}()
	if _, err := c.server.Write(head); err != nil {
		return err
	}
	head, err = readHead(c.answer)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), req)
	if err != nil {
		return err
	}
	size := resp.ContentLength
	switch {
	case req.Method == http.MethodHead, resp.StatusCode == http.StatusNoContent, resp.StatusCode == http.StatusNotModified:
		size = 0
	case size < 0 || resp.StatusCode < 200:
		// Registries send lengths; counting chunks is not worth the code.
		return fmt.Errorf("a response without a length: %s", resp.Status)
	}
	n, err := c.client.Write(head)
	c.count(0, int64(n))
	if err != nil {
		return err
	}
	if err := c.body(size); err != nil {
		return err
	}
	if req.Close || resp.Close {
		return io.EOF
	}
	return nil
}

// step is how many bytes are handed over between two counts.
const step = 1 << 20

func (c *conn) body(size int64) error {
	// What came along with the head.
	early, err := c.answer.Peek(int(min(size, int64(c.answer.Buffered()))))
	if err != nil {
		return err
	}
	n, err := c.client.Write(early)
	c.count(int64(n), 0)
	size -= int64(n)
	if err != nil {
		return err
	}
	if _, err := c.answer.Discard(n); err != nil {
		return err
	}
	for size > 0 {
		// ReadFrom splices from a connection, also a limited part of one.
		n, err := c.client.ReadFrom(&io.LimitedReader{R: c.server, N: min(size, step)})
		c.count(n, 0)
		size -= n
		switch {
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func (c *conn) count(payload, heads int64) {
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.payload += payload
	c.heads += heads
	c.tap.done.Heads += heads
}

// readHead reads up to the empty line.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := r.ReadSlice('\n')
		head = append(head, line...)
		switch {
		case err != nil:
			return nil, err
		case len(head) > headLimit:
			return nil, fmt.Errorf("a head of more than %d bytes", headLimit)
		case string(line) == "\r\n" && len(head) > 2:
			return head, nil
		}
	}
}

func kind(path string) string {
	switch {
	case strings.Contains(path, "/blobs/"):
		return "blob"
	case strings.Contains(path, "/manifests/"):
		return "manifest"
	}
	return "other"
}
