package doctor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/shoalproject/shoal/nodeinfo"
	"github.com/shoalproject/shoal/runtimes"
)

// tree is a node's file system in memory.
type tree struct{ fstest.MapFS }

func (t tree) ReadFile(file string) ([]byte, error) {
	return t.MapFS.ReadFile(strings.TrimPrefix(file, "/"))
}

func (t tree) ReadDir(dir string) (names []string, err error) {
	entries, err := t.MapFS.ReadDir(strings.TrimPrefix(dir, "/"))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

const host = "r.example.com"

// newNode returns what to look at on a node that is well: a daemon before a
// mirror whose manifests are those of the handler.
func newNode(t *testing.T, ready string, manifests http.HandlerFunc, change ...func(*nodeinfo.Node)) Config {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	mux.HandleFunc("/v2/", manifests)
	mirror := httptest.NewServer(mux)
	t.Cleanup(mirror.Close)
	addr := strings.TrimPrefix(mirror.URL, "http://")
	n := nodeinfo.Node{Mirror: addr, Registries: []nodeinfo.Registry{{Host: host, Endpoint: mirror.URL}}}
	for _, f := range change {
		f(&n)
	}
	return Config{
		Tree: tree{fstest.MapFS{
			"etc/containerd/config.toml":    {Data: []byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/hosts\"\n")},
			"hosts/" + host + "/hosts.toml": {Data: fmt.Appendf(nil, "[host.%q]\n", mirror.URL)},
		}},
		Runtime: runtimes.Containerd,
		Admin:   admin(t, ready, n),
		Image:   host + "/team/app:v1",
	}
}

// admin returns the admin address of a daemon that says so of itself.
func admin(t *testing.T, ready string, n nodeinfo.Node) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, ready) })
	mux.HandleFunc(nodeinfo.Path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(n) })
	daemon := httptest.NewServer(mux)
	t.Cleanup(daemon.Close)
	return strings.TrimPrefix(daemon.URL, "http://")
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// traps runs the doctor and returns what it names, and what it says of the
// pull.
func traps(t *testing.T, cfg Config) (named []string, pull Check) {
	t.Helper()
	checks, good := Run(t.Context(), cfg)
	for _, c := range checks {
		if c.Status == Trap {
			named = append(named, c.Name)
			if c.Remedy == "" {
				t.Errorf("%s has no remedy: %s", c.Name, c.Text)
			}
		}
		if c.Name == "pull" {
			pull = c
		}
	}
	if good != (named == nil) {
		t.Errorf("good is %t with the traps %q", good, named)
	}
	return named, pull
}

const ok = `{"status":"ok"}`

// The mirror hands on what the registry says, and the doctor tells what is a
// trap of the node.
func TestPull(t *testing.T) {
	for _, c := range []struct {
		name      string
		manifests http.HandlerFunc
		trap      bool
		text      string
	}{
		{"served", answer(200, "{}"), false, "2 bytes"},
		{"refused", answer(403, `{"errors":[{"code":"DENIED","message":"registry is not allowed here"}]}`), true, "not allowed here"},
		{"not there", answer(404, ""), true, "404"},
		{"origin away", answer(502, `{"errors":[{"message":"dial tcp: i/o timeout"}]}`), true, "i/o timeout"},
		{"certificate", answer(502, `{"errors":[{"message":"x509: certificate signed by unknown authority"}]}`), true, "x509"},
		{"basic", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Www-Authenticate", `Basic realm="r"`)
			w.WriteHeader(401)
		}, false, "pulls of pods bring theirs"},
		{"basic that is not handed on", answer(401, ""), true, "wants a password (Basic)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			named, pull := traps(t, newNode(t, ok, c.manifests))
			if (len(named) > 0) != c.trap || !strings.Contains(pull.Text, c.text) {
				t.Errorf("traps %q, and of the pull: %s; want %q", named, pull.Text, c.text)
			}
		})
	}
}

