package e2e

import (
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	alicePassword = "alice-password-canary"
	bobPassword   = "bob-password-canary"
	// aliceHtpasswd is bcrypt of the password of alice.
	aliceHtpasswd = "alice:$2a$04$6gCcGr1KgYlBI2cxX.ZM..QorwyE60rJz2.exxagekUdReKXx7zqi\n"
	otherRepo     = "apps/other"
)

// privateBed is a bed whose registry wants tokens. The daemon lets it decide
// and logs all it can; a tap stands before it.
type privateBed struct {
	bed
	realm *Realm
	front *Tap
	ca    *CA // issues the certificates of the daemons, if set
}

func newPrivateBed(t *testing.T, extra ...string) *privateBed {
	t.Helper()
	return newPrivateBedWithCA(t, nil, extra...)
}

// newPrivateBedWithCA is newPrivateBed whose daemons have certificates of the CA:
// without them they share no private image.
func newPrivateBedWithCA(t *testing.T, ca *CA, extra ...string) *privateBed {
	t.Helper()
	b := &privateBed{bed: bed{image: newImage(t, MultiPlatform)}, ca: ca}
	origin := NewNode(t, "origin")
	b.realm = origin.StartRealm(t, map[string]RealmUser{
		"alice": {Password: alicePassword, Pull: []string{repository}},
		"bob":   {Password: bobPassword, Pull: []string{otherRepo}},
	}, "apps/public")
	b.registry = origin.StartRegistryFor(t, b.realm.Access(realmIssuer))
	for _, name := range []string{repository, "apps/public"} {
		b.registry.Push(t, b.image, name, tag)
	}
	b.registry.Push(t, newImage(t, SinglePlatform), otherRepo, tag)
	b.node = NewNode(t, "node")
	b.daemon = b.startDaemon(t, b.node, extra...)
	b.front = NewTap(t, b.node.Addr, b.daemon.URL())
	return b
}

func (b *privateBed) startDaemon(t *testing.T, n *Node, extra ...string) *Daemon {
	t.Helper()
	config := DaemonConfig{
		Registries: []string{upstream + "=" + b.registry.Origin.URL()}, DefaultRegistry: upstream,
		Auth: "relay", Extra: append([]string{"--log-level", "debug"}, extra...),
	}
	if b.ca != nil {
		config.Identity = b.ca.Issue(t, n, b.ca)
	}
	return n.StartDaemon(t, config)
}

func scopeOf(repo string) string { return "repository:" + repo + ":pull" }

// A private image is pulled with what the kubelet makes of a pull secret. The
// password goes to the token service and nowhere else, the mirror sees tokens,
// and nothing of either stays. Whoever the origin does not permit gets
// nothing, and so does the first once it is not permitted any more.
func TestPrivateImage(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newPrivateBed(t, "--permission-ttl", "1s")
		c := b.containerd(t, release, "alice", ContainerdOptions{}, b.front.URL())
		as := puller{"cri", CRINamespace, func(t *testing.T, c *Containerd, ref string) error {
			return c.PullCRIAs(t.Context(), ref, "alice", alicePassword)
		}}
		b.pullsAndHolds(t, c, as, byTag())
		b.nothingWentPast(t)
		b.originSentOnce(t)
		b.passwordWentToRealmOnly(t)

		// Another node has it from this one's peers, or would.
		other := b.containerd(t, release, "bob", ContainerdOptions{}, b.front.URL())
		if err := other.PullCRIAs(t.Context(), byTag(), "bob", bobPassword); err == nil {
			t.Error("bob pulled what the origin does not let him have")
		}
		b.refuses(t, b.daemon)

		alice, ok := b.realm.Token("alice", alicePassword, scopeOf(repository))
		if !ok {
			t.Fatal("no token for alice")
		}
		large := b.image.Large()
		if status, n := b.ask(t, b.daemon, repository, large.Digest, alice); status != http.StatusOK || n != large.Size {
			t.Fatalf("alice by a token of her own: status %d, %d bytes", status, n)
		}
		// The origin takes no token any more that was given so far.
		b.registry.RestartFor(t, b.realm.Access("another-issuer"))
		revoked := time.Now()
		Eventually(t, "alice is refused", 30*time.Second, func() error {
			if status, n := b.ask(t, b.daemon, repository, large.Digest, alice); status != http.StatusUnauthorized {
				return fmt.Errorf("status %d, %d bytes", status, n)
			}
			return nil
		})
		t.Logf("refused %v after the revocation, by permissions of 1 s", time.Since(revoked).Round(time.Millisecond))
		b.nothingIsKept(t)
	})
}

