package test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

// wiretap passes connections on and keeps what they carry, both ways.
type wiretap struct {
	net.Listener
	lockedBuffer
}

func startWiretap(t *testing.T, to string) *wiretap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wiretap{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			for _, ends := range [][2]net.Conn{{in, out}, {out, in}} {
				all.Go(func() {
					_, _ = io.Copy(io.MultiWriter(ends[0], w), ends[1]) // until one end closes
					in.Close()
					out.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return w
}

// canaries are secrets to look for, by what they are.
type canaries map[string]string

// clean fails if text has one of the secrets, as it is or in base64.
func (c canaries) clean(t *testing.T, where string, text []byte) {
	t.Helper()
	if len(text) == 0 {
		t.Errorf("%s is empty: what was looked for there?", where)
	}
	for what, secret := range c {
		for _, form := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret))} {
			if bytes.Contains(text, []byte(strings.TrimRight(form, "="))) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
}

// tracing is held by who traces: a process has one trace at a time.
var tracing sync.Mutex

// node looks through all that a node shows, says and stores: log, metrics, profiles,
// files.
func (c canaries) node(t *testing.T, n *node) {
	t.Helper()
	for _, path := range []string{
		"/metrics", "/healthz", "/readyz", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=1", "/debug/pprof/goroutine?debug=2",
		"/debug/pprof/heap?debug=1", "/debug/pprof/allocs?debug=1", "/debug/pprof/block?debug=1", "/debug/pprof/mutex?debug=1", "/debug/pprof/trace?seconds=0.01",
	} {
		tracing.Lock()
		status, body := n.admin(path)
		tracing.Unlock()
		if status != http.StatusOK {
			t.Errorf("%s: status %d", path, status)
		}
		c.clean(t, path, body)
	}
	files := 0
	err := filepath.WalkDir(n.cfg.DataDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // what is unfinished comes and goes
		}
		files++
		c.clean(t, path, append(content, path...))
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files looked through: %v", files, err)
	}
	c.clean(t, "the log", []byte(n.logs.String()))
}

// Tokens and passwords are in no log, metric, profile, error or file, and go
// to no other node or scheduler, in any mode, whatever becomes of a pull.
func TestSecretsStaySecret(t *testing.T) {
	const password = "canary-of-the-password"
	users := map[string]string{"alice": password, "bob": "canary-of-bob"}
	for name, c := range map[string]struct {
		mode   func(*daemon.Config)
		origin registrytest.Auth
		send   func(o *registrytest.Origin) string
	}{
		"relay": {relayed, registrytest.Auth{}, func(o *registrytest.Origin) string {
			return "Bearer " + o.IssueToken("alice", "app")
		}},
		"relay, Basic": {func(c *daemon.Config) { c.Auth, c.AllowBasicRelay = "relay", true }, registrytest.Auth{Basic: true}, func(*registrytest.Origin) string {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:"+password))
		}},
		"node": {func(c *daemon.Config) {
			c.Auth, c.DockerConfig = "node", filepath.Join(t.TempDir(), "config.json")
			content := fmt.Sprintf(`{"auths":{%q:{"username":"alice","password":%q},%q:{"username":"bob","password":"canary-of-bob"}}}`, upstream, password, upstream+"/app")
			if err := os.WriteFile(c.DockerConfig, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}, registrytest.Auth{}, func(*registrytest.Origin) string { return "" }},
		"open": {func(*daemon.Config) {}, registrytest.Auth{Allow: func(string, string) bool { return true }}, func(o *registrytest.Origin) string {
			return "Bearer " + o.IssueToken("alice", "app")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.origin.Users = users
			if c.origin.Allow == nil {
				c.origin.Allow = func(user, repo string) bool { return user == "alice" && repo == "app" }
			}
			o := registrytest.New(t, registrytest.WithAuth(c.origin))
			image := o.AddImage("app", "v1", noise(1, 3<<20), noise(2, 100), noise(3, 1<<20))
			logs := &lockedBuffer{}
			s := startScheduler(t, func(cfg *standalone.Config) { cfg.Logger = debugLog(logs) })
			control := startWiretap(t, s.addr)
			nodes := make([]*node, 2)
			var wires []*wiretap
			for i := range nodes {
				// The address is known before the daemon that will listen there.
				addr := freeAddress(t)
				wires = append(wires, startWiretap(t, addr))
				nodes[i] = startMember(t, o, i, []*sched{{addr: control.Addr().String()}}, forgetful, sharesPrivate, c.mode, func(cfg *daemon.Config) {
					cfg.PeerListen, cfg.PeerAdvertise = addr, wires[i].Addr().String()
				})
				nodes[i].connected()
			}
			auth := c.send(o)
			secrets := canaries{"the password": password, "bob's password": "canary-of-bob", "a made-up token": "canary-of-nobody"}
			if auth != "" {
				_, secret, _ := strings.Cut(auth, " ")
				secrets["what the caller sent"] = secret
			}
			ask := func(n *node, path, auth string) {
				var header []string
				if auth != "" {
					header = []string{"Authorization", auth}
				}
				a := n.get(path, header...)
				if len(a.body) < 4096 {
					secrets.clean(t, "an answer", []byte(fmt.Sprint(a.StatusCode, a.Header)+string(a.body)))
				}
			}
			everything := []string{manifestPath("v1"), manifestPath(image.Manifest.Digest.String()), "/v2/app/tags/list", "/v2/other/manifests/v1"}
			for _, d := range append(image.Layers, image.Config) {
				everything = append(everything, blobPath(d.Digest))
			}
			round := func() {
				for _, n := range nodes {
					var all sync.WaitGroup
					for _, path := range everything {
						for _, auth := range []string{auth, "Bearer canary-of-nobody", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:canary-of-nobody"))} {
							all.Go(func() { ask(n, path, auth) })
						}
					}
					all.Wait()
				}
			}
			round()
			if nodes[1].number("shoal_peer_received_bytes_total") == 0 {
				t.Error("the nodes exchanged nothing")
			}
			// An origin that repeats what it was sent, one that breaks, one
			// that is gone.
			echo := o.Inject(registrytest.Order{}, func(http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"no %s"}]}`, r.Header.Get("Authorization"))
				})
			})
			round()
			echo()
			o.Inject(registrytest.Order{}, registrytest.Reset())
			round()
			o.Down()
			round()
			for i, token := range sent(o) {
				secrets[fmt.Sprint("what the origin got, ", i)] = token
			}
			for _, n := range nodes {
				secrets.node(t, n)
			}
			secrets.clean(t, "the scheduler's log", []byte(logs.String()))
			secrets.clean(t, "the wire to the scheduler", []byte(control.String()))
			secrets.clean(t, "the wire among nodes", []byte(wires[0].String()+wires[1].String()))
		})
	}
}

// sent returns what came to the origin as Authorization, without the scheme.
func sent(o *registrytest.Origin) (list []string) {
	for _, r := range o.Requests() {
		if _, secret, ok := strings.Cut(r.Authorization, " "); ok && !slices.Contains(list, secret) {
			list = append(list, secret)
		}
	}
	return list
}

// What a caller sends goes to the upstream's own host, and not along to where
// that leads.
func TestTokensGoToTheUpstreamOnly(t *testing.T) {
	users := map[string]string{"alice": "alice-password"}
	// The store answers 400 to a request that bears an Authorization.
	o := registrytest.New(t, registrytest.WithStore(), registrytest.WithAuth(registrytest.Auth{Users: users}))
	d := o.AddBlob("app", noise(1, 1<<20))
	elsewhere := registrytest.New(t)
	elsewhere.AddBlob("app", noise(2, 100))
	n := startNode(t, o, relayed, func(c *daemon.Config) {
		c.Registries = []string{upstream + "=" + o.URL() + ",allow=" + o.StoreHost() + ",allow=" + elsewhere.Host(), "elsewhere.test=" + elsewhere.URL()}
	})
	alice := "Bearer " + o.IssueToken("alice", "app")
	n.right(n.get(blobPath(d), "Authorization", alice), d)
	for _, r := range o.Requests(registrytest.Store) {
		if r.Authorization != "" {
			t.Error("the store got the token")
		}
	}
	if o.Count(registrytest.Store) == 0 {
		t.Error("the store was not asked")
	}
	// Led to another server, and back from there.
	cancel := o.Inject(registrytest.Order{Kind: registrytest.Manifest}, registrytest.Redirect(elsewhere.URL()+"/v2/app/manifests/v1"))
	n.get(manifestPath("v1"), "Authorization", alice)
	cancel()
	for _, r := range elsewhere.Requests() {
		if r.Authorization != "" {
			t.Errorf("another server got the token: %s %s", r.Method, r.Path)
		}
	}
	if len(elsewhere.Requests()) == 0 {
		t.Error("the other server was not asked")
	}
}

// A registry that names a realm elsewhere does not get the node's password
// sent there. The challenge is the caller's to judge, too.
func TestRealmElsewhere(t *testing.T) {
	// By another name of this machine: names of one host are not one owner's.
	evil := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Allow: func(string, string) bool { return true }}))
	_, port, err := net.SplitHostPort(evil.Host())
	if err != nil {
		t.Fatal(err)
	}
	users := map[string]string{"alice": "alice-password"}
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Users: users, Realm: "http://localhost:" + port + "/token"}))
	o.AddImage("app", "v1", noise(1, 100))
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"auths":{%q:{"username":"alice","password":"alice-password"}}}`, upstream), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, o, func(c *daemon.Config) { c.Auth, c.DockerConfig = "node", config })
	if a := n.get(manifestPath("v1")); a.StatusCode < 400 {
		t.Errorf("status %d", a.StatusCode)
	}
	for _, r := range evil.Requests() {
		if r.Authorization != "" || strings.Contains(r.Form.Encode(), "alice") {
			t.Errorf("the realm got a credential: %s %v", r.Authorization, r.Form)
		}
	}
	if strings.Contains(n.logs.String(), "alice-password") {
		t.Error("the password is in the log")
	}
	if !strings.Contains(n.logs.String(), "token realm does not belong to the registry") {
		t.Error("nothing is said of the realm")
	}
}
