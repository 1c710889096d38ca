package wire

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

func plain() credentials.TransportCredentials { return insecure.NewCredentials() }

// tracking hands a connection's socket on to the handlers of its streams.
type tracking struct {
	credentials.TransportCredentials
}

// tracked is what a handler learns of its connection.
type tracked struct {
	credentials.AuthInfo
	raw net.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (t tracking) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	return conn, tracked{info, raw}, err
}

// Clone implements credentials.TransportCredentials.
func (t tracking) Clone() credentials.TransportCredentials {
	return tracking{t.TransportCredentials.Clone()}
}

// names returns what the daemon's certificate proves, nil without TLS.
func (t tracked) names() []string {
	info, ok := t.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil
	}
	if certs := info.State.PeerCertificates; len(certs) > 0 {
		return names(certs[0])
	}
	return []string{}
}

// expires returns until when the daemon's certificate is valid; zero without one.
func (t tracked) expires() time.Time {
	if info, ok := t.AuthInfo.(credentials.TLSInfo); ok {
		if certs := info.State.PeerCertificates; len(certs) > 0 {
			return certs[0].NotAfter
		}
	}
	return time.Time{}
}

// limited closes connections that are too many as soon as they are accepted:
// a bound that lets them wait instead would let the first ones to come keep
// all others out.
type limited struct {
	net.Listener
	most, perHost int

	// mu guards open and hosts.
	mu    sync.Mutex
	open  int
	hosts map[netip.Prefix]int
}

func limit(lis net.Listener, most, perHost int) *limited {
	return &limited{Listener: lis, most: most, perHost: perHost, hosts: map[netip.Prefix]int{}}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var host netip.Prefix
		if addr, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
			host = network(addr.Addr().Unmap())
		}
		if l.enter(host) {
			return &slotted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		conn.Close()
	}
}

func (l *limited) enter(host netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most || l.hosts[host] >= l.perHost {
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

// slotted is a connection that gives its place back when it is closed.
type slotted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (s *slotted) Close() error {
	s.leave()
	return s.Conn.Close()
}
