package test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// forgetful has a node ask the origin each time.
func forgetful(c *daemon.Config) { c.PermissionTTL, c.TagTTL = time.Nanosecond, time.Nanosecond }

// While the origin is away, callers keep what it let them have before, and
// nobody else gets anything.
func TestOfflineProven(t *testing.T) {
	o := owners(t, map[string]string{"alice": "app"})
	image := o.AddImage("app", "v1", noise(1, 1<<20), noise(2, 100))
	d := image.Layers[0].Digest
	n := startNode(t, o, relayed, forgetful)
	alice, bob := "Bearer "+o.IssueToken("alice", "app"), "Bearer "+o.IssueToken("bob", "other")
	late := "Bearer " + o.IssueToken("alice", "app")
	if a := n.get(manifestPath("v1")); a.StatusCode != 401 {
		t.Fatalf("status %d", a.StatusCode)
	}
	n.right(n.get(manifestPath("v1"), "Authorization", alice), image.Manifest.Digest)
	n.right(n.get(blobPath(d), "Authorization", alice), d)
	n.settled()
	o.Down()

	n.right(n.get(manifestPath("v1"), "Authorization", alice), image.Manifest.Digest)
	if a := n.do(http.MethodHead, manifestPath("v1"), "Authorization", alice); a.StatusCode != 200 || a.Header.Get("Docker-Content-Digest") != image.Manifest.Digest.String() {
		t.Errorf("HEAD of the tag: %d", a.StatusCode)
	}
	n.right(n.get(blobPath(d), "Authorization", alice), d)
	if a := n.do(http.MethodHead, blobPath(d), "Authorization", alice); a.StatusCode != 200 || a.ContentLength != 1<<20 {
		t.Errorf("HEAD of a blob: %d", a.StatusCode)
	}
	// She may have it, but it is not held.
	if a := n.get(blobPath(image.Layers[1].Digest), "Authorization", alice); a.StatusCode != 503 {
		t.Errorf("what is not held: %d", a.StatusCode)
	}
	for who, auth := range map[string]string{"bob": bob, "a token that was never shown": late} {
		for _, path := range []string{blobPath(d), manifestPath("v1"), manifestPath(image.Manifest.Digest.String())} {
			for _, method := range []string{"GET", "HEAD"} {
				// 503 sends a runtime on to the origin at once.
				if a := n.do(method, path, "Authorization", auth); a.StatusCode != 503 || len(a.body) > 1000 {
					t.Errorf("%s, %s %s: status %d, %d bytes", who, method, path, a.StatusCode, len(a.body))
				}
			}
		}
	}
	// Who shows nothing gets the challenge that the origin sent last: he may
	// have something to show that was good before.
	if a := n.get(blobPath(d)); a.StatusCode != 401 || !strings.HasPrefix(a.Header.Get("Www-Authenticate"), "Bearer realm=") {
		t.Errorf("nobody: %d %q", a.StatusCode, a.Header.Get("Www-Authenticate"))
	}
	if granted, not := n.number(`shoal_permissions_total{how="unasked"}`), n.number(`shoal_permissions_total{how="unknown"}`); granted < 4 || not < 13 {
		t.Errorf("metrics count %v and %v", granted, not)
	}
	if log := n.logs.String(); !strings.Contains(log, "served as it permitted before") || !strings.Contains(log, "tag is served as it was") {
		t.Error("it is not logged")
	}
	if err := o.Up(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the origin is asked again", func() bool {
		return n.get(blobPath(d), "Authorization", late).StatusCode == http.StatusOK
	})
}

// What is public is served to all while the origin is away.
func TestOfflinePublic(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(1, 1<<20))
	n := startNode(t, o, relayed, forgetful)
	newPuller(t, n.url, "").pull(image.Manifest, image)
	n.settled()
	o.Down()
	newPuller(t, n.url, "").pull(image.Manifest, image)
}

// An origin that refuses is not away: the permission is over at once, also
// for what was not asked again before it goes away.
func TestOfflineAfterRefusal(t *testing.T) {
	o := owners(t, map[string]string{"alice": "app"})
	image := o.AddImage("app", "v1", noise(1, 1000), noise(2, 100))
	n := startNode(t, o, relayed, forgetful)
	alice := []string{"Authorization", "Bearer " + o.IssueToken("alice", "app")}
	n.get(manifestPath("v1"), alice...)
	for _, l := range image.Layers {
		n.right(n.get(blobPath(l.Digest), alice...), l.Digest)
	}
	n.settled()
	o.RevokeUser("alice")
	if a := n.get(blobPath(image.Layers[0].Digest), alice...); a.StatusCode != 401 {
		t.Errorf("revoked: %d", a.StatusCode)
	}
	o.Down()
	for _, l := range image.Layers {
		if a := n.get(blobPath(l.Digest), alice...); a.StatusCode != 503 {
			t.Errorf("revoked, and the origin is away: %d", a.StatusCode)
		}
	}
}

func TestOfflinePolicies(t *testing.T) {
	for policy, want := range map[string]map[string]int{
		"none":   {"alice": 503, "bob": 503, "nobody": 503},
		"all":    {"alice": 200, "bob": 200, "nobody": 200},
		"proven": {"alice": 503, "bob": 503, "nobody": 503}, // for a nanosecond
	} {
		t.Run(policy, func(t *testing.T) {
			o := owners(t, map[string]string{"alice": "app"})
			image := o.AddImage("app", "v1", noise(1, 1000))
			n := startNode(t, o, relayed, forgetful, func(c *daemon.Config) { c.AuthOffline = policy }, func(c *daemon.Config) {
				if policy == "proven" {
					c.AuthOfflineFor = time.Nanosecond
				}
			})
			alice := "Bearer " + o.IssueToken("alice", "app")
			n.get(manifestPath("v1"))
			n.get(manifestPath("v1"), "Authorization", alice, "Accept", v1.MediaTypeImageManifest)
			n.right(n.get(blobPath(image.Layers[0].Digest), "Authorization", alice), image.Layers[0].Digest)
			n.settled()
			o.Down()
			for who, header := range map[string][]string{
				"alice": {"Authorization", alice}, "bob": {"Authorization", "Bearer bob"}, "nobody": nil,
			} {
				for _, path := range []string{blobPath(image.Layers[0].Digest), manifestPath("v1"), manifestPath(image.Manifest.Digest.String())} {
					if a := n.get(path, append(header, "Accept", v1.MediaTypeImageManifest)...); a.StatusCode != want[who] {
						t.Errorf("%s, %s: status %d, want %d", who, path, a.StatusCode, want[who])
					}
				}
			}
		})
	}
}

// With Basic relayed, the password comes to the mirror, is good at the origin
// alone, and stands by its hash while the origin is away.
func TestBasicRelay(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Basic: true, Users: map[string]string{"alice": "alice-password"}}))
	image := o.AddImage("app", "v1", noise(1, 1000))
	n := startNode(t, o, relayed, forgetful, func(c *daemon.Config) { c.AllowBasicRelay = true })
	newPuller(t, n.url, "alice").pull(image.Manifest, image)
	n.settled()
	if a := n.get(blobPath(image.Config.Digest), "Authorization", "Basic Ym9iOmJvYg=="); a.StatusCode != 401 {
		t.Errorf("another password: %d", a.StatusCode)
	}
	o.Down()
	newPuller(t, n.url, "alice").pull(image.Manifest, image)
	if a := n.get(blobPath(image.Config.Digest), "Authorization", "Basic Ym9iOmJvYg=="); a.StatusCode != 503 {
		t.Errorf("another password, the origin away: %d", a.StatusCode)
	}
}
