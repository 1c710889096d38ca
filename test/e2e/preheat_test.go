package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// tokenGate is what stands before a private registry: it lets through who has a
// token, and gives a token to who has the password.
type tokenGate struct {
	Addr  string
	proxy http.Handler

	mu     sync.Mutex
	tokens map[string]bool // guarded by mu
}

const (
	gateUser     = "puller"
	gatePassword = "geheim-und-lang"
)

// newTokenGate serves at the address of the registry until close.
func newTokenGate(t *testing.T, addr, target string) (g *tokenGate, stop func()) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	g = &tokenGate{Addr: lis.Addr().String(), proxy: httputil.NewSingleHostReverseProxy(u), tokens: map[string]bool{}}
	server := &http.Server{Handler: g}
	go server.Serve(lis)
	stop = sync.OnceFunc(func() { server.Close() })
	t.Cleanup(stop)
	return g, stop
}

func (g *tokenGate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path == "/token" {
		user, password, _ := r.BasicAuth()
		if r.Method == http.MethodPost {
			user, password = r.PostFormValue("username"), r.PostFormValue("password")
		}
		if user != gateUser || password != gatePassword {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		token := rand.Text()
		g.tokens[token] = true
		_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300}) // the client may go
		return
	}
	if !g.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		name, _, _ = strings.Cut(name, "/blobs/")
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="gate",scope="repository:%s:pull"`, g.Addr, name))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	g.mu.Unlock()
	defer g.mu.Lock()
	g.proxy.ServeHTTP(w, r)
}

// TestPreheat brings a private image onto eight nodes and cuts the origin off.
// Then every node's containerd has it from its own daemon: not a byte comes
// from elsewhere.
func TestPreheat(t *testing.T) {
	NeedRoot(t)
	for _, release := range Releases {
		release.Find(t)
	}
	network := NewNetwork(t)
	img := newImage(t, MultiPlatform)
	registry := NewNodeAt(t, "origin", network.Addr, "").StartRegistry(t)
	registry.Push(t, img, repository, tag)
	gate, closeGate := newTokenGate(t, network.Addr, registry.Origin.URL())
	ref := gate.Addr + "/" + repository + ":" + tag

	// Nodes without certificates get no credentials of a job.
	ca := NewCA(t, "the cluster's CA")
	head := network.NewNode(t, "scheduler")
	const token = "the-token-of-the-job-api"
	tokenFile := head.Write(t, token, "token")
	scheduler := head.StartScheduler(t, SchedulerConfig{Identity: ca.Issue(t, head, ca), Extra: []string{"--api-token-file", tokenFile, "--job-store", head.Path("jobs.db")}})
	type member struct {
		*Node
		daemon     *Daemon
		containerd *Containerd
	}
	var members []member
	for i := range 8 {
		n := network.NewNode(t, fmt.Sprintf("node%d", i+1))
		m := member{Node: n, daemon: n.StartDaemon(t, DaemonConfig{
			Registries: []string{gate.Addr + "=http://" + gate.Addr}, Schedulers: []string{scheduler.Addr},
			Identity: ca.Issue(t, n, ca),
			// The registry gives it to whoever has the password, and, while
			// nobody can ask, the nodes to whoever asks them.
			Auth: "relay", Extra: []string{"--auth-offline", "all"},
		})}
		m.containerd = n.StartContainerd(t, Releases[i%len(Releases)], "containerd", ContainerdOptions{})
		m.containerd.Mirror(t, gate.Addr, registry.Direct.URL(), m.daemon.URL())
		members = append(members, m)
	}
	Eventually(t, "all daemons are connected", time.Minute, func() error {
		n, err := scheduler.Metric("shoal_scheduler_peers")
		if err == nil && n != 8 {
			err = fmt.Errorf("%v are", n)
		}
		return err
	})
	shoal, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte(gateUser + ":" + gatePassword))
	docker := head.Write(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, gate.Addr, auth), "config.json")
	out, err := head.Run(shoal, "preheat", "--scheduler", scheduler.Admin, "--api-token-file", tokenFile, "--plain-http", "--docker-config", docker, ref)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("preheat says:\n%s", out)
	if !strings.Contains(out, "8 of 8 nodes done") {
		t.Error("that is not what was wanted")
	}
	for _, d := range img.Blobs {
		if sent := registry.Origin.Bytes(t, ForBlob(d.Digest)); sent < d.Size || float64(sent) > 1.05*float64(d.Size) {
			t.Errorf("the origin sent %d of the %d bytes of %s", sent, d.Size, d.Digest)
			for _, r := range registry.Origin.Requests(t, ForBlob(d.Digest)) {
				t.Log(r)
			}
		}
	}

	closeGate()
	registry.Stop(t)
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() {
			before := fetched(t, m.daemon)
			begun := time.Now()
			if err := m.containerd.PullCRI(t.Context(), ref); err != nil {
				t.Errorf("%s: %v", m.Name, err)
				return
			}
			t.Logf("%s pulled in %v", m.Name, time.Since(begun).Round(time.Millisecond))
			if err := m.containerd.CheckContent(CRINamespace, img.Blobs...); err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
			if more := fetched(t, m.daemon) - before; more != 0 {
				t.Errorf("%s fetched %v bytes for it", m.Name, more)
			}
		})
	}
	wg.Wait()
}

// fetched is how many bytes a daemon has from elsewhere.
func fetched(t *testing.T, d *Daemon) (sum float64) {
	for _, metric := range []string{"shoal_origin_received_bytes_total", "shoal_peer_received_bytes_total"} {
		v, err := d.Metric(metric)
		if err != nil {
			t.Error(err)
		}
		sum += v
	}
	return sum
}
