// Package connlimit bounds the connections of an HTTP server, so that clients
// that hold connections and ask for nothing keep nobody out.
//
// It knows which connections have a request under way. It must not know what is
// served.
package connlimit

import (
	"container/list"
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Listener accepts no more than so many connections at once. When all are
// taken, the one that has been without a request longest is closed for a new
// one: an idle one, or one whose first request is not complete yet. If all have
// a request under way, the new one is closed at once, so that its client goes
// elsewhere instead of waiting.
//
// Connections are not wrapped: a wrapped one would lose sendfile.
type Listener struct {
	net.Listener
	most int

	mu sync.Mutex
	// Guarded by mu:
	conns   map[net.Conn]*entry
	hosts   map[netip.Addr]int // connections from addresses beyond loopback
	idle    list.List          // of *entry, the one that has been idle longest first
	refused time.Time          // when a connection was last closed for want of places
}

type entry struct {
	conn net.Conn
	host netip.Addr
	at   *list.Element // in idle; nil while a request is under way
}

// Listen returns a Listener of at most most connections from l. A single
// address beyond loopback gets half of them.
func Listen(l net.Listener, most int) *Listener {
	return &Listener{Listener: l, most: max(most, 1), conns: map[net.Conn]*entry{}, hosts: map[netip.Addr]int{}}
}

// Serve lets s serve the connections. It sets ConnState and ConnContext of s,
// which must not be set, and returns what s.Serve does.
func (l *Listener) Serve(s *http.Server) error {
	s.ConnState = l.connState
	s.ConnContext = l.connContext
	s.Handler = l.handler(s.Handler)
	return s.Serve(l)
}

// Busy reports whether a connection was closed for want of places within the
// time before now.
func (l *Listener) Busy(within time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.refused.IsZero() && time.Since(l.refused) < within
}

// Accept returns the next connection that has a place.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		out, ok := l.enter(c)
		if out != nil {
			out.Close()
		}
		if ok {
			return c, nil
		}
		c.Close()
	}
}

// enter gives c a place, and returns the connection that loses its own for it,
// if one does.
func (l *Listener) enter(c net.Conn) (out net.Conn, ok bool) {
	e := &entry{conn: c, host: hostOf(c)}
	l.mu.Lock()
	defer l.mu.Unlock()
	crowded := e.host.IsValid() && l.hosts[e.host] >= max(l.most/2, 1)
	if crowded || len(l.conns) >= l.most {
		victim := l.longestIdle(e.host, crowded)
		if victim == nil {
			l.refused = time.Now()
			return nil, false
		}
		l.leave(victim)
		out = victim.conn
	}
	l.conns[c] = e
	if e.host.IsValid() {
		l.hosts[e.host]++
	}
	e.at = l.idle.PushBack(e)
	return out, true
}

// longestIdle returns the connection that has been idle longest, of host alone
// if only is set.
func (l *Listener) longestIdle(host netip.Addr, only bool) *entry {
	for at := l.idle.Front(); at != nil; at = at.Next() {
		if e := at.Value.(*entry); !only || e.host == host {
			return e
		}
	}
	return nil
}

// leave takes a connection out. The caller holds mu.
func (l *Listener) leave(e *entry) {
	if l.conns[e.conn] != e {
		return
	}
	delete(l.conns, e.conn)
	if e.at != nil {
		l.idle.Remove(e.at)
		e.at = nil
	}
	if e.host.IsValid() {
		if l.hosts[e.host]--; l.hosts[e.host] == 0 {
			delete(l.hosts, e.host)
		}
	}
}

// connState takes note of connections that end.
func (l *Listener) connState(c net.Conn, s http.ConnState) {
	if s != http.StateClosed && s != http.StateHijacked {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.conns[c]; e != nil {
		l.leave(e)
	}
}

type key struct{}

// connContext hands a connection's entry on to its requests.
func (l *Listener) connContext(ctx context.Context, c net.Conn) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return context.WithValue(ctx, key{}, l.conns[c])
}

// handler notes which connections have a request under way. A request counts
// from when its headers are complete.
func (l *Listener) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e, _ := r.Context().Value(key{}).(*entry)
		if e != nil {
			l.begin(e)
			defer l.end(e)
		}
		h.ServeHTTP(w, r)
	})
}

func (l *Listener) begin(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.at != nil {
		l.idle.Remove(e.at)
		e.at = nil
	}
}

func (l *Listener) end(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns[e.conn] == e && e.at == nil {
		e.at = l.idle.PushBack(e)
	}
}

// hostOf returns the address of a client that is on another machine: those on
// this one share an address.
func hostOf(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// Progress returns h with a deadline on what it writes: a client that does not
// take 64 KiB within stall is disconnected.
func Progress(h http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&progress{ResponseWriter: w, conn: http.NewResponseController(w), stall: stall}, r)
	})
}

const portion = 64 << 10

type progress struct {
	http.ResponseWriter
	conn  *http.ResponseController
	stall time.Duration
}

func (p *progress) extend() {
	// A server that has no deadlines is one of a test.
	_ = p.conn.SetWriteDeadline(time.Now().Add(p.stall))
}

func (p *progress) WriteHeader(status int) {
	p.extend()
	p.ResponseWriter.WriteHeader(status)
}

func (p *progress) Write(b []byte) (n int, err error) {
	for {
		p.extend()
		part := b[n:min(n+portion, len(b))]
		m, err := p.ResponseWriter.Write(part)
		if n += m; err != nil || n == len(b) {
			return n, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (p *progress) Unwrap() http.ResponseWriter { return p.ResponseWriter }
