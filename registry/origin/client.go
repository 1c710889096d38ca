package origin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/shoalproject/shoal/registry"
	"golang.org/x/time/rate"
)

// Credential is what a user holds for an upstream. The zero value is
// anonymous.
type Credential struct {
	Username, Password string
	// RefreshToken is an OAuth2 identity token; it is used instead of the
	// password where both are set.
	RefreshToken string
	// AccessToken is sent as it is as a Bearer token, to the upstream only.
	AccessToken string
}

// CredentialFunc returns the credentials for a repository, named as image
// names carry it (docker.io, not registry-1.docker.io), in the order in which
// they are tried; none is anonymous. It is called for every request and must
// be safe for concurrent use.
type CredentialFunc func(ctx context.Context, repo registry.Repository) ([]Credential, error)

// Endpoint is an upstream and how its origin is to be reached.
type Endpoint struct {
	registry.Upstream
	// RootCAs verify the servers of this upstream. Default: the system's.
	RootCAs *x509.CertPool
	// ClientCert is presented to the endpoint itself, and to no other server
	// that it redirects to. Default: none.
	ClientCert *tls.Certificate
	// AllowHosts lists further HOST:PORT that redirects and token realms of
	// this upstream may reach although their address is loopback or
	// link-local, and that may be given the upstream's credentials as token
	// realms.
	AllowHosts []string
}

// Config configures a Client. Every duration that is zero takes its default.
type Config struct {
	// Endpoints are the upstreams that may be asked. No other ever is.
	Endpoints []Endpoint
	// Credentials speaks for requests that bring no Authorization of their
	// own. Default: anonymous.
	Credentials CredentialFunc
	// Rate limits the bytes per second read from all origins together, of
	// bodies alone. Its burst must be at least 1. Default: no limit.
	Rate *rate.Limiter
	// UserAgent is sent with every request. Default: "shoal".
	UserAgent string
	// Logger gets retries, refused addresses and realms. Default: none.
	Logger *slog.Logger
	// Proxy chooses the proxy of a request. Default: from the environment.
	Proxy func(*http.Request) (*url.URL, error)

	// DialTimeout bounds one connection attempt, default 5 s. Longer
	// tolerates lossy networks; shorter lets the runtime move on sooner.
	DialTimeout time.Duration
	// HeaderTimeout bounds the wait for a TLS handshake and for the headers
	// of an answer, default 10 s.
	HeaderTimeout time.Duration
	// StallTimeout is how long a body may bring no byte before it is resumed
	// on another request, default 15 s. There is no limit on the total.
	StallTimeout time.Duration
	// RetryDelay is the first pause between attempts that make no progress,
	// default 500 ms; each further one is twice as long, all are jittered by
	// a half. An origin that restarts within about 1.5 s is ridden out.
	RetryDelay time.Duration
	// MaxConnsPerHost bounds the connections to one server of an upstream,
	// default 64; further requests wait. It bounds descriptors; a stream that
	// nobody reads holds its connection.
	MaxConnsPerHost int
}

// Client makes requests to the origins of a set of upstreams. It is safe for
// concurrent use.
type Client struct {
	endpoints  map[string]*endpoint
	stop       context.CancelFunc
	background sync.WaitGroup
}

// Target is a repository and in whose name it is asked for.
type Target struct {
	registry.Repository
	// Authorization is a caller's own Authorization header. It is sent
	// instead of the daemon's credentials, and to the upstream's endpoint
	// only. A 401 is then returned as it came.
	Authorization string
	// Anonymous sends requests without any credential and fetches no token;
	// a 401 is returned with its challenges.
	Anonymous bool
}

// credential tells in whose name the target is asked for.
func (t Target) credential() credentialID {
	switch {
	case t.Authorization != "":
		return sha256.Sum256([]byte("caller " + t.Authorization))
	case t.Anonymous:
		return sha256.Sum256([]byte("anonymous"))
	default:
		return sha256.Sum256([]byte("own"))
	}
}

// New returns a client. Errors name the endpoint or the setting that is
// wrong; no request is made.
func New(cfg Config) (*Client, error) {
	setDefaults(&cfg)
	if cfg.Rate != nil && cfg.Rate.Limit() != rate.Inf && cfg.Rate.Burst() < 1 {
		return nil, fmt.Errorf("origin rate: the burst is %d bytes, want at least 1", cfg.Rate.Burst())
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{endpoints: make(map[string]*endpoint, len(cfg.Endpoints)), stop: stop}
	for _, ep := range cfg.Endpoints {
		if _, twice := c.endpoints[ep.Host]; twice {
			stop()
			return nil, fmt.Errorf("origin of %q is given twice", ep.Host)
		}
		e, err := newEndpoint(ctx, &cfg, ep, &c.background)
		if err != nil {
			stop()
			return nil, fmt.Errorf("origin of %q: %w", ep.Host, err)
		}
		c.endpoints[ep.Host] = e
	}
	return c, nil
}

func setDefaults(cfg *Config) {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.DialTimeout, 5*time.Second)
	def(&cfg.HeaderTimeout, 10*time.Second)
	def(&cfg.StallTimeout, 15*time.Second)
	def(&cfg.RetryDelay, 500*time.Millisecond)
	if cfg.MaxConnsPerHost <= 0 {
		cfg.MaxConnsPerHost = 64
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "shoal"
	}
	if cfg.Credentials == nil {
		cfg.Credentials = func(context.Context, registry.Repository) ([]Credential, error) { return nil, nil }
	}
	if cfg.Proxy == nil {
		cfg.Proxy = http.ProxyFromEnvironment
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelError + 1}))
	}
}

// Close ends what runs in the background, waits for it, and closes idle
// connections. Streams that are open go on until they are closed.
func (c *Client) Close() {
	c.stop()
	c.background.Wait()
	for _, e := range c.endpoints {
		e.own.CloseIdleConnections()
		e.other.CloseIdleConnections()
		e.strict.CloseIdleConnections()
	}
}

func (c *Client) endpoint(t Target) (*endpoint, error) {
	e, ok := c.endpoints[t.Host]
	if !ok {
		return nil, &registry.Error{
			Status: http.StatusForbidden, Code: registry.CodeDenied,
			Message: fmt.Sprintf("registry %q is not allowed here", t.Host),
		}
	}
	return e, nil
}
