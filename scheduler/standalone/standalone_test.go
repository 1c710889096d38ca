package standalone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// A daemon joins a swarm, is answered, is seen in the metrics, and hears when
// the scheduler stops.
func TestServes(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	for _, c := range []struct {
		name string
		tls  bool
	}{{"plain", false}, {"tls", true}} {
		t.Run(c.name, func(t *testing.T) {
			cfg, dialTLS := config(), (*tls.Config)(nil)
			if c.tls {
				cfg.TLSCert, cfg.TLSKey = ca.Issue(t, nil, "127.0.0.1")
				cfg.TLSCA = ca.File
				dialTLS = identity(t, ca, "node-1")
			}
			s, stop := start(t, cfg)
			d := connect(t, s, dialTLS)
			blob := scheduler.Digest("sha256:" + strings.Repeat("0", 64))
			d.wait(t, func(event any) bool { return event == reachable(true) })
			if err := d.client.Send(t.Context(), scheduler.Join{Blob: blob, Size: 1 << 20, Origin: true, Source: "a.b/c"}); err != nil {
				t.Fatal(err)
			}
			d.wait(t, func(event any) bool { swarm, ok := event.(*scheduler.Swarm); return ok && swarm.Blob == blob })
			d.wait(t, func(event any) bool { _, ok := event.(*scheduler.Assign); return ok })

			code, text := get(t, s, "/metrics")
			for _, line := range []string{
				"shoal_scheduler_peers 1", "shoal_scheduler_swarms 1", "shoal_scheduler_members 1", "shoal_scheduler_streams 1",
				"shoal_scheduler_holds 0", "shoal_scheduler_bans 0", `shoal_build_info{version="v0"} 1`,
			} {
				if !strings.Contains(text, "\n"+line+"\n") {
					t.Errorf("the metrics (%d) lack %s:\n%s", code, line, text)
				}
			}
			if strings.Contains(text, "\nshoal_tls_certificate_expiry_timestamp_seconds ") != c.tls {
				t.Errorf("the metrics are wrong about the certificate:\n%s", text)
			}
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
			d.wait(t, func(event any) bool { return event == reachable(false) })
		})
	}
}

// With TLS nobody joins who proves nothing, or another name than it claims.
func TestStrangers(t *testing.T) {
	ca, foreign := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	cfg := config()
	cfg.TLSCert, cfg.TLSKey = ca.Issue(t, nil, "127.0.0.1")
	cfg.TLSCA = ca.File
	s, _ := start(t, cfg)
	stranger := identity(t, foreign, "node-1")
	stranger.RootCAs = identity(t, ca, "x").RootCAs
	for name, cfg := range map[string]*tls.Config{"plain": nil, "foreign": stranger, "another name": identity(t, ca, "node-2")} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stream, err := (&wire.Dialer{TLS: cfg, Log: quiet}).Open(ctx, s.Addr().String(), "", "node-1", scheduler.Hello{Addr: "127.0.0.1:1"})
		if err == nil {
			stream.Close()
			t.Errorf("%s: let in", name)
		}
		if ctx.Err() != nil {
			t.Errorf("%s: not answered: %v", name, err)
		}
		cancel()
	}
	if _, text := get(t, s, "/metrics"); !strings.Contains(text, "\nshoal_scheduler_peers 0\n") {
		t.Errorf("the metrics count strangers:\n%s", text)
	}
}

func TestAdmin(t *testing.T) {
	s, _ := start(t, config())
	for path, want := range map[string]string{"/healthz": `"ok"`, "/readyz": `"ok"`, "/debug/pprof/cmdline": "standalone"} {
		if code, text := get(t, s, path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, _ := get(t, s, "/"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}

	conn, err := grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("gRPC health: %v, %v", answer, err)
	}
}

// While it stops, a scheduler is alive and not ready.
func TestNotReadyWhenStopping(t *testing.T) {
	s := &Scheduler{cfg: config(), log: quiet}
	s.stopping.Store(true)
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusServiceUnavailable} {
		w := httptest.NewRecorder()
		s.adminHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}

// What is wrong as such is told apart from what only starting finds out, and
// either names the setting.
func TestNewFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "127.0.0.1")
	for _, c := range []struct {
		change  func(*Config)
		setting string // of a *ConfigError; empty: it is another error
		mention string
	}{
		{func(c *Config) { c.Listen = "4402" }, "listen", "HOST:PORT"},
		{func(c *Config) { c.AdminListen = "" }, "admin-listen", "HOST:PORT"},
		{func(c *Config) { c.TLSCert = cert }, "tls-key", "all three"},
		{func(c *Config) { c.TLSCert, c.TLSKey, c.TLSCA = "/nonexistent", key, ca.File }, "tls-cert", "/nonexistent"},
		{func(c *Config) { c.Listen = taken.Addr().String() }, "", "--listen: "},
		{func(c *Config) { c.AdminListen = taken.Addr().String() }, "", "--admin-listen: "},
	} {
		cfg := config()
		c.change(&cfg)
		s, err := New(cfg)
		var wrong *ConfigError
		if s != nil || err == nil || !strings.Contains(err.Error(), c.mention) || errors.As(err, &wrong) != (c.setting != "") || wrong != nil && wrong.Setting != c.setting {
			t.Errorf("%s %s: %v", c.setting, c.mention, err)
		}
	}
}

