package connlimit

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const patience = 20 * time.Second

// start serves h with at most most connections.
func start(t *testing.T, most int, h http.HandlerFunc) (*Listener, string) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Listen(inner, most)
	s := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- l.Serve(s) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.hosts) != 0 {
			t.Errorf("hosts are left: %v", l.hosts)
		}
	})
	return l, inner.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func ask(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, get); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

func closed(c net.Conn) bool {
	_, err := c.Read(make([]byte, 1))
	var late net.Error
	return err != nil && !(errors.As(err, &late) && late.Timeout())
}

// Connections that say nothing, or not enough, make room for one that asks.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	l, addr := start(t, 4, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) })
	var silent []net.Conn
	for i := range 4 {
		c := dial(t, addr)
		if i%2 == 1 {
			io.WriteString(c, strings.TrimSuffix(get, "\r\n"))
		}
		silent = append(silent, c)
	}
	for range 10 {
		ask(t, dial(t, addr))
	}
	for _, c := range silent {
		if !closed(c) {
			t.Error("a silent connection is open")
		}
	}
	if l.Busy(time.Hour) {
		t.Error("busy, although everybody got an answer")
	}
}

// A connection with a request under way is not closed for another; if all have
// one, the newcomer is closed at once.
func TestRequestsAreNotCut(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 2)
	l, addr := start(t, 2, func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-release
	})
	var conns []net.Conn
	for range 2 {
		c := dial(t, addr)
		io.WriteString(c, get)
		<-begun
		conns = append(conns, c)
	}
	if !closed(dial(t, addr)) {
		t.Error("a third connection is let in")
	}
	if !l.Busy(time.Hour) {
		t.Error("not busy")
	}
	close(release)
	for _, c := range conns {
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Error(err)
		}
	}
	ask(t, dial(t, addr)) // one of them is idle now
}

// addressed is a connection that comes from where a test says.
type addressed struct {
	net.Conn
	from net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.from }

// One address beyond loopback gets half of the places.
func TestPlacesOfOneAddress(t *testing.T) {
	l := Listen(nil, 8)
	from := func(ip string) net.Conn {
		c, _ := net.Pipe()
		return addressed{c, &net.TCPAddr{IP: net.ParseIP(ip)}}
	}
	for i := range 20 {
		if out, ok := l.enter(from("192.0.2.1")); !ok || (out != nil) != (i >= 4) {
			t.Fatalf("connection %d: ok %v, another closed %v", i, ok, out != nil)
		}
	}
	for i := range 4 {
		if out, ok := l.enter(from("192.0.2.2")); !ok || out != nil {
			t.Fatalf("connection %d of another address: ok %v, another closed %v", i, ok, out != nil)
		}
	}
}

// A client that does not read is disconnected, one that reads slowly is not.
func TestProgress(t *testing.T) {
	ended := make(chan error, 1)
	body := make([]byte, 16<<20)
	_, addr := start(t, 4, Progress(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(body)
		ended <- err
	}), 200*time.Millisecond).ServeHTTP)
	c := dial(t, addr)
	io.WriteString(c, get)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("16 MiB went to a client that reads nothing")
		}
	case <-time.After(patience):
		t.Error("waits for a client that reads nothing")
	}
}