// passwordWentToRealmOnly holds what came by against what may come by.
func (b *privateBed) passwordWentToRealmOnly(t *testing.T) {
	t.Helper()
	given := 0
	for _, q := range b.realm.Requests() {
		if q.User == "alice" && q.Password == alicePassword && q.Given {
			given++
		}
	}
	if given == 0 {
		t.Error("the token service never saw the password")
	}
	bearers := 0
	for name, tap := range map[string]*Tap{"the mirror": b.front, "the origin": b.registry.Origin, "the origin, directly": b.registry.Direct} {
		for _, r := range tap.Requests(t) {
			seen := fmt.Sprint(r.Path, r.Query, r.Header)
			if strings.Contains(seen, alicePassword) || strings.Contains(seen, basicOf("alice", alicePassword)) {
				t.Errorf("%s got the password: %s", name, r)
			}
			switch auth := r.Header.Get("Authorization"); {
			case strings.HasPrefix(auth, "Bearer "):
				bearers++
			case auth != "":
				t.Errorf("%s got an Authorization that is no token: %s", name, r)
			}
		}
	}
	if bearers == 0 {
		t.Error("no token came by")
	}
	t.Logf("%d tokens from the token service; the mirror was asked %d times, the origin %d",
		given, len(b.front.Requests(t)), len(b.registry.Origin.Requests(t)))
}

func basicOf(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// ask gets a blob from a daemon by a token and returns status and length.
func (b *privateBed) ask(t *testing.T, d *Daemon, repo, digest, token string) (status int, n int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/v2/%s/blobs/%s?ns=%s", d.URL(), repo, digest, upstream), nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := fetchClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err = io.Copy(io.Discard, resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, n
}

// refuses fails unless bob gets nothing of the layer that alice pulled: from
// the same repository, from one that he may read, from none.
func (b *privateBed) refuses(t *testing.T, d *Daemon) {
	t.Helper()
	large := b.image.AllBlobs[0]
	// One that is not in the repository of bob as well.
	for _, blob := range b.image.AllBlobs {
		if !slices.Contains(newImage(t, SinglePlatform).Blobs, blob) {
			large = blob
		}
	}
	for _, blob := range []Descriptor{large, b.image.Large()} {
		for _, repo := range []string{repository, otherRepo, "nothing/at-all"} {
			for who, scope := range map[string]string{"bob": scopeOf(repo), "bob, by a token for his own": scopeOf(otherRepo)} {
				if repo == otherRepo && slices.Contains(newImage(t, SinglePlatform).Blobs, blob) {
					continue // he may have it there
				}
				token, ok := b.realm.Token("bob", bobPassword, scope)
				if !ok {
					t.Fatal("no token for bob")
				}
				if status, n := b.ask(t, d, repo, blob.Digest, token); status < 401 || status > 404 || n > 1000 {
					t.Errorf("%s, %s of %s: status %d, %d bytes", who, blob.Digest, repo, status, n)
				}
			}
			if status, n := b.ask(t, d, repo, blob.Digest, ""); status < 401 || status > 404 || n > 1000 {
				t.Errorf("nobody, %s of %s: status %d, %d bytes", blob.Digest, repo, status, n)
			}
		}
	}
}

// nothingIsKept looks for passwords and tokens in what the daemon logged,
// counts, shows and stores.
func (b *privateBed) nothingIsKept(t *testing.T) {
	t.Helper()
	secrets := append(b.realm.Issued(), alicePassword, bobPassword, basicOf("alice", alicePassword), basicOf("bob", bobPassword))
	clean := func(where, text string) {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s has a secret: %.12s…", where, s)
			}
		}
	}
	clean("the log", b.daemon.proc.Log(t))
	for _, path := range []string{"/metrics", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/cmdline", "/healthz"} {
		resp, err := probeClient.Get("http://" + b.daemon.Admin + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(body) == 0 {
			t.Fatalf("%s: %d bytes, %v", path, len(body), err)
		}
		clean(path, string(body))
	}
	files := 0
	err := filepath.WalkDir(b.daemon.DataDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files++
		clean(path, path+string(content))
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("looking through %d files: %v", files, err)
	}
}

// Neither does a peer that has nothing of it give bob what alice pulled
// elsewhere.
func TestPrivateImageAtAPeer(t *testing.T) {
	ca, head := NewCA(t, "the cluster's CA"), NewNode(t, "scheduler")
	scheduler := head.StartScheduler(t, SchedulerConfig{Identity: ca.Issue(t, head, ca)})
	b := newPrivateBedWithCA(t, ca, "--scheduler", scheduler.Addr)
	second := b.startDaemon(t, NewNode(t, "second"), "--scheduler", scheduler.Addr)
	for _, d := range []*Daemon{b.daemon, second} {
		Eventually(t, "the daemon has a scheduler", 30*time.Second, func() error {
			if v, err := d.Metric("shoal_scheduler_connected"); err != nil || v != 1 {
				return fmt.Errorf("%v, %v", v, err)
			}
			return nil
		})
	}
	alice, ok := b.realm.Token("alice", alicePassword, scopeOf(repository))
	if !ok {
		t.Fatal("no token for alice")
	}
	for _, blob := range b.image.AllBlobs {
		if status, n := b.ask(t, b.daemon, repository, blob.Digest, alice); status != http.StatusOK || n != blob.Size {
			t.Fatalf("alice, %s: status %d, %d bytes", blob.Digest, status, n)
		}
	}
	b.refuses(t, b.daemon)
	b.refuses(t, second)
	if n, err := second.Metric("shoal_peer_received_bytes_total"); err != nil || n != 0 {
		t.Errorf("the peer fetched %v bytes for bob: %v", n, err)
	}
	large := b.image.Large()
	b.registry.Origin.Reset(t)
	if status, n := b.ask(t, second, repository, large.Digest, alice); status != http.StatusOK || n != large.Size {
		t.Errorf("alice at the peer: status %d, %d bytes", status, n)
	}
	if sent := b.registry.Origin.Bytes(t); sent > 0 {
		t.Errorf("the origin sent %d bytes of what the first daemon has", sent)
	}
}

