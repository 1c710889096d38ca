package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// relayed has a node let the origin decide.
func relayed(c *daemon.Config) { c.Auth = "relay" }

// sharesPrivate has a node share private blobs though its peers do not prove
// who they are.
func sharesPrivate(c *daemon.Config) { c.PeerPlaintextPrivate = true }

// owners is an origin with users who may read one repository each; "" may not
// read any.
func owners(t *testing.T, of map[string]string, opts ...registrytest.Option) *registrytest.Origin {
	t.Helper()
	users := map[string]string{}
	for user := range of {
		users[user] = user + "-password"
	}
	return registrytest.New(t, append([]registrytest.Option{registrytest.WithAuth(registrytest.Auth{
		Users: users, Allow: func(user, repo string) bool { return user != "" && of[user] == repo },
	})}, opts...)...)
}

// puller pulls as containerd does: by tag, then all by digest, starting
// without a token and getting one where it is challenged.
type puller struct {
	t              *testing.T
	url            string // of a mirror or origin
	user, password string // none is anonymous
	client         *http.Client
	auth           string // what it sends
	tokens         int    // that it got
}

func newPuller(t *testing.T, url, user string) *puller {
	return &puller{t: t, url: url, user: user, password: user + "-password", client: &http.Client{Transport: &http.Transport{}}}
}

// pull gets an image of the repository app and insists that all is right.
func (r *puller) pull(root v1.Descriptor, images ...registrytest.Image) {
	r.t.Helper()
	defer r.client.CloseIdleConnections()
	if resp := r.do(http.MethodHead, "manifests/v1"); resp.StatusCode != http.StatusOK || resp.Header.Get("Docker-Content-Digest") != root.Digest.String() {
		r.t.Fatalf("HEAD of the tag: %d %v", resp.StatusCode, resp.Header)
	}
	r.auth = "" // fetching starts anew
	r.right("manifests/", root.Digest)
	for _, image := range images {
		if image.Manifest.Digest != root.Digest {
			r.right("manifests/", image.Manifest.Digest)
		}
		r.right("blobs/", image.Config.Digest)
		for _, l := range image.Layers {
			r.right("blobs/", l.Digest)
		}
	}
}

func (r *puller) right(kind string, d digest.Digest) {
	r.t.Helper()
	resp := r.do(http.MethodGet, kind+d.String())
	if got := digest.FromBytes(resp.body); resp.StatusCode != http.StatusOK || got != d || resp.err != nil {
		r.t.Fatalf("%s%s: %d %v, %s of %d bytes: %.200s", kind, d, resp.StatusCode, resp.err, got, len(resp.body), short(resp.body))
	}
}

// do makes a request, and makes it again with a token if it is challenged.
func (r *puller) do(method, path string) answer {
	r.t.Helper()
	a := r.once(method, path)
	if a.StatusCode == http.StatusUnauthorized && r.login(a.Header.Get("Www-Authenticate")) {
		a = r.once(method, path)
	}
	return a
}

func (r *puller) once(method, path string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, fmt.Sprintf("%s/v2/app/%s?ns=%s", r.url, path, upstream), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.auth != "" {
		req.Header.Set("Authorization", r.auth)
	}
	if strings.HasPrefix(path, "manifests/") {
		req.Header.Set("Accept", v1.MediaTypeImageIndex+", "+v1.MediaTypeImageManifest)
	}
	return r.send(req)
}

func (r *puller) send(req *http.Request) answer {
	r.t.Helper()
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{err: err, Response: &http.Response{}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}
}

