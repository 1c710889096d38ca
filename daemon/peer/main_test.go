package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/piece"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds how long a test waits for what must happen; nothing depends
// on its length.
const patience = 20 * time.Second

// content is a blob in memory.
type content struct {
	b      []byte
	digest digest.Digest
	layout piece.Layout
}

func newContent(size int) *content {
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size)})
	rng.Read(b)
	return &content{b: b, digest: digest.FromBytes(b), layout: piece.NewLayout(int64(size))}
}

func (c *content) piece(i int) []byte {
	off, n := c.layout.Span(i)
	return c.b[off : off+n]
}

func (c *content) have(i int) Have {
	return Have{Index: i, Sum: piece.SumOf(c.piece(i)), Known: true, Publisher: "origin-fetcher"}
}

func (c *content) all() (pieces []Have) {
	for i := range c.layout.Count() {
		pieces = append(pieces, c.have(i))
	}
	return pieces
}

// blob returns what a node says that holds these pieces.
func (c *content) blob(h Handler, pieces ...Have) Blob {
	return Blob{Digest: c.digest, Size: int64(len(c.b)), Pieces: pieces, Content: c, Handler: h}
}

func (c *content) Reader() (Reader, error) { return memoryReader{c.b}, nil }

type memoryReader struct{ b []byte }

func (r memoryReader) CopyRange(w io.Writer, off, n int64) (int64, error) {
	m, err := w.Write(r.b[off : off+n])
	return int64(m), err
}

func (r memoryReader) Close() error { return nil }

// events is a Handler that keeps what it is told, one queue for all.
type events chan event

type event struct {
	kind   string
	conn   *Conn
	pieces []Have
	err    error
}

func newEvents() events { return make(events, 4096) }

func (e events) Opened(c *Conn) { e <- event{kind: "opened", conn: c} }
func (e events) Have(c *Conn, p []Have) {
	e <- event{kind: "have", conn: c, pieces: append([]Have(nil), p...)}
}
func (e events) Changed(c *Conn)           { e <- event{kind: "changed", conn: c} }
func (e events) Closed(c *Conn, err error) { e <- event{kind: "closed", conn: c, err: err} }

// await returns the next event of a kind, skipping others.
func (e events) await(t testing.TB, kind string) event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case ev := <-e:
			if ev.kind == kind {
				return ev
			}
		case <-timeout:
			t.Fatalf("no event %q", kind)
		}
	}
}

func newEndpoint(t testing.TB, cfg Config) *Endpoint {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// serve lets e accept at a free port of a loopback address, and returns it.
func serve(t testing.TB, e *Endpoint, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("cannot listen at %s: %v", host, err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- e.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func open(t testing.TB, e *Endpoint, b Blob) *Swarm {
	t.Helper()
	s, err := e.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t testing.TB, s *Swarm, addr, name string) *Conn {
	t.Helper()
	c, err := s.Dial(t.Context(), addr, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func await(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

// collector takes the bytes of a piece, from one goroutine.
type collector struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *collector) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(b)
}

func (c *collector) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.b.Bytes())
}

// get fetches a piece and returns its bytes.
func get(c *Conn, i int) ([]byte, error) {
	var b collector
	tr, err := c.Request(i, &b)
	if err != nil {
		return nil, err
	}
	select {
	case <-tr.Done():
	case <-time.After(patience):
		return nil, errors.New("transfer does not end")
	}
	return b.bytes(), tr.Err()
}

func mustGet(t testing.TB, c *Conn, src *content, i int) {
	t.Helper()
	b, err := get(c, i)
	if err != nil {
		t.Fatalf("piece %d: %v", i, err)
	}
	if !bytes.Equal(b, src.piece(i)) {
		t.Fatalf("piece %d differs", i)
	}
}

// must is a helper for what cannot fail in tests.
func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprint(err))
	}
	return v
}