// A public image of a registry that wants a token for everything, as Docker
// Hub does: by the mirror it costs the origin no more requests than without.
func TestPublicImageByTokens(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newPrivateBed(t)
		ref := upstream + "/apps/public:" + tag
		direct := b.node.StartContainerd(t, release, "direct", ContainerdOptions{})
		direct.Mirror(t, upstream, "", b.registry.Direct.URL())
		if err := direct.PullCRI(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		want := len(b.registry.Direct.Requests(t))
		b.registry.Direct.Reset(t)
		tokens := len(b.realm.Requests())
		for i, name := range []string{"cold", "again"} {
			c := b.containerd(t, release, name, ContainerdOptions{}, b.daemon.URL())
			b.registry.Origin.Reset(t)
			before := len(b.realm.Requests())
			b.pullsAndHolds(t, c, withCRI, ref)
			got := b.registry.Origin.Requests(t)
			t.Logf("%s: %d requests at the origin and %d for tokens; directly %d and %d", name, len(got), len(b.realm.Requests())-before, want, tokens)
			if len(got) > want || i == 1 && len(got) > want/2 {
				t.Errorf("%s: more requests than a direct pull, or as many: %v", name, got)
			}
		}
		b.nothingWentPast(t)
	})
}

// A registry that wants the password itself is left to the runtime, unless the
// operator wants it to come by the mirror.
func TestBasicRegistry(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		origin := NewNode(t, "origin")
		file := origin.Write(t, aliceHtpasswd, "htpasswd")
		b := &privateBed{bed: bed{image: newImage(t, SinglePlatform), node: NewNode(t, "node")}}
		b.registry = origin.StartRegistryFor(t, &Access{
			Config: "auth:\n  htpasswd:\n    realm: e2e\n    path: " + file + "\n",
			Push:   func(string) string { return "Basic " + basicOf("alice", alicePassword) },
		})
		b.registry.Push(t, b.image, repository, tag)
		b.daemon = b.startDaemon(t, b.node)
		b.front = NewTap(t, b.node.Addr, b.daemon.URL())
		past := b.containerd(t, release, "past", ContainerdOptions{}, b.front.URL())
		if err := past.PullCRIAs(t.Context(), byTag(), "alice", alicePassword); err != nil {
			t.Fatal(err)
		}
		asked := b.front.Requests(t)
		for _, r := range asked {
			if r.Header.Get("Authorization") != "" {
				t.Errorf("the password came to the mirror: %s", r)
			}
		}
		if len(asked) == 0 || len(b.registry.Direct.Requests(t)) == 0 {
			t.Error("the runtime did not ask the mirror and then the origin")
		}

		b.daemon = b.startDaemon(t, NewNode(t, "relaying"), "--allow-basic-relay")
		b.registry.Direct.Reset(t)
		through := b.containerd(t, release, "through", ContainerdOptions{}, b.daemon.URL())
		if err := through.PullCRIAs(t.Context(), byTag(), "alice", alicePassword); err != nil {
			t.Fatal(err)
		}
		b.nothingWentPast(t)
		if log := b.daemon.proc.Log(t); strings.Contains(log, alicePassword) || strings.Contains(log, basicOf("alice", alicePassword)) {
			t.Error("the password is in the log")
		}
	})
}

// CRI-O, podman and skopeo learn from the ping of /v2/ whether credentials are
// wanted, and a mirror of many registries has no answer to that. They get
// private images from the registry itself, and the mirror sees no password.
func TestPrivateImageBySkopeo(t *testing.T) {
	skopeo := NeedProgram(t, "skopeo", "skopeo")
	b := newPrivateBed(t)
	conf := b.node.Write(t, fmt.Sprintf(mirrored, upstream, b.registry.Direct.Addr, b.front.Addr), "registries.conf")
	auth := b.node.Write(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, b.registry.Direct.Addr, basicOf("alice", alicePassword)), "auth.json")
	_, err := b.node.Run(skopeo, "--insecure-policy", "--registries-conf", conf, "copy", "--all", "--src-tls-verify=false",
		"--authfile", auth, "docker://"+byTag(), "dir:"+b.node.Path("dir"))
	if err != nil {
		t.Fatal(err)
	}
	b.passwordWentToRealmOnly(t)
	if len(b.registry.Direct.Requests(t)) == 0 {
		t.Error("it came by the mirror: then say so in the documentation")
	}
}
