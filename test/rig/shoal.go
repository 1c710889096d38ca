package rig

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/mtls/mtlstest"
)

// probe asks admin endpoints. It keeps no connection open.
var probe = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// CA signs the certificates of a swarm.
type CA struct{ authority *mtlstest.Authority }

// NewCA makes a CA for the test.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	return &CA{mtlstest.NewAuthority(tb)}
}

// Files are the paths of a certificate, its key and the CA that signed it: the
// values of --tls-cert, --tls-key and --tls-ca.
type Files struct{ Cert, Key, CA string }

// Issue makes a certificate for the names.
func (ca *CA) Issue(tb testing.TB, names ...string) *Files {
	tb.Helper()
	cert, key := ca.authority.Issue(tb, nil, names...)
	return &Files{Cert: cert, Key: key, CA: ca.authority.File}
}

func (f *Files) args() []string {
	if f == nil {
		return nil
	}
	return []string{"--tls-cert", f.Cert, "--tls-key", f.Key, "--tls-ca", f.CA}
}

// Program is a running shoal of whichever command.
type Program struct {
	*Process
	// Admin is the HOST:PORT of the admin endpoints.
	Admin string
}

// Ready asks /readyz.
func (p *Program) Ready() error { return getOK("http://" + p.Admin + "/readyz") }

// Metric is the sum of all series of a metric, or the value of one series if
// it is named with its labels as /metrics prints it. A metric that does not
// exist is 0: some appear with their first value.
func (p *Program) Metric(series string) float64 {
	p.tb.Helper()
	resp, err := probe.Get("http://" + p.Admin + "/metrics")
	if err != nil {
		p.tb.Fatalf("asking %s for its metrics: %v", p.Name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		p.tb.Fatalf("reading the metrics of %s: %v", p.Name, err)
	}
	var sum float64
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:i]
		if base, _, _ := strings.Cut(name, "{"); name != series && base != series {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			p.tb.Fatalf("metric %s of %s: %v", name, p.Name, err)
		}
		sum += v
	}
	return sum
}

func getOK(url string) error {
	resp, err := probe.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return nil
}

// SchedulerConfig says how a scheduler runs.
type SchedulerConfig struct {
	// Name is for the log. Default: scheduler.
	Name string
	// Host is the loopback address of its ports. Default: 127.0.0.1.
	Host string
	// TLS turns mutual TLS on. The certificate must be for Host.
	TLS *Files
	// Args are more flags.
	Args []string
	// Env are more variables, KEY=VALUE.
	Env []string

	addr, admin string // of the one that it replaces
}

// Scheduler is a running `shoal scheduler`.
type Scheduler struct {
	Program
	// Addr is the HOST:PORT that daemons name with --scheduler.
	Addr string

	config SchedulerConfig
}

// StartScheduler starts a scheduler that keeps its jobs in memory, and returns
// when it is ready.
func StartScheduler(tb testing.TB, cfg SchedulerConfig) *Scheduler {
	tb.Helper()
	s := &Scheduler{config: cfg}
	name := orDefault(cfg.Name, "scheduler")
	s.Process = startOnPorts(tb, orDefault(cfg.Host, "127.0.0.1"), 2, func(ports []string) (*Process, func() error) {
		s.Addr, s.Admin = orDefault(cfg.addr, ports[0]), orDefault(cfg.admin, ports[1])
		args := append([]string{"scheduler", "--listen", s.Addr, "--admin-listen", s.Admin, "--job-store", "memory"}, cfg.TLS.args()...)
		cmd := Command(tb, "", append(args, cfg.Args...)...)
		cmd.Env = append(cmd.Env, cfg.Env...)
		return Start(tb, name, cmd), s.Ready
	})
	return s
}

// Restart starts the scheduler again at the same addresses. It is stopped
// first if it runs.
func (s *Scheduler) Restart() *Scheduler {
	s.tb.Helper()
	s.Stop()
	cfg := s.config
	cfg.addr, cfg.admin = s.Addr, s.Admin
	return StartScheduler(s.tb, cfg)
}

// DaemonConfig says how a daemon runs.
type DaemonConfig struct {
	// Name is --node-name, and stands in the log. Default: node.
	Name string
	// Host is the loopback address of its ports. Default: 127.0.0.1.
	Host string
	// Schedulers are those of its swarm. None: the daemon is alone.
	Schedulers []*Scheduler
	// Registries are the values of --registry.
	Registries []string
	// TLS turns mutual TLS on.
	TLS *Files
	// Home is HOME, where docker's configuration is looked for. Default: an
	// empty directory.
	Home string
	// DataDir is --data-dir. Default: an empty directory.
	DataDir string
	// Args are more flags.
	Args []string
	// Env are more variables, KEY=VALUE.
	Env []string
}

// Daemon is a running `shoal daemon`.
type Daemon struct {
	Program
	// Mirror is the HOST:PORT of the mirror.
	Mirror string
	// Peer is the HOST:PORT of the peer port, empty without schedulers.
	Peer string
	// DataDir is where the daemon keeps its blobs.
	DataDir string
	// Config is what the daemon was started with.
	Config DaemonConfig
}

// StartDaemon starts a daemon, and returns when it is ready and has
// reached a scheduler.
func StartDaemon(tb testing.TB, cfg DaemonConfig) *Daemon {
	tb.Helper()
	cfg.Name = orDefault(cfg.Name, "node")
	if cfg.DataDir == "" {
		cfg.DataDir = filepath.Join(tb.TempDir(), "data")
	}
	d := &Daemon{DataDir: cfg.DataDir, Config: cfg}
	d.Process = startOnPorts(tb, orDefault(cfg.Host, "127.0.0.1"), 3, func(ports []string) (*Process, func() error) {
		d.Mirror, d.Admin = ports[0], ports[1]
		args := []string{"daemon", "--listen", d.Mirror, "--admin-listen", d.Admin, "--data-dir", cfg.DataDir}
		if len(cfg.Schedulers) > 0 {
			d.Peer = ports[2]
			args = append(args, "--node-name", cfg.Name, "--peer-listen", d.Peer, "--peer-advertise", d.Peer)
		}
		for _, s := range cfg.Schedulers {
			args = append(args, "--scheduler", s.Addr)
		}
		for _, r := range cfg.Registries {
			args = append(args, "--registry", r)
		}
		args = slices.Concat(args, cfg.TLS.args(), cfg.Args)
		cmd := Command(tb, cfg.Home, args...)
		cmd.Env = append(cmd.Env, cfg.Env...)
		return Start(tb, cfg.Name, cmd), d.Ready
	})
	if len(cfg.Schedulers) > 0 {
		Eventually(tb, cfg.Name+" reaches a scheduler", startLimit, func() error {
			if d.Metric("shoal_scheduler_connected") != 1 {
				return errors.New("shoal_scheduler_connected is not 1")
			}
			return nil
		})
	}
	return d
}

// Restart starts the daemon again on the same data, on other ports. It is
// stopped first if it runs.
func (d *Daemon) Restart() *Daemon {
	d.tb.Helper()
	d.Stop()
	cfg := d.Config
	cfg.DataDir = d.DataDir
	return StartDaemon(d.tb, cfg)
}

// WriteFile writes a file of a new directory and returns its path.
func WriteFile(tb testing.TB, name, content string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

func orDefault(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
