package standalone

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/scheduler/issuer"
)

// Config is everything about one scheduler that can be chosen. Names in errors
// are those of the command's flags.
type Config struct {
	// Listen is where daemons connect, HOST:PORT. Without TLS, who reaches it
	// may join any swarm.
	Listen string
	// AdminListen is where health, metrics and profiles are served.
	AdminListen string
	// AdminHosts are names by which AdminListen may be addressed over loopback,
	// beside localhost and loopback addresses: those that a proxy on this
	// machine passes on.
	AdminHosts []string
	// TLSCert, TLSKey and TLSCA are PEM files for mutual TLS with daemons:
	// all three, or none for plaintext.
	TLSCert, TLSKey, TLSCA string
	// Issuer says who gets certificates here; the scheduler then issues its
	// own, too, and TLSCert, TLSKey and TLSCA are empty.
	Issuer IssuerConfig
	// JobStore is where records of preheat jobs are kept: memory, a file,
	// redis://… for several schedulers, or DefaultJobStore.
	JobStore string
	// APITokenFile holds the token that the job API asks for. Empty: the API
	// serves this machine alone.
	APITokenFile string
	// JobGrace is how long a node may be away before a job goes on without
	// it. Default 30 s.
	JobGrace time.Duration
	// Version is shown by the metrics.
	Version string
	// Sockets are open already and served in place of what the settings
	// listen and admin-listen say, by which they are named.
	Sockets map[string]net.Listener
	Logger  *slog.Logger
}

// SocketNames are the names that Sockets may have.
func SocketNames() []string { return []string{"listen", "admin-listen"} }

// DefaultConfig returns the configuration of a scheduler that was told nothing.
func DefaultConfig() Config {
	return Config{
		Listen: ":4402", AdminListen: "127.0.0.1:4404", JobStore: "memory",
		Issuer: IssuerConfig{Audience: "shoal-issuer", Valid: 24 * time.Hour, AccountDir: issuer.AccountDir},
	}
}

// ConfigError says which setting is wrong.
type ConfigError struct {
	// Setting is the name of the flag, without dashes.
	Setting string
	Err     error
}

func (e *ConfigError) Error() string { return "--" + e.Setting + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// check reports the first setting that is wrong, as a *ConfigError. The
// identity is nil without TLS.
func (c Config) check() (*mtls.Identity, error) {
	for _, a := range []struct{ setting, addr string }{{"listen", c.Listen}, {"admin-listen", c.AdminListen}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			return nil, &ConfigError{a.setting, fmt.Errorf("%q: want HOST:PORT", a.addr)}
		}
	}
	if c.Issuer.Listen != "" {
		return c.Issuer.check(c.TLSCert + c.TLSKey + c.TLSCA)
	}
	if c.Issuer.CACert+c.Issuer.CAKey != "" || len(c.Issuer.Names)+len(c.Issuer.Accounts) > 0 {
		return nil, &ConfigError{"issuer-listen", errors.New("is missing: the other --issuer-… are for it")}
	}
	identity, err := mtls.Load(c.TLSCert, c.TLSKey, c.TLSCA)
	if wrong := (*mtls.Error)(nil); errors.As(err, &wrong) {
		return nil, &ConfigError{wrong.Setting, wrong.Err}
	}
	return identity, err
}