// login answers a challenge and reports whether it could.
func (r *puller) login(challenge string) bool {
	r.t.Helper()
	if strings.HasPrefix(challenge, "Basic ") {
		req, err := http.NewRequest(http.MethodGet, r.url, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		req.SetBasicAuth(r.user, r.password)
		r.auth = req.Header.Get("Authorization")
		return true
	}
	rest, ok := strings.CutPrefix(challenge, "Bearer ")
	if !ok {
		return false
	}
	params := map[string]string{}
	for _, p := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(p, "=")
		params[k] = strings.Trim(v, `"`)
	}
	query := url.Values{"service": {params["service"]}, "scope": {params["scope"]}}
	req, err := http.NewRequest(http.MethodGet, params["realm"]+"?"+query.Encode(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.user != "" {
		req.SetBasicAuth(r.user, r.password)
	}
	a := r.send(req)
	var doc struct{ Token string }
	if a.err != nil || a.StatusCode != http.StatusOK || json.Unmarshal(a.body, &doc) != nil {
		return false
	}
	r.auth, r.tokens = "Bearer "+doc.Token, r.tokens+1
	return true
}

// requests counts what an origin was asked, but for tokens.
func requests(o *registrytest.Origin) int { return len(o.Requests()) - o.Count(registrytest.Token) }

// Neither callers with tokens nor those who need none cost the origin more
// requests by way of a node than without it, and the next ones hardly any.
func TestRelayRequests(t *testing.T) {
	for name, c := range map[string]struct {
		opts []registrytest.Option
		user string
		// again is what a second pull costs: with a token of its own, the
		// tag and the index are asked for once each.
		again int
		// probe is what it costs, where nodes share on a plaintext wire, to
		// find out that everyone may have the image, or may not: a challenge,
		// which the next image of the registry does without, and a HEAD.
		probe int
	}{
		"public":            {},
		"public, by tokens": {[]registrytest.Option{registrytest.WithAuth(registrytest.Auth{Allow: func(string, string) bool { return true }})}, "", 2, 2},
		"private": {[]registrytest.Option{registrytest.WithAuth(registrytest.Auth{
			Users: map[string]string{"alice": "alice-password"},
		})}, "alice", 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			o := registrytest.New(t, c.opts...)
			image := o.AddImage("app", "", noise(1, 1<<20), noise(2, 100), noise(3, 100))
			index := o.AddIndex("app", "v1", image.Manifest)
			direct := newPuller(t, o.URL(), c.user)
			direct.pull(index, image)
			want := requests(o)
			for _, change := range []func(*daemon.Config){
				func(*daemon.Config) {},
				func(cfg *daemon.Config) { cfg.Schedulers = []string{startScheduler(t).addr} },
				func(cfg *daemon.Config) {
					cfg.Schedulers, cfg.PeerPlaintextPrivate = []string{startScheduler(t).addr}, true
				},
			} {
				n := startNode(t, o, relayed, change)
				want := want
				if len(n.cfg.Schedulers) > 0 {
					n.connected()
					if !n.cfg.PeerPlaintextPrivate {
						want += c.probe
					}
				}
				o.ResetCounters()
				newPuller(t, n.url, c.user).pull(index, image)
				cold := requests(o)
				n.settled()
				o.ResetCounters()
				newPuller(t, n.url, c.user).pull(index, image)
				t.Logf("direct %d requests, by a node %d, once more %d (%d nodes around)", want, cold, requests(o), len(n.cfg.Schedulers))
				if again := requests(o); cold > want || again > c.again {
					t.Errorf("should be at most %d and %d: %v", want, c.again, o.Requests())
				}
				n.stop()
			}
		})
	}
}

// Sixteen nodes pull a private image, each with a token of its own: it leaves
// the origin once, and permission costs each node as much as its tokens.
func TestSwarmPrivate(t *testing.T) {
	const size = 16 << 20
	of := map[string]string{}
	for i := range 16 {
		of[fmt.Sprintf("user%d", i)] = "app"
	}
	o := owners(t, of)
	image := o.AddImage("app", "v1", noise(1, size), noise(2, 300_000), noise(3, 100))
	total := image.Manifest.Size + image.Config.Size
	for _, l := range image.Layers {
		total += l.Size
	}
	nodes := startCluster(t, o, 16, []*sched{startScheduler(t)}, relayed, sharesPrivate)
	each(nodes, func(i int, n *node) {
		newPuller(t, n.url, fmt.Sprintf("user%d", i)).pull(image.Manifest, image)
	})
	for _, n := range nodes {
		n.settled()
	}
	c := float64(o.SentTotal()) / float64(total)
	heads := o.Count(registrytest.Manifest, http.MethodHead) + o.Count(registrytest.Blob, http.MethodHead)
	t.Logf("%.3f copies; %d requests, %d of them HEAD: for the challenge, the tag, and the manifest by another token", c, requests(o), heads)
	if c > 1.05 {
		t.Errorf("origin sent %.3f copies", c)
	}
	if heads > 3*len(nodes) {
		t.Errorf("%d requests for permission by %d nodes: %v", heads, len(nodes), o.Requests())
	}
	for i, n := range nodes {
		if log := n.logs.String(); strings.Contains(log, fmt.Sprintf("user%d-password", i)) {
			t.Error("a password is in a log")
		}
	}
}

// A node whose callers' token the origin does not serve says so at once, is
// not asked again, and gets the blob from the others.
func TestSwarmTokenRefused(t *testing.T) {
	const size = 32 << 20
	o := owners(t, map[string]string{"user0": "app", "user1": "app"})
	image := o.AddImage("app", "v1", noise(1, size))
	d := image.Layers[0].Digest
	nodes := startCluster(t, o, 2, []*sched{startScheduler(t)}, relayed, sharesPrivate)
	tokens := []string{"Bearer " + o.IssueToken("user0", "app"), "Bearer " + o.IssueToken("user1", "app")}
	// The first may look at the blob and not get it. The second is not served
	// before that has come to light.
	var count atomic.Int64
	refused := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Method: http.MethodGet}, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != tokens[0] {
				select {
				case <-refused:
				case <-r.Context().Done():
				}
				next.ServeHTTP(w, r)
				return
			}
			if count.Add(1) == 1 {
				close(refused)
			}
			w.WriteHeader(http.StatusForbidden)
		})
	})
	each(nodes, func(i int, n *node) {
		// The manifest tells the size, so that nobody asks for that.
		n.get(manifestPath("v1"), "Authorization", tokens[i])
		n.right(n.get(blobPath(d), "Authorization", tokens[i]), d)
	})
	if count.Load() != 1 || !strings.Contains(nodes[0].logs.String(), "run is handed back") {
		t.Errorf("the origin was asked %d times with the token that it does not serve", count.Load())
	}
	mostCopies(t, o, size, 1.05)
}

