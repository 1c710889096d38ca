package origin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/registrytest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	host     = "registry.test" // the upstream as image names carry it
	repo     = "library/x"
	user     = "alice"
	password = "p4ssw0rd-of-alice"
)

var target = Target{Repository: registry.Repository{Host: host, Name: repo}}

// logs is a log that every test is searched for secrets.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newClient returns a client for o under the name host. Its pauses are so
// short that no test waits for them.
func newClient(t *testing.T, o *registrytest.Origin, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{
		Endpoints:  []Endpoint{{Upstream: o.Upstream(host), RootCAs: o.RootCAs()}},
		RetryDelay: time.Millisecond,
	}
	return newClientOf(t, cfg, change...)
}

func newClientOf(t *testing.T, cfg Config, change ...func(*Config)) *Client {
	t.Helper()
	var log logs
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		checkSecrets(t, log.String())
	})
	return c
}

func checkSecrets(t *testing.T, s string) {
	t.Helper()
	for _, secret := range []string{password, "signature", "Bearer ", "eyJ"} {
		if strings.Contains(s, secret) {
			t.Errorf("%q is told in: %s", secret, s)
		}
	}
}

// allowing lets redirects and realms of the only endpoint reach hosts.
func allowing(hosts ...string) func(*Config) {
	return func(c *Config) { c.Endpoints[0].AllowHosts = hosts }
}

func as(creds ...Credential) func(*Config) {
	return func(c *Config) {
		c.Credentials = func(_ context.Context, r registry.Repository) ([]Credential, error) {
			if r.Host != host {
				return nil, errors.New("asked for " + r.String())
			}
			return creds, nil
		}
	}
}

var alice = as(Credential{Username: user, Password: password})

func aliceOnly() registrytest.Auth {
	return registrytest.Auth{Users: map[string]string{user: password}}
}

// trap is a listener at an address that nobody may connect to.
func trap(t *testing.T, addr string) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Errorf("a connection came to the forbidden address %s", ln.Addr())
			c.Close()
		}
	})
	t.Cleanup(func() {
		// What is in the backlog has been accepted before this one.
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

func randomBytes(t *testing.T, n int) []byte {
	b := make([]byte, n)
	if _, err := registrytest.Random(n).ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// readBlob reads d from off to end and holds the bytes against data.
func readBlob(t *testing.T, c *Client, d digest.Digest, off, end int64) ([]byte, *Stream, error) {
	t.Helper()
	s, err := c.Blob(t.Context(), target, d, off, end)
	if err != nil {
		return nil, nil, err
	}
	defer s.Close()
	b, err := io.ReadAll(s)
	return b, s, err
}

func wantStatus(t *testing.T, err error, status int) *registry.Error {
	t.Helper()
	var e *registry.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a *registry.Error of status %d", err, status)
	}
	if e.Status != status {
		t.Errorf("status %d, want %d: %v", e.Status, status, err)
	}
	checkSecrets(t, err.Error())
	return e
}
