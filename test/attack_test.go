package test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// trap is an address that nothing may connect to.
type trap struct {
	net.Listener
	hits atomic.Int64
}

func setTrap(t *testing.T) *trap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := &trap{Listener: l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tr.hits.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		if n := tr.hits.Load(); n > 0 {
			t.Errorf("%d connections to a forbidden address", n)
		}
	})
	return tr
}

func TestForbiddenUpstreams(t *testing.T) {
	tr := setTrap(t)
	port := tr.Addr().(*net.TCPAddr).Port
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(70, 100))
	n := startNode(t, o)
	for _, ns := range []string{
		"169.254.169.254", "127.0.0.1", "localhost", "metadata.google.internal",
		fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("localhost:%d", port), fmt.Sprintf("[::1]:%d", port),
		fmt.Sprintf("127.1:%d", port), fmt.Sprintf("2130706433:%d", port), fmt.Sprintf("0x7f000001:%d", port),
		fmt.Sprintf("0177.0.0.1:%d", port), fmt.Sprintf("[::ffff:127.0.0.1]:%d", port),
		fmt.Sprintf("http://127.0.0.1:%d", port), fmt.Sprintf("x@127.0.0.1:%d", port),
		upstream + "%00", upstream + "/x", "https%3A%2F%2F" + upstream, upstream + "&ns=" + upstream, "",
	} {
		a := n.get(fmt.Sprintf("/v2/app/blobs/%s?ns=%s", d, ns))
		if a.StatusCode < 400 || a.StatusCode > 499 {
			t.Errorf("ns=%s: status %d, %v", ns, a.StatusCode, a.err)
		}
	}
	if a := n.get(fmt.Sprintf("/v2/127.0.0.1:%d/app/blobs/%s", port, d)); a.StatusCode != 403 {
		t.Errorf("forbidden host in the path: %d", a.StatusCode)
	}
	if got := o.Requests(); len(got) != 0 {
		t.Errorf("origin was asked %v", got)
	}
}

// An allowed origin that leads elsewhere is not followed there.
func TestForbiddenRedirects(t *testing.T) {
	tr := setTrap(t)
	for _, location := range []string{
		"http://" + tr.Addr().String() + "/x", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd",
		"gopher://" + tr.Addr().String(), "http://user:pw@" + tr.Addr().String(), "//" + tr.Addr().String() + "/x", "http://0/", "http://[::]:80/",
	} {
		o := registrytest.New(t)
		image := o.AddImage("app", "v1", noise(71, 100))
		o.Inject(registrytest.Order{}, registrytest.Redirect(location))
		n := startNode(t, o)
		for _, path := range []string{blobPath(image.Layers[0].Digest), manifestPath("v1"), "/v2/app/tags/list"} {
			if a := n.get(path); a.StatusCode != 502 && a.StatusCode != 503 {
				t.Errorf("%s redirected to %s: status %d %s", path, location, a.StatusCode, a.body)
			}
		}
		n.stop()
	}
}

