package attack

import (
	"net/http"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// One client asks 2,000 times for what does not exist. The registry is asked
// a few times, and what one caller is told is not told to another.
func TestWhatIsMissingIsAskedForAFewTimes(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Allow: func(user, repo string) bool { return user != "" }}))
	o.AddImage("app", "v1", noise(1, 1000))
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}})
	alice, bob := "Bearer "+o.IssueToken("alice", "app"), "Bearer "+o.IssueToken("bob", "app")
	get := func(authorization, path string) rig.Result {
		return n.Do(t.Context(), rig.Request{Host: upstream, Path: path, Header: http.Header{"Authorization": {authorization}}})
	}
	missing := digest.FromString("missing").String()
	for _, path := range []string{"app/manifests/missing", "app/manifests/" + missing, "app/blobs/" + missing} {
		o.ResetCounters()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 250 {
					if r := get(alice, path); r.Status != 404 {
						t.Errorf("%s: %v", path, r)
						return
					}
				}
			})
		}
		wg.Wait()
		asked := len(o.Requests())
		t.Logf("%s: 2000 requests, %d at the registry", path, asked)
		if asked > 40 {
			t.Errorf("%s: 2000 requests are %d at the registry", path, asked)
		}
	}
	// bob is told by the registry itself.
	o.ResetCounters()
	if r := get(bob, "app/manifests/missing"); r.Status != 404 || len(o.Requests()) == 0 {
		t.Errorf("bob: %v, after %d requests", r, len(o.Requests()))
	}
}
