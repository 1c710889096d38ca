package registrytest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/shoalproject/shoal/registry"
)

// Origin is a running registry. It is safe for concurrent use.
type Origin struct {
	cfg    config
	pki    *pki // nil without TLS
	api    *server
	store  *server // nil without a store
	tokens *server // nil if the API's own server gives tokens

	mu      sync.Mutex // guards repos, blobs and orders
	repos   map[string]*repository
	blobs   map[digest.Digest]content
	orders  []*order
	issuer  *issuer // has its own lock, like counter
	counter counter
}

type config struct {
	address    string
	tls, mtls  bool
	noHTTP2    bool
	withStore  bool
	urlLife    time.Duration
	auth       *Auth
	tokensAway bool
}

// Option configures an Origin.
type Option func(*config)

// WithTLS serves HTTPS with HTTP/2, by a certificate of the origin's own CA
// for localhost, 127.0.0.1 and ::1.
func WithTLS() Option { return func(c *config) { c.tls = true } }

// WithMTLS is WithTLS, and the API and token servers want a client
// certificate of that CA.
func WithMTLS() Option { return func(c *config) { c.tls, c.mtls = true, true } }

// WithoutHTTP2 keeps HTTPS at HTTP/1.1.
func WithoutHTTP2() Option { return func(c *config) { c.noHTTP2 = true } }

// WithAddress listens at an address other than 127.0.0.1:0.
func WithAddress(addr string) Option { return func(c *config) { c.address = addr } }

// WithStore redirects blob requests to a second server by URLs that are
// signed, are good for five minutes, and are rejected with 400 if a request
// bears an Authorization.
func WithStore() Option { return func(c *config) { c.withStore, c.urlLife = true, 5*time.Minute } }

// WithAuth asks every request for a token or password.
func WithAuth(a Auth) Option { return func(c *config) { c.auth = &a } }

// WithTokenServer gives tokens at a server (and port) of their own.
func WithTokenServer() Option { return func(c *config) { c.tokensAway = true } }

// TB is what New needs of a testing.TB. That package stays out of programs
// that Start an origin, such as the demonstration.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// New starts an origin that is closed at the end of the test.
func New(tb TB, opts ...Option) *Origin {
	tb.Helper()
	o, err := Start(opts...)
	if err != nil {
		tb.Fatalf("registrytest: %v", err)
	}
	tb.Cleanup(o.Close)
	return o
}

// Start starts an origin. The caller must close it.
func Start(opts ...Option) (*Origin, error) {
	o := &Origin{
		cfg:   config{address: "127.0.0.1:0"},
		repos: map[string]*repository{}, blobs: map[digest.Digest]content{},
		issuer: newIssuer(),
	}
	for _, opt := range opts {
		opt(&o.cfg)
	}
	if o.cfg.tls {
		var err error
		if o.pki, err = newPKI(); err != nil {
			return nil, err
		}
	}
	var err error
	if o.api, err = o.serve(o.cfg.address, true, o.apiHandler()); err != nil {
		return nil, err
	}
	if o.cfg.withStore {
		if o.store, err = o.serve(o.cfg.address, false, o.storeHandler()); err != nil {
			o.Close()
			return nil, err
		}
	}
	if o.cfg.tokensAway {
		if o.tokens, err = o.serve(o.cfg.address, true, o.tokenHandler()); err != nil {
			o.Close()
			return nil, err
		}
	}
	return o, nil
}

// serve starts a server; a second one on a fixed port gets another port.
func (o *Origin) serve(addr string, mtls bool, h http.Handler) (*server, error) {
	if host, _, err := net.SplitHostPort(addr); err == nil && o.api != nil {
		addr = net.JoinHostPort(host, "0")
	}
	var conf *tls.Config
	if o.pki != nil {
		conf = o.pki.serverConfig(mtls && o.cfg.mtls)
		conf.NextProtos = []string{"h2", "http/1.1"}
		if o.cfg.noHTTP2 {
			conf.NextProtos = []string{"http/1.1"}
		}
	}
	return startServer(addr, conf, h)
}

// Close stops all servers and frees what hangs.
func (o *Origin) Close() {
	for _, s := range []*server{o.api, o.store, o.tokens} {
		if s != nil {
			s.close()
		}
	}
}

// Host returns the HOST:PORT of the API.
func (o *Origin) Host() string { return o.api.addr }

// StoreHost returns the HOST:PORT of the object store.
func (o *Origin) StoreHost() string { return o.store.addr }

// TokenHost returns the HOST:PORT of the server that gives tokens.
func (o *Origin) TokenHost() string {
	if o.tokens != nil {
		return o.tokens.addr
	}
	return o.api.addr
}

// URL returns the API's base URL, without a path.
func (o *Origin) URL() string { return o.scheme() + "://" + o.Host() }

func (o *Origin) scheme() string {
	if o.pki != nil {
		return "https"
	}
	return "http"
}

// Upstream returns the origin as the upstream that image names call host; ""
// is its own HOST:PORT.
func (o *Origin) Upstream(host string) registry.Upstream {
	if host == "" {
		host = o.Host()
	}
	return registry.Upstream{Host: strings.ToLower(host), Endpoint: url.URL{Scheme: o.scheme(), Host: o.Host()}}
}

// RootCAs returns the pool with the origin's CA; nil without TLS.
func (o *Origin) RootCAs() *x509.CertPool {
	if o.pki == nil {
		return nil
	}
	return o.pki.pool
}

// CAPEM returns the origin's CA certificate in PEM; nil without TLS.
func (o *Origin) CAPEM() []byte {
	if o.pki == nil {
		return nil
	}
	return o.pki.pem
}

// ClientCert returns a client certificate of the origin's CA; it panics
// without TLS.
func (o *Origin) ClientCert() tls.Certificate { return o.pki.client }

// Down closes the API's listener and connections, so that connecting is
// refused, until Up.
func (o *Origin) Down() { o.api.down() }

// Up listens again at the same address. It fails if another process took the
// port meanwhile.
func (o *Origin) Up() error {
	if err := o.api.up(); err != nil {
		return fmt.Errorf("origin up: %w", err)
	}
	return nil
}

// Connections returns how many connections all servers have accepted.
func (o *Origin) Connections() int {
	n := 0
	for _, s := range []*server{o.api, o.store, o.tokens} {
		if s != nil {
			n += int(s.accepted.Load())
		}
	}
	return n
}