// Of credentials the doctor says who would bring them.
func TestPullOfPrivateImage(t *testing.T) {
	challenge := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`)
		w.WriteHeader(401)
	}
	cfg := newNode(t, ok, challenge)
	cfg.Tree.(tree).MapFS["etc/containers/registries.conf"] = &fstest.MapFile{}
	cfg.Runtime = runtimes.CRIO
	if _, pull := traps(t, cfg); pull.Status != OK || !strings.Contains(pull.Text, "sends to no mirror") {
		t.Errorf("podman: %+v", pull)
	}
	cfg = newNode(t, ok, challenge, func(n *nodeinfo.Node) { n.Registries[0].Auth = "node" })
	if _, pull := traps(t, cfg); pull.Status != Trap || !strings.Contains(pull.Remedy, "--docker-config") {
		t.Errorf("auth node: %+v", pull)
	}
}

// A cache that a full disk leaves next to nothing is a trap: nobody sees it
// otherwise.
func TestCache(t *testing.T) {
	for _, c := range []struct {
		cache  *nodeinfo.Cache
		status Status
		text   string
	}{
		{nil, "", ""},
		{&nodeinfo.Cache{Size: 20 << 30, Limit: 20 << 30, Used: 1 << 30}, OK, "1.0 GiB of 20 GiB used"},
		{&nodeinfo.Cache{Size: 20 << 30, Limit: 5 << 30}, OK, "does not leave the whole --cache-size, 20 GiB"},
		{&nodeinfo.Cache{Size: 20 << 30, Limit: 35 << 20}, Trap, "leaves 35 MiB of --cache-size 20 GiB"},
		{&nodeinfo.Cache{Size: 64 << 20, Limit: 64 << 20}, OK, "0 B of 64 MiB used"},
	} {
		cfg := newNode(t, ok, answer(200, "{}"), func(n *nodeinfo.Node) { n.Cache = c.cache })
		checks, _ := Run(t.Context(), cfg)
		var got Check
		for _, check := range checks {
			if check.Name == "cache" {
				got = check
			}
		}
		if got.Status != c.status || !strings.Contains(got.Text, c.text) || got.Status == Trap && got.Remedy == "" {
			t.Errorf("with %+v: %+v, want %q", c.cache, got, c.text)
		}
	}
}

// A remedy is for what is wrong, not for what has the same status.
func TestPullRemedies(t *testing.T) {
	for _, c := range []struct {
		image     string
		manifests http.HandlerFunc
		remedy    string
	}{
		{host + "/team/app:v1", answer(403, `{"errors":[{"code":"DENIED","message":"requested access is denied"}]}`), "refuses this node's address"},
		{"other.example.com/app:v1", answer(403, `{"errors":[{"code":"DENIED","message":"registry is not allowed here"}]}`), "--registry other.example.com"},
		{host + "/team/app:v1", answer(503, `{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}`), "wait: "},
		{host + "/team/app:v1", answer(503, `{"errors":[{"code":"UNAVAILABLE","message":"no route"}]}`), "reaches the registry"},
	} {
		cfg := newNode(t, ok, c.manifests)
		cfg.Image = c.image
		if _, pull := traps(t, cfg); !strings.Contains(pull.Remedy, c.remedy) {
			t.Errorf("%s: the remedy is %q, want %q", pull.Text, pull.Remedy, c.remedy)
		}
	}
}

// A registry that gives everybody a token is asked for one.
func TestPullWithToken(t *testing.T) {
	realm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("scope") != "repository:team/app:pull" || r.URL.Query().Get("service") != "s" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, `{"token":"t"}`)
	}))
	defer realm.Close()
	named, pull := traps(t, newNode(t, ok, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="s",scope="repository:team/app:pull"`, realm.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.URL.Query().Get("ns") != host {
			t.Errorf("asked with %s", r.URL)
		}
		fmt.Fprint(w, "{}")
	}))
	if len(named) > 0 || !strings.Contains(pull.Text, "2 bytes") {
		t.Errorf("traps %q, and of the pull: %s", named, pull.Text)
	}
}

func TestDaemonIsNotWell(t *testing.T) {
	for ready, want := range map[string]string{
		`{"status":"degraded","store":"no space left on device"}`: "no space left",
		`{"status":"stopping"}`:                                   "stopping",
		`not a daemon`:                                            "no shoal daemon",
	} {
		checks, _ := Run(t.Context(), newNode(t, ready, answer(200, "{}")))
		if checks[0].Status != Trap || !strings.Contains(checks[0].Text, want) {
			t.Errorf("with %s: %+v, want %q", ready, checks[0], want)
		}
	}
}

// A file that was changed after the runtime was started is not in force, and
// the clock of the node may be wrong.
func TestTimes(t *testing.T) {
	cfg := newNode(t, ok, answer(200, "{}"))
	started := time.Now()
	cfg.Started, cfg.Changed = started, func(string) time.Time { return started.Add(time.Minute) }
	if named, _ := traps(t, cfg); len(named) != 1 || named[0] != "restart" {
		t.Errorf("named %q, want the restart", named)
	}
	cfg.Changed = func(string) time.Time { return started.Add(-time.Minute) }
	cfg.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	if named, _ := traps(t, cfg); len(named) != 1 || named[0] != "clock" {
		t.Errorf("named %q, want the clock", named)
	}
}