// What one caller pulled is not given to another, neither by the node that
// has it nor by a peer, whatever way it is asked for.
func TestSwarmRefusesOthers(t *testing.T) {
	o := owners(t, map[string]string{"alice": "app", "bob": "other"})
	secret := noise(72, 1<<20)
	image := o.AddImage("app", "v1", secret)
	own := o.AddImage("other", "v1", noise(73, 100))
	d := image.Layers[0].Digest
	nodes := startCluster(t, o, 2, []*sched{startScheduler(t)}, relayed, sharesPrivate)
	alice := "Bearer " + o.IssueToken("alice", "app")
	bob := "Bearer " + o.IssueToken("bob", "other")
	nodes[0].right(nodes[0].get(manifestPath("v1"), "Authorization", alice), image.Manifest.Digest)
	nodes[0].right(nodes[0].get(blobPath(d), "Authorization", alice), d)
	nodes[0].settled()
	for i, n := range nodes {
		// bob has a permission of his own, and it helps him to nothing else.
		a := n.get(fmt.Sprintf("/v2/other/manifests/v1?ns=%s", upstream), "Authorization", bob)
		n.right(a, own.Manifest.Digest)
		for _, path := range []string{
			blobPath(d), fmt.Sprintf("/v2/other/blobs/%s?ns=%s", d, upstream), fmt.Sprintf("/v2/x/blobs/%s?ns=%s", d, upstream),
			fmt.Sprintf("/v2/other/manifests/%s?ns=%s", d, upstream), manifestPath("v1"), manifestPath(image.Manifest.Digest.String()),
			fmt.Sprintf("/v2/other/manifests/%s?ns=%s", image.Manifest.Digest, upstream),
		} {
			for _, method := range []string{"GET", "HEAD"} {
				for _, who := range [][]string{{"Authorization", bob}, {"Authorization", "Bearer made-up"}, {}} {
					a := n.do(method, path, who...)
					if a.StatusCode < 401 || a.StatusCode > 404 || len(a.body) > 1000 {
						t.Errorf("node %d, %s %s by %.10q: status %d, %d bytes", i, method, path, who, a.StatusCode, len(a.body))
					}
				}
			}
			if a := n.get(path, "Authorization", bob, "Range", "bytes=0-10"); a.StatusCode < 401 || a.StatusCode > 404 {
				t.Errorf("node %d, range of %s: status %d", i, path, a.StatusCode)
			}
		}
	}
	if got := nodes[1].number("shoal_peer_received_bytes_total"); got != 0 {
		t.Errorf("a node fetched %v bytes for a caller who may not have them", got)
	}
	// The permitted one gets it from the peer.
	o.ResetCounters()
	nodes[1].right(nodes[1].get(blobPath(d), "Authorization", alice), d)
	mostCopies(t, o, len(secret), 0)
}