func config() Config {
	cfg := DefaultConfig()
	cfg.Listen, cfg.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Version, cfg.Logger = "v0", quiet
	return cfg
}

// start runs a scheduler until stop is called, or the test ends.
func start(t *testing.T, cfg Config) (s *Scheduler, stop func() error) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx)
		close(done)
	}()
	stop = func() error {
		cancel()
		return <-done
	}
	t.Cleanup(func() { stop() })
	return s, stop
}

func identity(t *testing.T, ca *mtlstest.Authority, name string) *tls.Config {
	t.Helper()
	cert, key := ca.Issue(t, nil, name)
	id, err := mtls.Load(cert, key, ca.File)
	if err != nil {
		t.Fatal(err)
	}
	return id.Config(quiet)
}

func get(t *testing.T, s *Scheduler, path string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.AdminAddr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// daemon is one that remembers what it hears.
type daemon struct {
	client *client.Client
	heard  chan any
}

// reachable is what a daemon hears of Reachable.
type reachable bool

func (d *daemon) Inventory() []scheduler.Holding                 { return nil }
func (d *daemon) Rejoin(scheduler.Digest) (scheduler.Join, bool) { return scheduler.Join{}, false }
func (d *daemon) Deliver(msg any)                                { d.heard <- msg }
func (d *daemon) Reachable(is bool)                              { d.heard <- reachable(is) }
func (d *daemon) wait(t *testing.T, is func(event any) bool) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case event := <-d.heard:
			if is(event) {
				return
			}
		case <-late:
			t.Fatal("not heard")
		}
	}
}

// connect runs a daemon called node-1 until the test ends.
func connect(t *testing.T, s *Scheduler, cfg *tls.Config) *daemon {
	t.Helper()
	dialer := &wire.Dialer{TLS: cfg, Log: quiet}
	d := &daemon{heard: make(chan any, 64)}
	var err error
	d.client, err = client.New(client.Config{
		Schedulers: []string{s.Addr().String()},
		Hello:      scheduler.Hello{Addr: "127.0.0.1:1", Zone: "z"},
		Open: func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
			return dialer.Open(ctx, to.Addr, to.ServerName, "node-1", hello)
		},
		Log: quiet,
	}, d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.client.Run(ctx); err != nil {
			t.Error(fmt.Errorf("client: %w", err))
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return d
}

// Who has no token cannot keep those out who have.
func TestStrangersLeaveTheAPIAlone(t *testing.T) {
	const token = "0123456789abcdef0123"
	cfg := config()
	cfg.JobStore, cfg.APITokenFile = "memory", filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(cfg.APITokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := start(t, cfg)
	h := s.adminHandler()
	ask := func(token string) int {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/api/v1/jobs", nil)
		r.Header.Set(api.TokenHeader, token)
		h.ServeHTTP(w, r)
		return w.Code
	}
	for range 2 * apiBurst {
		if code := ask(""); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
			t.Fatalf("a stranger gets %d", code)
		}
	}
	if code := ask(token); code != http.StatusOK {
		t.Errorf("then who has the token gets %d", code)
	}
}

// A web page that has a name of its own lead to this machine gets nothing.
func TestForeignHost(t *testing.T) {
	cfg := config()
	cfg.AdminHosts = []string{"shoal.internal"}
	s, _ := start(t, cfg)
	for host, want := range map[string]int{"": http.StatusOK, "shoal.internal": http.StatusOK, "evil.test": http.StatusMisdirectedRequest} {
		for _, path := range []string{"/metrics", "/debug/pprof/cmdline", "/healthz"} {
			r, err := http.NewRequest("GET", "http://"+s.AdminAddr().String()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host, r.Close = host, true
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s for Host %q: %d, want %d", path, host, resp.StatusCode, want)
			}
		}
	}
}
