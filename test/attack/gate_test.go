package attack

import (
	"context"
	"net/http"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// A registry answers 429, Retry-After 300, to one caller of a node. The other
// callers of that node are served as the registry serves them, and what they
// may not read does not become readable.
func TestLimitOfOneCallerStopsNoOther(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Allow: func(user, _ string) bool { return user != "" }}))
	img := o.AddImage("app", "v1", noise(1, 1<<20))
	o.AddImage("other", "v1", noise(2, 1000))
	layer := img.Layers[0].Digest
	alice, bob := "Bearer "+o.IssueToken("alice", "app", "other"), "Bearer "+o.IssueToken("bob", "app", "other")
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}})
	get := func(authorization, path string) rig.Result {
		ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
		defer cancel()
		q := rig.Request{Host: upstream, Path: path, Header: http.Header{}}
		if authorization != "" {
			q.Header.Set("Authorization", authorization)
		}
		return n.Do(ctx, q)
	}
	if r := get(alice, "app/manifests/v1"); !r.Right {
		t.Fatalf("before: %v", r)
	}
	if r := get(alice, "app/blobs/"+layer.String()); !r.Right {
		t.Fatalf("before: %v", r)
	}
	o.Inject(registrytest.Order{Authorization: bob}, registrytest.Status(429, "Retry-After", "300"))
	for range 3 {
		if r := get(bob, "other/manifests/v1"); r.Status != 503 {
			t.Errorf("bob, whom the registry limits: %v", r)
		}
	}
	fresh := "Bearer " + o.IssueToken("alice", "app", "other")
	for path, token := range map[string]string{
		"other/manifests/v1": alice, "other/tags/list": fresh, "app/blobs/" + layer.String(): fresh,
	} {
		if r := get(token, path); r.Status != 200 {
			t.Errorf("alice asks for %s: %v %s", path, r, r.Body)
		}
	}
	// No outage has begun: the registry decides on everybody else.
	for _, path := range []string{"app/manifests/v1", "app/blobs/" + layer.String()} {
		if r := get("", path); r.Status != 401 {
			t.Errorf("nobody asks for %s: %v", path, r)
		}
		if r := get("Bearer made-up", path); r.Status != 401 {
			t.Errorf("a forger asks for %s: %v", path, r)
		}
	}
	if got := len(o.Requests()); got > 30 {
		t.Errorf("%d requests reached the registry", got)
	}
}
