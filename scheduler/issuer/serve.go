package issuer

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxConns bounds the connections: for one too many the oldest is closed. A
	// request takes milliseconds, so that is one which holds its place for
	// nothing. maxConnsPerHost bounds those of one address or network: one too
	// many of these is closed itself.
	maxConns        = 512
	maxConnsPerHost = 16
	// maxHeader bounds the header of a request: a token has some 1,500 bytes.
	maxHeader = 16 << 10
)

// Serve answers requests on lis, by HTTPS with what cfg proves, until ctx ends.
// It closes lis.
func (i *Issuer) Serve(ctx context.Context, lis net.Listener, cfg *tls.Config) error {
	cfg = cfg.Clone()
	cfg.ClientAuth = tls.NoClientCert // who asks has none yet
	cfg.NextProtos = []string{"http/1.1"}
	srv := &http.Server{
		Handler:   i.Handler(),
		TLSConfig: cfg,
		// No client holds a connection for long.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       5 * time.Second,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(i.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.ServeTLS(&limited{Listener: lis, hosts: map[netip.Prefix]int{}}, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("issuer: serving %s: %w", lis.Addr(), err)
	}
	return nil
}

// limited bounds the connections that are open.
type limited struct {
	net.Listener

	// mu guards open, oldest first, and hosts.
	mu    sync.Mutex
	open  list.List // of *counted
	hosts map[netip.Prefix]int
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, oldest := l.enter(conn)
		if oldest != nil {
			oldest.Close()
		}
		if c != nil {
			return c, nil
		}
		conn.Close()
	}
}

// enter gives a connection a place, or returns nil. It also returns one to close
// in its favour, if there is one too many.
func (l *limited) enter(conn net.Conn) (c, oldest *counted) {
	host := hostOf(conn.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hosts[host] >= maxConnsPerHost {
		return nil, nil
	}
	if l.open.Len() >= maxConns {
		oldest = l.open.Front().Value.(*counted)
	}
	c = &counted{Conn: conn}
	place := l.open.PushBack(c)
	l.hosts[host]++
	c.leave = sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open.Remove(place)
		if l.hosts[host]--; l.hosts[host] == 0 {
			delete(l.hosts, host)
		}
	})
	return c, oldest
}

// counted is a connection that gives its place back when it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
