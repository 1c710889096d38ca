package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry"
)

// tokenOrigin wants a token for everything, as many registries do for public
// images too. The token "Bearer user" is good for all, that of public for the
// repository "public".
type tokenOrigin struct {
	content map[digest.Digest]string
	root    digest.Digest
	mu      sync.Mutex // guards all below
	down    bool
	asked   []Caller
}

// seen returns whose requests came so far.
func (o *tokenOrigin) seen() []Caller {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

func (o *tokenOrigin) goDown() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = true
}

func (o *tokenOrigin) judge(c Caller, repo registry.Repository) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, c)
	switch {
	case o.down:
		return &registry.Error{Status: http.StatusServiceUnavailable}
	case c.Authorization == "Bearer user", c.Public && repo.Name == "public", c == (Caller{}):
		return nil
	default:
		return &registry.Error{Status: http.StatusUnauthorized, Challenges: []string{`Bearer realm="https://r.test/token"`}}
	}
}

func (o *tokenOrigin) HeadManifest(_ context.Context, c Caller, repo registry.Repository, ref string, _ []string) (Descriptor, error) {
	d := digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		d = o.root
	}
	return Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: d, Size: int64(len(o.content[d]))}, o.judge(c, repo)
}

func (o *tokenOrigin) Manifest(context.Context, Caller, registry.Repository, string, []string) (Manifest, error) {
	panic("what is held is not fetched")
}

func (o *tokenOrigin) HeadBlob(_ context.Context, c Caller, repo registry.Repository, d digest.Digest) (int64, error) {
	return int64(len(o.content[d])), o.judge(c, repo)
}

func (o *tokenOrigin) Pass(context.Context, Caller, registry.Repository, string, url.Values, http.Header) (*http.Response, error) {
	panic("nothing is passed on")
}

func (o *tokenOrigin) Unavailable(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Status == http.StatusServiceUnavailable
}

// held is a store that has everything.
type held map[digest.Digest]string

func (h held) Stat(d digest.Digest) (int64, bool) { return int64(len(h[d])), true }

func (h held) Open(_ context.Context, req Request) (Reader, error) {
	if !req.Proven {
		return nil, ErrUnproven
	}
	return heldReader(h[req.Digest]), nil
}

type heldReader string

func (r heldReader) Size() int64                       { return int64(len(r)) }
func (r heldReader) Wait(context.Context, int64) error { return nil }
func (r heldReader) Close() error                      { return nil }
func (r heldReader) CopyRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	m, err := io.WriteString(w, string(r[off:off+n]))
	return int64(m), err
}

// An image that everyone may have is served to everyone while the origin is
// down, also if somebody with a token pulled it, and nothing else is.
func TestPublicImagesWhileOriginIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		add := func(h held, body string) digest.Digest {
			d := digest.FromString(body)
			h[d] = body
			return d
		}
		store := held{}
		layer, other := add(store, "layer"), add(store, "layer of another image")
		image := add(store, fmt.Sprintf(`{"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, v1.MediaTypeImageManifest, layer))
		index := add(store, fmt.Sprintf(`{"mediaType":%q,"manifests":[{"digest":%q,"size":%d}]}`, v1.MediaTypeImageIndex, image, len(store[image])))
		o := &tokenOrigin{content: store, root: index}
		ups, err := registry.NewUpstreams([]registry.Upstream{{Host: "r.test"}}, "r.test")
		if err != nil {
			t.Fatal(err)
		}
		m, err := New(Config{Upstreams: ups, Origin: o, Blobs: store})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go m.Run(ctx)
		get := func(method, path, auth string) *httptest.ResponseRecorder {
			t.Helper()
			r := httptest.NewRequest(method, "/v2/"+path, nil)
			r.Host, r.URL.Host = "", ""
			if auth != "" {
				r.Header.Set("Authorization", auth)
			}
			w := httptest.NewRecorder()
			m.ServeHTTP(w, r)
			return w
		}
		pull := func(repo, auth string, want int) {
			t.Helper()
			for _, path := range []string{"/manifests/v1", "/manifests/" + index.String(), "/manifests/" + image.String(), "/blobs/" + layer.String()} {
				method := "GET"
				if strings.HasSuffix(path, "v1") {
					method = "HEAD"
				}
				w := get(method, repo+path, auth)
				if w.Code != want {
					t.Errorf("%s %s%s: status %d, want %d", method, repo, path, w.Code, want)
				}
				if w.Code == 401 && w.Header().Get("Www-Authenticate") == "" {
					t.Error("a refusal without the origin's challenge")
				}
			}
		}
		for _, repo := range []string{"public", "private"} {
			pull(repo, "", 401)
			pull(repo, "Bearer user", 200)
		}
		asked := len(o.seen())
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if len(o.seen()) != asked {
			t.Error("it was asked while the pull may have been under way")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := o.seen()[asked:]; len(got) != 2 || got[0] != public || got[1] != public {
			t.Errorf("asked %+v, want one question for each image", got)
		}
		asked = len(o.seen())
		pull("public", "", 401) // the origin decides while it can be asked
		for range 3 {
			time.Sleep(9 * time.Minute)
			pull("public", "Bearer user", 200)
		}
		for _, c := range o.seen()[asked:] {
			if c == public {
				t.Error("it was asked again within half an hour")
			}
		}
		o.goDown()
		pull("public", "", 200)
		pull("public", "Bearer somebody", 200)
		pull("private", "", 401)
		pull("private", "Bearer somebody", 503)
		pull("private", "Bearer user", 200)
		if w := get("GET", "public/blobs/"+other.String(), ""); w.Code == 200 {
			t.Error("another repository's content by way of a public one")
		}
		time.Sleep(time.Hour)
		pull("public", "Bearer somebody", 503)
		pull("private", "Bearer user", 503)
	})
}
