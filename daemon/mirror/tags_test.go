package mirror

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
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

func tagCache(t *testing.T, o *tagOrigin) *tags {
	t.Helper()
	c, err := newTags(o, 5*time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTagLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &tagOrigin{body: "one"}
		c := tagCache(t, o)
		req := tagRequest{tag: "v1", proven: true}
		expect := func(what, body string, heads, gets int64) {
			t.Helper()
			m, err := c.resolve(t.Context(), req)
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
		req.body = true
		time.Sleep(5 * time.Second)
		expect("a GET of what is known", "two", 3, 0)
		o.err, o.down = errors.New("no route"), true
		time.Sleep(time.Hour)
		expect("the origin is down", "two", 4, 0)
		o.down = false
		if _, err := c.resolve(t.Context(), req); err == nil {
			t.Error("a refusal was answered with what is known")
		}
		o.err = nil
		req.tag = "v2"
		expect("a GET of what is not known", "two", 5, 1)
		req.proven = false
		expect("a caller that must show its permission", "two", 5, 2)
		expect("and once more", "two", 5, 3)
	})
}

// An origin that says no digest on HEAD is asked for the manifest.
func TestMuteOrigin(t *testing.T) {
	o := &tagOrigin{body: "one", mute: true}
	m, err := tagCache(t, o).resolve(t.Context(), tagRequest{tag: "v1", proven: true})
	if err != nil || m.Digest != digest.FromString("one") || m.Body == nil {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestTagIsAskedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &tagOrigin{body: "one", delay: time.Second}
		c := tagCache(t, o)
		// The first one leaves; the others still get their answer.
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			if _, err := c.resolve(ctx, tagRequest{tag: "v1", proven: true}); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that left got %v", err)
			}
		}()
		synctest.Wait()
		for _, accept := range [][]string{{"a", "b"}, {"b,  a"}, {"a,b,a"}} {
			go func() {
				if m, err := c.resolve(t.Context(), tagRequest{tag: "v1", proven: true, accept: accept}); err != nil || m.Digest == "" {
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

func TestCallersAreToldApart(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []Caller{{}, {Anonymous: true}, {Authorization: "Bearer a"}, {Authorization: "Bearer b"}} {
		k := callerKey(c)
		if seen[k] {
			t.Errorf("%+v has the key of another", c)
		}
		seen[k] = true
	}
	if k := callerKey(Caller{Authorization: "Bearer secret"}); len(k) != 32 {
		t.Errorf("key of %d bytes", len(k))
	}
}
