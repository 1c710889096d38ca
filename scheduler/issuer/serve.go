package issuer

import (
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
	// maxConns bounds the connections, maxConnsPerHost those of one address or
	// network. One too many is closed at once. A request takes milliseconds.
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

// limited closes connections that are too many as soon as they are accepted.
type limited struct {
	net.Listener

	// mu guards open and hosts.
	mu    sync.Mutex
	open  int
	hosts map[netip.Prefix]int
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := hostOf(conn.RemoteAddr().String())
		if l.enter(host) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		conn.Close()
	}
}

func (l *limited) enter(host netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= maxConns || l.hosts[host] >= maxConnsPerHost {
		return false
	}
	l.open++
	l.hosts[host]++
	return true
}

func (l *limited) leave(host netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
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
