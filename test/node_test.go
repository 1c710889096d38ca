package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// upstream is the name of the origin in most tests.
const upstream = "registry.test"

// node is a running daemon.
type node struct {
	t    *testing.T
	cfg  daemon.Config
	url  string // of the mirror
	adm  string // of the operator's endpoints
	peer string // HOST:PORT for other nodes, or empty
	http *http.Client
	logs *lockedBuffer
	stop func() // stops the daemon and waits for it
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startNode starts a daemon in front of the given origin, open to all, with
// what change changes.
func startNode(t *testing.T, o *registrytest.Origin, change ...func(*daemon.Config)) *node {
	t.Helper()
	cfg := daemon.DefaultConfig()
	cfg.Listen, cfg.AdminListen, cfg.PeerListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.CacheSize = 1 << 30
	cfg.Registries = []string{upstream + "=" + o.URL()}
	cfg.DefaultRegistry = upstream
	cfg.Auth = "open"
	cfg.ShutdownGrace = time.Second
	for _, c := range change {
		c(&cfg)
	}
	return run(t, cfg)
}

func run(t *testing.T, cfg daemon.Config) *node {
	t.Helper()
	logs := &lockedBuffer{}
	cfg.Logger = debugLog(logs)
	d, err := daemon.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	n := &node{
		t: t, cfg: cfg, logs: logs,
		url: "http://" + d.MirrorAddr().String(), adm: "http://" + d.AdminAddr().String(),
		http: &http.Client{Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	if addr := d.PeerAddr(); addr != nil {
		n.peer = addr.String()
	}
	n.stop = sync.OnceFunc(func() {
		n.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", logs)
		}
	})
	return n
}

// debugLog is a log of all there is.
func debugLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// freeAddress returns an address that nobody listens at now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// restart stops the daemon and starts another one on the same directory.
func (n *node) restart() *node {
	n.t.Helper()
	n.stop()
	return run(n.t, n.cfg)
}

// answer is a response that has been read to its end.
type answer struct {
	*http.Response
	body []byte
	err  error // of the body
}

// do makes a request. Headers are given as key, value, key, value.
func (n *node) do(method, path string, header ...string) answer {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.t.Context(), method, n.url+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return answer{err: err, Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}
}

func (n *node) get(path string, header ...string) answer {
	n.t.Helper()
	return n.do(http.MethodGet, path, header...)
}

// blobPath is the path of a blob of the repository app, by parameter ns.
func blobPath(d digest.Digest) string {
	return fmt.Sprintf("/v2/app/blobs/%s?ns=%s", d, upstream)
}

func manifestPath(ref string) string {
	return fmt.Sprintf("/v2/app/manifests/%s?ns=%s", ref, upstream)
}

// blob gets a blob and insists that it is right.
func (n *node) blob(d digest.Digest) []byte {
	n.t.Helper()
	a := n.get(blobPath(d))
	n.right(a, d)
	return a.body
}

// right insists that an answer is the whole content with digest d.
func (n *node) right(a answer, d digest.Digest) {
	n.t.Helper()
	if a.err != nil || a.StatusCode != http.StatusOK {
		n.t.Fatalf("status %d, %v: %.300s", a.StatusCode, a.err, a.body)
	}
	if got := d.Algorithm().FromBytes(a.body); got != d {
		n.t.Fatalf("wrong bytes delivered as complete: %s instead of %s", got, d)
	}
}

// incomplete insists that an answer is an error, or a body cut short.
func (n *node) incomplete(a answer) {
	n.t.Helper()
	if a.err == nil && a.StatusCode < 400 {
		n.t.Fatalf("status %d with a complete body of %d bytes", a.StatusCode, len(a.body))
	}
}

// stored insists that the node's disk has the blob, or has not.
func (n *node) stored(d digest.Digest, want bool) {
	n.t.Helper()
	if _, err := os.Stat(n.blobFile(d)); (err == nil) != want {
		n.t.Fatalf("blob %s on disk: %v, want %v", d, err == nil, want)
	}
}

func (n *node) blobFile(d digest.Digest) string {
	return filepath.Join(n.cfg.DataDir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// eventually waits until cond holds, for what happens behind an answer.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// settled waits until nothing is in flight.
func (n *node) settled() {
	n.t.Helper()
	eventually(n.t, "downloads settle", func() bool { return n.metric("shoal_blobs_in_flight") == "0" })
}

// admin gets one of the operator's endpoints.
func (n *node) admin(path string) (status int, body []byte) {
	n.t.Helper()
	resp, err := n.http.Get(n.adm + path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, body
}

// metric returns the value of a metric, as text. The name has its labels, if
// any, behind it.
func (n *node) metric(name string) string {
	n.t.Helper()
	_, body := n.admin("/metrics")
	for line := range bytes.Lines(body) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return string(bytes.TrimSpace(v))
		}
	}
	n.t.Fatalf("no metric %s", name)
	return ""
}

// noise returns n bytes that do not compress, always the same for a seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	if _, err := registrytest.Random(seed).ReadAt(b, 0); err != nil {
		panic(err)
	}
	return b
}

func hostOf(t *testing.T, rawURL string) string {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