// A token that expires in the middle of a layer: the body is cut short, the
// runtime gets another token and goes on from the byte reached.
func TestRelayTokenExpiresInsideLayer(t *testing.T) {
	const size = 4 << 20
	o := owners(t, map[string]string{"alice": "app"})
	content := noise(27, size)
	d := o.AddBlob("app", content)
	n := startNode(t, o, relayed, func(c *daemon.Config) { c.PermissionTTL = time.Nanosecond })
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Method: "GET", Skip: 1, Times: 1},
		registrytest.Chain(registrytest.After(1<<20, o.RevokeTokens), registrytest.Cut(2<<20)))
	r := newPuller(t, n.url, "alice")
	defer r.client.CloseIdleConnections()
	var body []byte
	var cuts, refusals int
	for attempt := 0; len(body) < size; attempt++ {
		if attempt == 8 {
			t.Fatalf("%d of %d bytes after %d attempts, %d cut short, %d refused", len(body), size, attempt, cuts, refusals)
		}
		req, err := http.NewRequest(http.MethodGet, n.url+blobPath(d), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(body)))
		}
		if r.auth != "" {
			req.Header.Set("Authorization", r.auth)
		}
		a := r.send(req)
		switch a.StatusCode {
		case http.StatusUnauthorized:
			refusals++
			if !r.login(a.Header.Get("Www-Authenticate")) {
				t.Fatalf("no token by the challenge %q", a.Header.Get("Www-Authenticate"))
			}
		case http.StatusOK, http.StatusPartialContent:
			body = append(body, a.body...)
			if len(body) < size {
				cuts++
				if a.err == nil {
					t.Errorf("a body of %d bytes ends at %d without an error", size, len(body))
				}
			}
		default:
			t.Fatalf("status %d: %s", a.StatusCode, a.body)
		}
	}
	if digest.FromBytes(body) != d {
		t.Error("wrong bytes")
	}
	// The first refusal asks for the first token.
	if refusals < 2 {
		t.Errorf("%d refusals, want the revoked token refused too", refusals)
	}
	if sent := o.Sent(d); sent > size+512<<10 {
		t.Errorf("origin sent %d bytes of %d", sent, size)
	}
}

// Who decides may differ from registry to registry.
func TestAuthPerRegistry(t *testing.T) {
	open, private := registrytest.New(t), owners(t, map[string]string{"alice": "app"})
	d, secret := open.AddBlob("app", noise(1, 100)), private.AddBlob("app", noise(2, 100))
	n := startNode(t, open, relayed, func(c *daemon.Config) {
		c.Registries = []string{"open.test=" + open.URL() + ",auth=open", "private.test=" + private.URL()}
	})
	n.right(n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=open.test", d)), d)
	if a := n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=private.test", secret)); a.StatusCode != 401 {
		t.Errorf("status %d", a.StatusCode)
	}
	n.settled()
	open.Down()
	private.Down()
	n.right(n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=open.test", d)), d)
	// What one registry gave is not another's to give away.
	if a := n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=private.test", d)); a.StatusCode < 400 {
		t.Errorf("status %d", a.StatusCode)
	}
}

