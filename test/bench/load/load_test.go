package load

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPull(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("a/b", "v1", []byte("one"), []byte(strings.Repeat("two", 1<<20)))
	got, err := Pull(t.Context(), o.URL(), "a/b", "v1")
	if err != nil {
		t.Fatal(err)
	}
	if want := img.Manifest.Size + img.Config.Size + 3 + 3<<20; got.Bytes != want || got.Requests != 5 {
		t.Errorf("got %+v, want %d bytes in 5 requests", got, want)
	}
	index := o.AddIndex("a/b", "v2", withPlatform(img.Manifest, "arm64"), withPlatform(img.Manifest, "amd64"))
	for _, ref := range []string{"v2", index.Digest.String()} {
		got, err := Pull(t.Context(), o.URL(), "a/b", ref)
		if err != nil {
			t.Fatal(err)
		}
		if want := index.Size + img.Manifest.Size + img.Config.Size + 3 + 3<<20; got.Bytes != want || got.Requests != 6 {
			t.Errorf("%s: got %+v, want %d bytes in 6 requests", ref, got, want)
		}
	}
	o.Inject(registrytest.Order{Digest: img.Layers[1].Digest}, registrytest.Flip(1<<20))
	if _, err := Pull(t.Context(), o.URL(), "a/b", "v1"); !errors.Is(err, ErrWrong) {
		t.Errorf("wrong bytes: %v", err)
	}
}

func withPlatform(d v1.Descriptor, arch string) v1.Descriptor {
	d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	return d
}

func TestPullGoesOn(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("a/b", "v1", []byte(strings.Repeat("two", 1<<20)))
	layer := registrytest.Order{Digest: img.Layers[0].Digest, Times: 1}
	o.Inject(layer, registrytest.Cut(1<<20))
	got, err := Pull(t.Context(), o.URL(), "a/b", "v1")
	if want := img.Manifest.Size + img.Config.Size + 3<<20; err != nil || got.Bytes != want || got.Reopened != 1 {
		t.Errorf("got %+v, %v; want %d bytes", got, err, want)
	}
	layer.Times = 0
	o.Inject(layer, registrytest.Cut(0))
	if got, err = Pull(t.Context(), o.URL(), "a/b", "v1"); err == nil || got.Reopened != maxReopens {
		t.Errorf("a body that never comes: %+v, %v", got, err)
	}
}

func TestDiscard(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<17)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/x" {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
	}))
	defer s.Close()
	addr := s.Listener.Addr().String()
	got, err := Discard(t.Context(), addr, "/x", 3, 0)
	if err != nil || got.Bytes != 3*int64(len(body)) || got.Requests != 3 {
		t.Errorf("got %+v, %v; want %d bytes in 3 requests", got, err, 3*len(body))
	}
	if _, err := Discard(t.Context(), addr, "/y", 1, 0); err == nil {
		t.Error("404 is no error")
	}
}
