package mirror

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

var (
	app   = registry.Repository{Host: "r.test", Name: "app"}
	alice = Caller{Authorization: "Bearer a", ID: "a"}
	bob   = Caller{Authorization: "Bearer b", ID: "b"}
	layer = digest.FromString("layer")
	image = digest.FromString("image")
)

func newTestPermits(t *testing.T, ttl, offline time.Duration) *permits {
	t.Helper()
	p, err := newPermits(ttl, offline)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPermitLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPermits(t, time.Minute, time.Hour)
		expect := func(what string, c Caller, repo registry.Repository, d digest.Digest, has, had bool) {
			t.Helper()
			if p.has(c, repo, d) != has || p.had(c, repo, d) != had {
				t.Errorf("%s: fresh %v, standing %v", what, p.has(c, repo, d), p.had(c, repo, d))
			}
		}
		expect("before", alice, app, layer, false, false)
		p.grant(alice, app, layer)
		expect("granted", alice, app, layer, true, true)
		expect("another caller", bob, app, layer, false, false)
		expect("everyone", public, app, layer, false, false)
		expect("another repository", alice, registry.Repository{Host: "r.test", Name: "other"}, layer, false, false)
		expect("the same name elsewhere", alice, registry.Repository{Host: "evil.test", Name: "app"}, layer, false, false)
		expect("another blob", alice, app, image, false, false)
		time.Sleep(time.Minute - 1)
		expect("within its life", alice, app, layer, true, true)
		time.Sleep(time.Nanosecond)
		expect("after it", alice, app, layer, false, true)
		time.Sleep(59 * time.Minute)
		expect("after an hour", alice, app, layer, false, false)
		p.grant(alice, app, layer)
		p.grant(alice, app, image)
		p.refused(alice, app, image, 404)
		expect("not there any more", alice, app, image, false, false)
		expect("what is still there", alice, app, layer, true, true)
		p.refused(alice, app, image, 401)
		expect("after a refusal of the token", alice, app, layer, false, false)
		time.Sleep(time.Nanosecond)
		p.grant(alice, app, layer)
		expect("granted again", alice, app, layer, true, true)

		short := alice
		short.expires = time.Now().Add(10 * time.Second)
		p.grant(short, app, layer)
		time.Sleep(10*time.Second - 1)
		expect("before the token expires", alice, app, layer, true, true)
		time.Sleep(time.Nanosecond)
		expect("after", alice, app, layer, false, true)
		short.expires = time.Now().Add(-time.Second)
		p.grant(short, app, layer)
		expect("by a token that has expired by our clock", alice, app, layer, false, true)
	})
}

// What a manifest names is proven by what proved the manifest, and not longer.
func TestPermitByManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPermits(t, time.Minute, time.Hour)
		p.extend(alice, app, image, []digest.Digest{layer})
		if p.has(alice, app, layer) {
			t.Error("a manifest that is not proven proves something")
		}
		p.grant(alice, app, image)
		time.Sleep(50 * time.Second)
		p.extend(alice, app, image, []digest.Digest{layer})
		if !p.has(alice, app, layer) || p.has(bob, app, layer) {
			t.Error("what the manifest names is not proven, or to another")
		}
		time.Sleep(10 * time.Second)
		if p.has(alice, app, layer) {
			t.Error("what is named outlives the proof of the manifest")
		}
		p.grant(alice, app, layer)
		p.extend(alice, app, image, []digest.Digest{layer})
		if !p.has(alice, app, layer) {
			t.Error("an old proof replaced a newer one")
		}
	})
}

func TestProofIsAskedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPermits(t, time.Minute, time.Hour)
		asked := 0
		for range 20 {
			go func() {
				size, err := p.prove(t.Context(), alice, app, layer, func(context.Context) (int64, error) {
					asked++
					time.Sleep(time.Second)
					return 7, nil
				})
				if size != 7 || err != nil {
					t.Errorf("%d, %v", size, err)
				}
			}()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if asked != 1 || !p.has(alice, app, layer) {
			t.Errorf("asked %d times", asked)
		}
		_, err := p.prove(t.Context(), bob, app, layer, func(context.Context) (int64, error) { return 0, errors.New("no") })
		if err == nil || p.had(bob, app, layer) {
			t.Error("a refusal is a proof")
		}
	})
}

func TestExpiry(t *testing.T) {
	jwt := func(payload string) string {
		return "Bearer h." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s"
	}
	for in, want := range map[string]time.Time{
		"":                           {},
		"Bearer opaque":              {},
		"Bearer a.b.c":               {},
		jwt(`{}`):                    {},
		jwt(`{"exp":"soon"}`):        {},
		jwt(`{"exp":-5}`):            {},
		jwt(`{"exp":1e300}`):         {},
		jwt(`{"exp":1700000000}`):    time.Unix(1700000000, 0),
		jwt(`{"exp":1700000000.25}`): time.Unix(1700000000, 0),
	} {
		if got := expiry(in); !got.Equal(want) {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestCallersAreToldApart(t *testing.T) {
	a, b := callerID("salt", "Bearer a"), callerID("salt", "Bearer b")
	if a == b || a != callerID("salt", "Bearer a") || a == callerID("other", "Bearer a") || len(a) != 32 {
		t.Errorf("%s %s", a, b)
	}
}

// However much is granted, what is kept is bounded.
func TestPermitsAreBounded(t *testing.T) {
	p := newTestPermits(t, time.Minute, time.Hour)
	for i := range maxPermits + 10 {
		p.grant(Caller{ID: fmt.Sprint(i)}, app, layer)
	}
	if n := p.cache.Len(); n != maxPermits {
		t.Errorf("%d entries", n)
	}
}