// What a caller brought by his token is not given away by the name of a
// registry that is open, or that the node has credentials for.
func TestDigestAloneOpensNothing(t *testing.T) {
	for _, auth := range []string{"open", "node"} {
		t.Run(auth, func(t *testing.T) {
			other, private := registrytest.New(t), owners(t, map[string]string{"alice": "app"})
			d, secret := other.AddBlob("app", noise(1, 100)), private.AddBlob("app", noise(2, 100))
			n := startNode(t, other, func(c *daemon.Config) {
				c.Registries = []string{"other.test=" + other.URL() + ",auth=" + auth, "private.test=" + private.URL() + ",auth=relay"}
			})
			n.right(n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=private.test", secret), "Authorization", "Bearer "+private.IssueToken("alice", "app")), secret)
			n.settled()
			for _, host := range []string{"other.test", "private.test"} {
				for _, method := range []string{"GET", "HEAD"} {
					if a := n.do(method, fmt.Sprintf("/v2/app/blobs/%s?ns=%s", secret, host)); a.StatusCode != 401 && a.StatusCode != 404 {
						t.Errorf("%s at %s: status %d", method, host, a.StatusCode)
					}
				}
			}
			for range 2 {
				n.right(n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=other.test", d)), d)
				n.settled()
			}
			if got := other.Count(registrytest.Blob, "GET"); got != 1 {
				t.Errorf("the other registry was asked for its blob %d times", got)
			}
		})
	}
}

// Sixteen nodes pull a public image that wants no token: each asks for the
// tag once, and all of them together for the rest about as often as one would.
func TestSwarmPublicRequests(t *testing.T) {
	o := registrytest.New(t)
	layers := make([][]byte, 10)
	for i := range layers {
		layers[i] = noise(uint64(i), 200_000)
	}
	image := o.AddImage("app", "", layers...)
	index := o.AddIndex("app", "v1", image.Manifest)
	newPuller(t, o.URL(), "").pull(index, image)
	direct := requests(o)
	nodes := startCluster(t, o, 16, []*sched{startScheduler(t)}, relayed)
	o.ResetCounters()
	each(nodes, func(_ int, n *node) { newPuller(t, n.url, "").pull(index, image) })
	tags := 0
	for _, r := range o.Requests() {
		if r.Kind == registrytest.Manifest && r.Digest == "" {
			tags++
		}
	}
	t.Logf("%d requests of 16 nodes, %d of them for the tag; %d of a direct pull", requests(o), tags, direct)
	if tags > len(nodes) || requests(o)-tags > 2*direct {
		t.Errorf("too many requests: %v", o.Requests())
	}
}

// A mirror that others than its own machine reach, and that asks nobody who they
// are, says so when it starts.
func TestOpenMirrorIsWarnedOf(t *testing.T) {
	const warning = "everyone who reaches the mirror may read what it can get"
	o := registrytest.New(t)
	for _, c := range []struct {
		listen, auth string
		warned       bool
	}{
		{"127.0.0.1:0", "open", false}, {"0.0.0.0:0", "relay", false}, {"0.0.0.0:0", "open", true}, {"0.0.0.0:0", "node", true},
	} {
		n := startNode(t, o, func(cfg *daemon.Config) { cfg.Listen, cfg.Auth = c.listen, c.auth })
		eventually(t, "the node serves", func() bool { return strings.Contains(n.logs.String(), "msg=serving") })
		if got := strings.Contains(n.logs.String(), warning); got != c.warned {
			t.Errorf("%s on %s: warned %v", c.auth, c.listen, got)
		}
	}
}
