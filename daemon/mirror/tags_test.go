package mirror

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

// tagOrigin answers for one tag, as its fields say.
type tagOrigin struct {
	heads, gets atomic.Int64
	delay       time.Duration
	err         error
	down        bool // whether err means that it cannot be asked
	mute        bool // HEAD says nothing of the digest
	body        string
}

func (o *tagOrigin) Manifest(_ context.Context, _ Caller, _ registry.Repository, _ string, _ []string) (Manifest, error) {
	o.gets.Add(1)
	time.Sleep(o.delay)
	return Manifest{Descriptor: o.descriptor(), Body: []byte(o.body)}, o.err
}

func (o *tagOrigin) HeadManifest(_ context.Context, _ Caller, _ registry.Repository, _ string, _ []string) (Descriptor, error) {
	o.heads.Add(1)
	time.Sleep(o.delay)
	if o.mute {
		return Descriptor{Size: -1}, o.err
	}
	return o.descriptor(), o.err
}

func (o *tagOrigin) descriptor() Descriptor {
	return Descriptor{MediaType: "m", Digest: digest.FromString(o.body), Size: int64(len(o.body))}
}

func (o *tagOrigin) HeadBlob(context.Context, Caller, registry.Repository, digest.Digest) (int64, error) {
	panic("tags ask for no blob")
}

func (o *tagOrigin) Pass(context.Context, Caller, registry.Repository, string, url.Values, http.Header) (*http.Response, error) {
	panic("tags pass nothing on")
}

func (o *tagOrigin) Unavailable(error) bool { return o.down }

func newMirror(t *testing.T, o Origin, auth Auth) *Mirror {
	t.Helper()
	m, err := New(Config{Upstreams: &registry.Upstreams{}, Origin: o, Auth: func(string) Auth { return auth }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// asking is a call for a tag by a caller.
func (m *Mirror) asking(method, tag string, c Caller, accept ...string) *call {
	r := httptest.NewRequest(method, "/", nil)
	r.Header["Accept"] = accept
	return &call{Mirror: m, r: r, path: registry.Path{Tag: tag}, caller: c, proven: c == public}
}

func TestTagLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &tagOrigin{body: "one"}
		m := newMirror(t, o, Open)
		method, tag, caller := "HEAD", "v1", public
		expect := func(what, body string, heads, gets int64) {
			t.Helper()
			m, err := m.asking(method, tag, caller).resolve(t.Context())
			if err != nil || m.Digest != digest.FromString(body) || o.heads.Load() != heads || o.gets.Load() != gets {
				t.Fatalf("%s: %v, %v, %d HEADs, %d GETs", what, m.Digest, err, o.heads.Load(), o.gets.Load())
			}
		}
		expect("first", "one", 1, 0)
		o.body = "two"
		time.Sleep(5*time.Second - 1)
		expect("within its life", "one", 1, 0)
		time.Sleep(time.Nanosecond)
		expect("after it", "two", 2, 0)
		method = "GET"
		time.Sleep(5 * time.Second)
		expect("a GET of what is known", "two", 3, 0)
		o.err, o.down = errors.New("no route"), true
		time.Sleep(time.Hour)
		expect("the origin is down", "two", 4, 0)
		o.down = false
		if _, err := m.asking(method, tag, caller).resolve(t.Context()); err == nil {
			t.Error("a refusal was answered with what is known")
		}
		o.err = nil
		tag = "v2"
		expect("a GET of what is not known", "two", 5, 1)
		caller = Caller{Anonymous: true, ID: "anonymous"}
		expect("a caller that must show its permission", "two", 5, 2)
		expect("its like, a moment later", "two", 5, 2)
		caller = Caller{Authorization: "x", ID: "x"}
		expect("another such caller", "two", 5, 3)
	})
}

// An origin that says no digest on HEAD is asked for the manifest.
func TestMuteOrigin(t *testing.T) {
	o := &tagOrigin{body: "one", mute: true}
	m, err := newMirror(t, o, Open).asking("HEAD", "v1", public).resolve(t.Context())
	if err != nil || m.Digest != digest.FromString("one") || m.Body == nil {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestTagIsAskedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &tagOrigin{body: "one", delay: time.Second}
		m := newMirror(t, o, Open)
		// The first one leaves; the others still get their answer.
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			if _, err := m.asking("HEAD", "v1", public).resolve(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that left got %v", err)
			}
		}()
		synctest.Wait()
		for _, accept := range [][]string{{"a", "b"}, {"b,  a"}, {"a,b,a"}} {
			go func() {
				if m, err := m.asking("HEAD", "v1", public, accept...).resolve(t.Context()); err != nil || m.Digest == "" {
					t.Errorf("%+v, %v", m, err)
				}
			}()
		}
		synctest.Wait()
		leave()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := o.heads.Load(); got != 2 { // no Accept, and one for the same Accept thrice
			t.Errorf("origin was asked %d times", got)
		}
	})
}
