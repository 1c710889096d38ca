package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/scheduler/issuer"
)

// IssuerConfig says who gets certificates of this scheduler.
type IssuerConfig struct {
	// Listen is where nodes ask, HOST:PORT. Empty: nowhere.
	Listen string
	// CACert and CAKey are PEM files of the CA. More certificates in CACert
	// are trusted, and issue nothing.
	CACert, CAKey string
	// Names are DNS names or addresses by which nodes reach this scheduler.
	// No node gets a certificate for one of them.
	Names []string
	// Accounts are the service accounts whose pods get certificates,
	// NAMESPACE:NAME.
	Accounts []string
	// Audience is what tokens must be for.
	Audience string
	// Valid is how long certificates are valid, those of nodes and the
	// scheduler's own. A node that was removed is out after that time.
	Valid time.Duration
	// AccountDir has the files token and ca.crt for the API server, whose
	// address is in KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
	AccountDir string
}

// minValid is the shortest life of a certificate that can be renewed in time.
const minValid = 5 * time.Second

// caExpiresSoon is when the log begins to say that the CA expires.
const caExpiresSoon = 60 * 24 * time.Hour

// check returns the scheduler's own identity, which has no certificate yet. The
// files are the --tls-… that are set.
func (c IssuerConfig) check(files string) (*mtls.Identity, error) {
	if files != "" {
		return nil, &ConfigError{"issuer-listen", errors.New("goes without --tls-cert, --tls-key and --tls-ca: the scheduler issues its own certificate")}
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return nil, &ConfigError{"issuer-listen", fmt.Errorf("%q: want HOST:PORT", c.Listen)}
	}
	for _, need := range []struct {
		setting string
		given   bool
	}{
		{"issuer-ca-cert", c.CACert != ""}, {"issuer-ca-key", c.CAKey != ""}, {"issuer-name", len(c.Names) > 0},
		{"issuer-service-account", len(c.Accounts) > 0}, {"issuer-audience", c.Audience != ""},
	} {
		if !need.given {
			return nil, &ConfigError{need.setting, errors.New("is missing: --issuer-listen needs it")}
		}
	}
	if c.Valid < minValid {
		return nil, &ConfigError{"issuer-valid", fmt.Errorf("must be at least %v", minValid)}
	}
	ca, err := c.readCA()
	if err != nil {
		return nil, err
	}
	return mtls.Await(ca.PEM(), c.Names...)
}

func (c IssuerConfig) readCA() (*mtls.CA, error) {
	cert, err := os.ReadFile(c.CACert)
	if err != nil {
		return nil, &ConfigError{"issuer-ca-cert", err}
	}
	key, err := os.ReadFile(c.CAKey)
	if err != nil {
		return nil, &ConfigError{"issuer-ca-key", err}
	}
	ca, err := mtls.ReadCA(cert, key)
	if err != nil {
		return nil, &ConfigError{"issuer-ca-key", err}
	}
	return ca, nil
}

// issuing is the part of a scheduler that issues certificates.
type issuing struct {
	cfg      IssuerConfig
	log      *slog.Logger
	ca       *mtls.CA
	identity *mtls.Identity
	reviewer *issuer.Kubernetes
	issuer   *issuer.Issuer
	listener net.Listener
}

// newIssuing opens the listener and gives the scheduler its first certificate.
func newIssuing(cfg Config, identity *mtls.Identity) (*issuing, error) {
	c := cfg.Issuer
	i := &issuing{cfg: c, log: cfg.Logger, identity: identity}
	var err error
	if i.ca, err = c.readCA(); err != nil {
		return nil, err
	}
	if left := time.Until(i.ca.Expires()); left < caExpiresSoon {
		i.log.Warn("the CA expires soon: replace it, as docs/install/kubernetes.md says", "expires", i.ca.Expires())
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, &ConfigError{"issuer-listen", errors.New("is for schedulers in Kubernetes: the environment has no KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT")}
	}
	i.reviewer, err = issuer.NewKubernetes(net.JoinHostPort(host, port), c.AccountDir, c.Audience, c.Accounts)
	if err != nil {
		return nil, &ConfigError{"issuer-listen", err}
	}
	i.issuer, err = issuer.New(issuer.Config{CA: i.ca, Reviewer: i.reviewer, Valid: c.Valid, Reserved: c.Names, Log: i.log})
	if err != nil {
		return nil, err
	}
	if err := i.renew(); err != nil {
		return nil, &ConfigError{"issuer-name", err}
	}
	i.listener, err = cfg.listen("issuer-listen", c.Listen)
	return i, err
}

// renew issues the scheduler's own certificate.
func (i *issuing) renew() error {
	cert, key, err := i.ca.Issue(i.cfg.Valid, i.cfg.Names...)
	if err != nil {
		return err
	}
	return i.identity.Take(cert, key)
}

// run answers nodes and renews the scheduler's own certificate until ctx ends.
func (i *issuing) run(ctx context.Context) error {
	defer i.reviewer.Close()
	i.log.Info("issuing certificates", "listen", i.listener.Addr(), "valid", i.cfg.Valid, "service_accounts", i.cfg.Accounts, "ca_expires", i.ca.Expires())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.issuer.Serve(ctx, i.listener, i.identity.Config(i.log)) })
	group.Go(func() error {
		tick := time.NewTicker(i.cfg.Valid / 2)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := i.renew(); err != nil {
					i.log.Error("the scheduler's own certificate is not renewed", "expires", i.identity.Expires(), "err", err)
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// register adds the issuer's metrics.
func (i *issuing) register(r *prometheus.Registry) {
	r.MustRegister(gauge("shoal_issuer_ca_expiry_timestamp_seconds", "When the CA that issues certificates expires, in Unix time.",
		nil, func() float64 { return float64(i.ca.Expires().Unix()) }))
	for result, value := range map[string]func(issuer.Stats) int64{
		"issued":  func(s issuer.Stats) int64 { return s.Issued },
		"refused": func(s issuer.Stats) int64 { return s.Refused },
		"limited": func(s issuer.Stats) int64 { return s.Limited },
		"failed":  func(s issuer.Stats) int64 { return s.Failed },
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "shoal_issuer_requests_total",
			Help:        "Requests for certificates, by result: issued, refused for a bad token or request, limited for too many of an address or node, or failed as nobody could review the token.",
			ConstLabels: prometheus.Labels{"result": result},
		}, func() float64 { return float64(value(i.issuer.Stats())) }))
	}
}