func TestHostilePaths(t *testing.T) {
	n := startNode(t, registrytest.New(t))
	inside, err := os.ReadDir(filepath.Dir(n.cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, target := range []string{
		"/v2/../../etc/passwd", "/v2/app/blobs/../../../etc/passwd", "/v2/%2e%2e/%2e%2e/etc/blobs/" + digest,
		"/v2/app%2f..%2f..%2fx/blobs/" + digest, "/v2/app/blobs/..%2f..%2f..%2fetc%2fpasswd", "/v2/app/blobs/sha256:..%2f..%2fx",
		"/v2/app%00/blobs/" + digest, "/v2/app/manifests/x%00y", "/v2/" + strings.Repeat("a", 4096) + "/blobs/" + digest,
		"/v2/app/manifests/" + strings.Repeat("t", 4096), "/v2/app/blobs/" + strings.ToUpper(digest), "/v2/app/blobs/sha256:abc",
		"/v2/app/blobs/md5:" + strings.Repeat("a", 32), "//v2/app/blobs/" + digest, "/v2/app/blobs/" + digest + "/", "*", "/v2/app/blobs/" + digest + "?ns=%zz",
	} {
		if code := raw(t, n, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n"); code < 400 || code > 499 {
			t.Errorf("%.80s: status %d", target, code)
		}
	}
	after, err := os.ReadDir(filepath.Dir(n.cfg.DataDir))
	if err != nil || len(after) != len(inside) {
		t.Errorf("something was written beside the data directory: %v, %v", after, err)
	}
}

func TestNotAForwardProxy(t *testing.T) {
	tr := setTrap(t)
	n := startNode(t, registrytest.New(t))
	for _, request := range []string{
		"GET http://" + tr.Addr().String() + "/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT " + tr.Addr().String() + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET https://" + tr.Addr().String() + "/v2/app/tags/list HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		if code := raw(t, n, request); code < 400 || code > 499 {
			t.Errorf("%.60q: status %d", request, code)
		}
	}
}

// raw sends bytes and returns the status that comes back.
func raw(t *testing.T, n *node, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", hostOf(t, n.url))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// privately is an origin where each user may read one repository.
func privately(t *testing.T) *registrytest.Origin {
	return registrytest.New(t, registrytest.WithAuth(registrytest.Auth{
		Users: map[string]string{"alice": "alice-secret", "bob": "bob-secret"},
		Allow: func(user, repo string) bool {
			return user == "alice" && repo == "app" || user == "bob" && repo == "other"
		},
	}))
}

// Whoever brings a token is judged by the origin, whatever the node holds,
// in every mode.
func TestCallersWithTokens(t *testing.T) {
	for _, auth := range []string{"relay", "open"} {
		t.Run(auth, func(t *testing.T) {
			o := privately(t)
			secret := noise(72, 1<<20)
			image := o.AddImage("app", "v1", secret)
			d := image.Layers[0].Digest
			n := startNode(t, o, func(c *daemon.Config) { c.Auth, c.PermissionTTL = auth, 100*time.Millisecond })
			alice := "Bearer " + o.IssueToken("alice", "app")
			bob := "Bearer " + o.IssueToken("bob", "other")

			// Without a token the origin's challenge comes, verbatim.
			if auth == "relay" {
				direct, err := http.Get(o.URL() + "/v2/app/manifests/v1")
				if err != nil {
					t.Fatal(err)
				}
				direct.Body.Close()
				http.DefaultClient.CloseIdleConnections()
				a := n.get(manifestPath("v1"))
				if got, want := a.Header.Get("Www-Authenticate"), direct.Header.Get("Www-Authenticate"); a.StatusCode != 401 || got != want || want == "" {
					t.Errorf("status %d, challenge %q, want %q", a.StatusCode, got, want)
				}
			}
			for range 2 {
				n.right(n.get(manifestPath("v1"), "Authorization", alice), image.Manifest.Digest)
				n.right(n.get(manifestPath(image.Manifest.Digest.String()), "Authorization", alice), image.Manifest.Digest)
				n.right(n.get(blobPath(d), "Authorization", alice), d)
				n.settled()
			}
			if o.Sent(d) != int64(len(secret)) {
				t.Errorf("origin sent %d bytes", o.Sent(d))
			}
			refused := func(who string, header ...string) {
				t.Helper()
				for _, path := range []string{
					blobPath(d), manifestPath("v1"), manifestPath(image.Manifest.Digest.String()),
					fmt.Sprintf("/v2/other/blobs/%s?ns=%s", d, upstream),
				} {
					for _, method := range []string{"GET", "HEAD"} {
						a := n.do(method, path, header...)
						if a.StatusCode < 401 || a.StatusCode > 404 || len(a.body) > 1000 {
							t.Errorf("%s, %s %s: status %d, %d bytes", who, method, path, a.StatusCode, len(a.body))
						}
					}
					if a := n.do("GET", path, append(header, "Range", "bytes=0-10")...); a.StatusCode < 401 || a.StatusCode > 404 {
						t.Errorf("%s, range of %s: status %d", who, path, a.StatusCode)
					}
				}
			}
			refused("bob", "Authorization", bob)
			refused("a forger", "Authorization", "Bearer made-up")
			if auth == "relay" {
				refused("nobody")
			}
			o.RevokeUser("alice")
			// What the origin said before is good for a short time.
			eventually(t, "the revoked token is refused", func() bool {
				return n.get(blobPath(d), "Authorization", alice).StatusCode == 401
			})
			refused("alice, revoked", "Authorization", alice)
			if a := n.do("GET", blobPath(d), "Authorization", alice, "Authorization", bob); a.StatusCode != 400 {
				t.Errorf("two Authorization headers: %d", a.StatusCode)
			}
			for _, secret := range []string{strings.TrimPrefix(alice, "Bearer "), strings.TrimPrefix(bob, "Bearer "), "made-up"} {
				if strings.Contains(n.logs.String(), secret) {
					t.Error("a token is in the log")
				}
			}
		})
	}
}

// With --auth node the daemon's credentials speak for all, and go nowhere but
// to the origin's own realm.
func TestNodeCredentials(t *testing.T) {
	o := privately(t)
	image := o.AddImage("app", "v1", noise(73, 1000))
	config := filepath.Join(t.TempDir(), "config.json")
	content := fmt.Sprintf(`{"auths":{%q:{"username":"alice","password":"alice-secret"}}}`, upstream)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, o, func(c *daemon.Config) { c.Auth, c.DockerConfig = "node", config })
	n.right(n.get(manifestPath("v1")), image.Manifest.Digest)
	n.blob(image.Layers[0].Digest)
	if a := n.get("/v2/other/tags/list"); a.StatusCode < 400 {
		t.Errorf("a repository that the node may not read: %d", a.StatusCode)
	}
	if strings.Contains(n.logs.String(), "alice-secret") {
		t.Error("the password is in the log")
	}
}

// A challenge that would make a runtime send a password is not handed on.
func TestBasicChallengeIsKeptBack(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Basic: true, Users: map[string]string{"a": "b"}}))
	o.AddImage("app", "v1", noise(74, 10))
	n := startNode(t, o, func(c *daemon.Config) { c.Auth = "relay" })
	a := n.get(manifestPath("v1"))
	if a.StatusCode != 401 || a.Header.Get("Www-Authenticate") != "" {
		t.Errorf("status %d, challenge %q", a.StatusCode, a.Header.Get("Www-Authenticate"))
	}
}
