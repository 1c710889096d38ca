package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/semaphore"
)

// endpoint is one upstream: its address, the transports that lead there, and
// what is remembered of it.
type endpoint struct {
	cfg  *Config
	host string // as image names carry it
	base url.URL
	// server is the HOST:PORT of base, the only one that gets Authorization.
	server string
	// exempt are the servers that may have a forbidden address.
	exempt map[string]bool
	// allowed are those of AllowHosts.
	allowed map[string]bool
	// own leads to server. The rest has no client certificate: other leads to
	// where blobs are redirected, strict to where all else is, which may not
	// be private unless server is.
	own, other, strict *http.Transport
	// private is set while server is known to have a private address, or
	// that of this host.
	private atomic.Bool
	memory  dialMemory
	// bulk are the requests for blobs that server may answer at once: some of
	// its connections are kept for what is small.
	bulk *semaphore.Weighted
	// bodies are the bytes of large answers that may be in memory at once.
	bodies *semaphore.Weighted
	gates  *gates
	auth   *authenticator
}

// errRule is wrapped by the error of a request that a rule refused.
var errRule = errors.New("not allowed")

func newEndpoint(ctx context.Context, cfg *Config, ep Endpoint, background *sync.WaitGroup) (*endpoint, error) {
	e := &endpoint{cfg: cfg, host: ep.Host, base: ep.Endpoint, exempt: map[string]bool{}, allowed: map[string]bool{}, gates: newGates()}
	if e.base.Scheme != "http" && e.base.Scheme != "https" || e.base.Hostname() == "" {
		return nil, fmt.Errorf("endpoint %q: want http or https and a host", e.base.Redacted())
	}
	e.server = hostPort(&e.base)
	if isLocal(e.base.Hostname()) {
		e.exempt[e.server] = true
	}
	if addr, err := netip.ParseAddr(e.base.Hostname()); err == nil {
		e.private.Store(isPrivate(addr))
	}
	for _, h := range ep.AllowHosts {
		host, port, err := net.SplitHostPort(h)
		if err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("allowed host %q: want HOST:PORT", h)
		}
		h = strings.ToLower(net.JoinHostPort(host, port))
		e.exempt[h], e.allowed[h] = true, true
	}
	e.bulk = semaphore.NewWeighted(int64(max(cfg.MaxConnsPerHost-cfg.MaxConnsPerHost/8, 1)))
	e.bodies = semaphore.NewWeighted(maxBodies)
	rule := addressRule{"", control}
	e.own, e.other = e.transport(ep, ep.ClientCert, rule), e.transport(ep, nil, rule)
	e.strict = e.transport(ep, nil, addressRule{"strictly ", e.controlStrictly})
	e.auth = newAuthenticator(ctx, e, background)
	return e, nil
}

func (e *endpoint) transport(ep Endpoint, cert *tls.Certificate, rule addressRule) *http.Transport {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ep.RootCAs}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) {
			return proxyFrom(r.Context()), nil
		},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return e.dial(ctx, network, addr, rule)
		},
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    e.cfg.HeaderTimeout,
		ResponseHeaderTimeout:  e.cfg.HeaderTimeout,
		MaxConnsPerHost:        e.cfg.MaxConnsPerHost,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10, // beside tokens of 16 KiB, room for signed URLs
		ReadBufferSize:         32 << 10,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		// One dead connection carries many streams: find out before they all
		// stall.
		HTTP2: &http.HTTP2Config{SendPingTimeout: e.cfg.StallTimeout, PingTimeout: e.cfg.StallTimeout},
	}
}

// addressRule says which addresses may be reached.
type addressRule struct {
	// name tells the rules apart where it is remembered what failed.
	name string
	// control looks at an address before the first packet goes to it, as
	// net.Dialer.ControlContext.
	control func(ctx context.Context, network, address string, c syscall.RawConn) error
}

