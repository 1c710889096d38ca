package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

const password = "geheim-und-lang"

// buffer is written by one and read by another.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// swarm is an origin that asks for a password, a scheduler, and daemons.
type swarm struct {
	t      *testing.T
	origin *registrytest.Origin
	sched  standalone.Config
	stop   func()   // the scheduler
	nodes  []func() // stop one
	config string   // docker's
	logs   buffer
}

func startSwarm(t *testing.T, nodes int) *swarm {
	s := &swarm{t: t, origin: registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Users: map[string]string{"puller": password}}))}
	s.sched = standalone.DefaultConfig()
	s.sched.Listen, s.sched.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	s.sched.JobStore = filepath.Join(t.TempDir(), "jobs.db")
	s.sched.JobGrace = 2 * time.Second
	ca := mtlstest.NewAuthority(t)
	s.sched.TLSCert, s.sched.TLSKey = ca.Issue(t, nil, "127.0.0.1")
	s.sched.TLSCA = ca.File
	log := slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.sched.Logger = log
	s.start()
	for i := range nodes {
		cfg := daemon.DefaultConfig()
		cfg.Listen, cfg.AdminListen, cfg.PeerListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		cfg.DataDir = filepath.Join(t.TempDir(), "data")
		cfg.CacheSize = 1 << 30
		cfg.Registries = []string{s.origin.Host() + "=" + s.origin.URL()}
		cfg.NodeName = fmt.Sprintf("node%d", i)
		cfg.Schedulers = []string{s.sched.Listen}
		cfg.TLSCert, cfg.TLSKey = ca.Issue(t, nil, cfg.NodeName)
		cfg.TLSCA = ca.File
		cfg.Logger, cfg.ShutdownGrace = log, 0
		d, err := daemon.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s.nodes = append(s.nodes, runUntil(t, d.Run))
	}
	s.config = filepath.Join(t.TempDir(), "config.json")
	auth := base64.StdEncoding.EncodeToString([]byte("puller:" + password))
	if err := os.WriteFile(s.config, []byte(`{"auths":{"`+s.origin.Host()+`":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.eventually("the nodes are connected", func() bool {
		code, out, _ := s.shoal("status", "--output", "json")
		return code == 0 && strings.Count(out, `"connected_since"`) == nodes
	})
	return s
}

// runUntil runs something until the function that it returns is called.
func runUntil(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// start starts the scheduler, at the same addresses as before.
func (s *swarm) start() {
	sc, err := standalone.New(s.sched)
	if err != nil {
		s.t.Fatal(err)
	}
	s.sched.Listen, s.sched.AdminListen = sc.Addr().String(), sc.AdminAddr().String()
	s.stop = runUntil(s.t, sc.Run)
}

func (s *swarm) eventually(what string, cond func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// shoal runs a command line against the swarm.
func (s *swarm) shoal(command string, args ...string) (code int, stdout, stderr string) {
	args = append([]string{command, "--scheduler", s.sched.AdminListen}, args...)
	if command == "preheat" {
		args = append(args, "--plain-http", "--docker-config", s.config)
	}
	var out, err strings.Builder
	code = run(args, &out, &err)
	return code, out.String(), err.String()
}

// image puts an image into the origin and returns its name.
func (s *swarm) image(tag string, size int) string {
	data := make([]byte, size)
	_, _ = registrytest.Random(size).ReadAt(data, 0) // never fails
	s.origin.AddImage("team/app", tag, data)
	return s.origin.Host() + "/team/app:" + tag
}

// hang holds the layers up, until what it returns is called.
func (s *swarm) hang() (release func()) {
	wait := make(chan struct{})
	s.origin.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.HangAfter(64<<10, wait))
	return func() {
		s.origin.Heal()
		close(wait)
	}
}

// atWork waits until so many nodes of the newest job are at work.
func (s *swarm) atWork(nodes int) {
	s.t.Helper()
	s.eventually("the nodes are at work", func() bool {
		_, out, _ := s.shoal("status", "--output", "json")
		return strings.Contains(out, fmt.Sprintf(`"running":%d,`, nodes))
	})
}

func TestPreheatCommand(t *testing.T) {
	s := startSwarm(t, 3)
	image := s.image("v1", 1<<20)
	code, out, errs := s.shoal("preheat", image)
	if code != 0 || !strings.Contains(out, "3 of 3 nodes done, 3.0 MiB in ") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	code, out, _ = s.shoal("status")
	if code != 0 || !strings.Contains(out, "node2") || !strings.Contains(out, "3/3 app:v1") {
		t.Errorf("%d\n%s", code, out)
	}
	for _, line := range strings.Split(out, "\n") {
		if len([]rune(line)) > 80 {
			t.Errorf("more than 80 columns: %q", line)
		}
	}
	code, out, errs = s.shoal("preheat", s.origin.Host()+"/team/app:none")
	if code != exitFailed || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "404") {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	if code, _, errs = s.shoal("preheat", image, "--nodes", "zone=moon"); code != exitFailed || !strings.Contains(errs, "no node") {
		t.Errorf("%d\n%s", code, errs)
	}
	if code, _, errs = s.shoal("preheat", image, "--nodes", "zone:z1"); code != exitUsage || !strings.Contains(errs, "zone=z1") {
		t.Errorf("%d\n%s", code, errs)
	}
	var stdout, stderr strings.Builder
	if code = run([]string{"status", "--scheduler", s.sched.Listen}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "--admin-listen") {
		t.Errorf("status of the port for daemons: %d\n%s", code, &stderr)
	}
	code, out, _ = s.shoal("preheat", image, "--wait=false")
	if code != 0 || len(strings.TrimSpace(out)) == 0 {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ = s.shoal("preheat", "--attach", strings.TrimSpace(out)); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	// The password goes to the registry and to nobody else: not even the
	// scheduler could have written it down.
	record, err := os.ReadFile(s.sched.JobStore)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{s.logs.String(), string(record)} {
		if strings.Contains(text, password) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("puller:"+password))) {
			t.Error("the password is to be read")
		}
	}
}

// One node goes away: exit code 3, and the node and the reason are named, in
// both formats.
func TestPreheatCommandLosesNode(t *testing.T) {
	s := startSwarm(t, 3)
	for i, format := range []string{"text", "json"} {
		image := s.image(format, 1<<20+i)
		release := s.hang()
		type result struct {
			code      int
			out, errs string
		}
		done := make(chan result, 1)
		go func() {
			code, out, errs := s.shoal("preheat", image, "--output", format)
			done <- result{code, out, errs}
		}()
		s.atWork(3 - i)
		s.nodes[2-i]()
		release()
		r := <-done
		lost := fmt.Sprintf("node%d", 2-i)
		if r.code != exitSome {
			t.Fatalf("code %d\n%s\n%s", r.code, r.out, r.errs)
		}
		if format == "text" {
			if !strings.Contains(r.out, lost+": unknown: the connection with the node was lost") {
				t.Errorf("%s", r.out)
			}
			continue
		}
		lines := strings.Split(strings.TrimSpace(r.out), "\n")
		var last event
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Event != "end" || last.Job.State != jobs.Failed {
			t.Fatalf("%v %s", err, lines[len(lines)-1])
		}
		for _, n := range last.Job.Nodes {
			if (n.Name == lost) != (n.State == jobs.Unknown) {
				t.Errorf("%+v", n)
			}
		}
	}
}

// The scheduler is started again in the middle of a job: the command ends with
// the truth. The nodes that had not begun get the credentials again.
func TestPreheatCommandSurvivesScheduler(t *testing.T) {
	s := startSwarm(t, 3)
	image := s.image("v1", 1<<20)
	release := s.hang()
	done := make(chan int, 1)
	var out, errs buffer
	go func() {
		done <- run([]string{"preheat", "--scheduler", s.sched.AdminListen, image, "--plain-http", "--docker-config", s.config, "--concurrency", "1"}, &out, &errs)
	}()
	s.atWork(1)
	s.stop()
	s.start()
	release()
	if code := <-done; code != 0 {
		t.Errorf("%d\n%s\n%s", code, &out, &errs)
	}
	if !strings.Contains(out.String(), "3 of 3 nodes done") {
		t.Errorf("%s", &out)
	}
}
