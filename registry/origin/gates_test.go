package origin

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	rt "github.com/shoalproject/shoal/registry/registrytest"
)

func callerTarget(token string) Target {
	return Target{Repository: target.Repository, Authorization: "Bearer " + token}
}

// The registry limits one caller. The others are served, at once and later.
func TestLimitOfOneCallerIsHisAlone(t *testing.T) {
	o := rt.New(t)
	img := o.AddImage(repo, "latest")
	o.Inject(rt.Order{Authorization: "Bearer bob"}, rt.Status(429, "Retry-After", "300"))
	c := newClient(t, o)
	ask := func(who Target) error { _, err := c.HeadManifest(t.Context(), who, "latest", nil); return err }
	for range 3 {
		err := ask(callerTarget("bob"))
		if e := wantStatus(t, err, 503); e.RetryAfter < 290*time.Second || IsLimitedForAll(err) {
			t.Errorf("bob: %v, for all: %v", err, IsLimitedForAll(err))
		}
	}
	if n := len(o.Requests()); n != 1 {
		t.Errorf("%d requests of bob's reached the registry, want 1", n)
	}
	for _, who := range []Target{callerTarget("alice"), {Repository: target.Repository, Anonymous: true}, target} {
		if err := ask(who); err != nil {
			t.Errorf("%+v: %v", who, err)
		}
	}
	if _, err := c.HeadBlob(t.Context(), callerTarget("alice"), img.Config.Digest); err != nil {
		t.Error(err)
	}
}

// Once two callers are limited the address may be: only those whom the registry
// has answered lately go on, and each of them stops at its own 429.
func TestAddressIsLimitedAfterTwoCallers(t *testing.T) {
	o := rt.New(t)
	o.AddImage(repo, "latest")
	c := newClient(t, o)
	ask := func(who Target) error { _, err := c.HeadManifest(t.Context(), who, "latest", nil); return err }
	if err := ask(callerTarget("alice")); err != nil {
		t.Fatal(err)
	}
	o.Inject(rt.Order{}, rt.Status(429, "Retry-After", "300"))
	if err := ask(callerTarget("bob")); IsLimitedForAll(err) {
		t.Error("one is all")
	}
	if err := ask(callerTarget("carol")); !IsLimitedForAll(err) {
		t.Error("two are not all")
	}
	o.ResetCounters()
	for range 5 {
		if err := ask(callerTarget("dave")); !IsLimitedForAll(err) {
			t.Errorf("dave: %v", err)
		}
	}
	if n := len(o.Requests()); n != 0 {
		t.Errorf("%d requests from a limited address", n)
	}
	for range 5 {
		if err := ask(callerTarget("alice")); !IsUnavailable(err) {
			t.Errorf("alice: %v", err)
		}
	}
	if n := len(o.Requests()); n != 1 {
		t.Errorf("%d requests of a caller who was served before, want 1", n)
	}
}

// Two callers are limited and no others. The next one is tried after a while,
// and opens the gate.
func TestAddressIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGates()
		for _, id := range []credentialID{{1}, {2}} {
			p, err := g.enter(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			p.shut(http.StatusTooManyRequests, 5*time.Minute)
		}
		var shut *shutError
		if _, err := g.enter(t.Context(), credentialID{3}); !errors.As(err, &shut) || !shut.all {
			t.Fatalf("after two: %v", err)
		}
		time.Sleep(addressRecheck)
		p, err := g.enter(t.Context(), credentialID{3})
		if err != nil {
			t.Fatal(err)
		}
		p.opened()
		for id := range byte(100) {
			p, err := g.enter(t.Context(), credentialID{10 + id})
			if err != nil {
				t.Fatal(err)
			}
			p.opened()
		}
		if _, err := g.enter(t.Context(), credentialID{1}); !errors.As(err, &shut) || shut.all {
			t.Errorf("the first is still limited: %v", err)
		}
	})
}

// A 503 with Retry-After concerns everybody, those served lately too.
func TestServerIsLimited(t *testing.T) {
	o := rt.New(t)
	o.AddImage(repo, "latest")
	c := newClient(t, o)
	ask := func(who Target) error { _, err := c.HeadManifest(t.Context(), who, "latest", nil); return err }
	if err := ask(callerTarget("alice")); err != nil {
		t.Fatal(err)
	}
	o.Inject(rt.Order{Times: 1}, rt.Status(503, "Retry-After", "60"))
	for _, who := range []string{"bob", "alice", "bob"} {
		if err := ask(callerTarget(who)); !IsLimitedForAll(err) {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// Blobs that do not come leave connections for what is small.
func TestBlobsLeaveConnectionsForManifests(t *testing.T) {
	o := rt.New(t)
	o.AddImage(repo, "latest")
	d := o.AddBlob(repo, make([]byte, 1<<20))
	release := make(chan struct{})
	defer close(release)
	o.Inject(rt.Order{Kind: rt.Blob}, rt.HangAfter(1, release))
	c := newClient(t, o, func(c *Config) { c.MaxConnsPerHost, c.HeaderTimeout = 8, 200*time.Millisecond })
	for range 7 {
		s, err := c.Blob(t.Context(), target, d, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	if _, err := c.HeadManifest(t.Context(), target, "latest", nil); err != nil {
		t.Errorf("a manifest waits for blobs: %v", err)
	}
	_, err := c.Blob(t.Context(), target, d, 0, -1)
	if wantStatus(t, err, 503); !errors.Is(err, errBulk) {
		t.Error(err)
	}
}