// dial is the only way to an address. A server that is not exempt is checked
// after its name was resolved.
func (e *endpoint) dial(ctx context.Context, network, addr string, rule addressRule) (net.Conn, error) {
	server := strings.ToLower(addr)
	d := net.Dialer{Timeout: e.cfg.DialTimeout, ControlContext: rule.control}
	if e.exempt[server] || proxyFrom(ctx) != nil {
		d.ControlContext = nil // where there is a proxy, nothing else is dialled
	}
	conn, err := e.memory.dial(ctx, rule.name+server, func(ctx context.Context) (net.Conn, error) {
		return d.DialContext(ctx, network, addr)
	})
	if err == nil && server == e.server {
		if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
			e.private.Store(isPrivate(ap.Addr()))
		}
	}
	return conn, err
}

type proxyKey struct{}

func proxyFrom(ctx context.Context) *url.URL {
	u, _ := ctx.Value(proxyKey{}).(*url.URL)
	return u
}

// purpose says what the credential of a request is for.
type purpose int

const (
	forAPI   purpose = iota // the registry API
	forBlob                 // the same, for a blob
	forToken                // a token service
)

// mayBear is the rule of who may see a credential: the endpoint itself sees
// what is for the API; a token service sees a password only if it belongs to
// the endpoint by name, and only over a connection as safe as that to the
// endpoint.
func (e *endpoint) mayBear(p purpose, u *url.URL) bool {
	if u.Scheme != "https" && u.Scheme != e.base.Scheme {
		return false
	}
	if p != forToken {
		return u.Scheme == e.base.Scheme && hostPort(u) == e.server
	}
	return e.allowed[hostPort(u)] || related(e.base.Hostname(), u.Hostname())
}

// related reports whether two hosts are the same or of one registrable
// domain. Services of a Kubernetes cluster share a domain without sharing an
// owner.
func related(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return true
	}
	if net.ParseIP(a) != nil || net.ParseIP(b) != nil || strings.HasSuffix(a, ".cluster.local") {
		return false
	}
	da, errA := publicsuffix.EffectiveTLDPlusOne(a)
	db, errB := publicsuffix.EffectiveTLDPlusOne(b)
	return errA == nil && errB == nil && da == db
}

// send makes one request, without following a redirect. It is the only way
// to a transport and keeps the rules: what scheme and address may be asked,
// and who may see a credential. A header that may not be seen is taken off; a
// body that may not be seen fails the request.
func (e *endpoint) send(req *http.Request, p purpose) (*http.Response, error) {
	u := req.URL
	server := hostPort(u)
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%w: URL with scheme %.20q", errRule, u.Scheme)
	case u.Scheme == "http" && e.base.Scheme == "https":
		return nil, fmt.Errorf("%w: plain http to %s for an upstream that is https", errRule, server)
	case namesForbidden(u.Hostname()) && !e.exempt[server]:
		return nil, fmt.Errorf("%w: %s", ErrForbiddenAddress, server)
	}
	if !e.mayBear(p, u) {
		req.Header.Del("Authorization")
		if req.Body != nil && req.Body != http.NoBody {
			return nil, fmt.Errorf("%w: credentials for %s", errRule, server)
		}
	}
	u.User = nil
	req.Header.Set("User-Agent", e.cfg.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	proxy, err := e.cfg.Proxy(req)
	if err != nil {
		return nil, fmt.Errorf("proxy for %s: %w", server, clean(err))
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(req.Context(), proxyKey{}, proxy))
	t := e.strict
	switch {
	case server == e.server:
		t = e.own
	case p == forBlob:
		t = e.other
	}
	leave := func() {}
	if p == forBlob && server == e.server && req.Method == http.MethodGet {
		if err := e.enterBulk(ctx); err != nil {
			cancel(nil)
			return nil, err
		}
		leave = func() { e.bulk.Release(1) }
	}
	resp, err := t.RoundTrip(req.WithContext(ctx))
	if err != nil {
		leave()
		cancel(nil)
		return nil, err
	}
	resp.Body = newBody(ctx, cancel, leave, resp.Body, e.cfg)
	return resp, nil
}

// errBulk ends a request for a blob that waited for others to end.
var errBulk = errors.New("as many blobs as its connections allow are under way from it, and none has ended")

// enterBulk waits until a request for a blob may go, as long as for headers.
func (e *endpoint) enterBulk(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, e.cfg.HeaderTimeout, errBulk)
	defer cancel()
	if e.bulk.Acquire(ctx, 1) != nil {
		return context.Cause(ctx)
	}
	return nil
}
