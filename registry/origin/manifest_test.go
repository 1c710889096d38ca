package origin

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoalproject/shoal/registry"
	rt "github.com/shoalproject/shoal/registry/registrytest"
)

func TestManifest(t *testing.T) {
	o := rt.New(t)
	img := o.AddImage(repo, "latest", []byte("layer"))
	c := newClient(t, o)
	for _, ref := range []string{"latest", string(img.Manifest.Digest)} {
		m, err := c.Manifest(t.Context(), target, ref, []string{v1.MediaTypeImageManifest, "x/y"})
		if err != nil {
			t.Fatal(err)
		}
		if m.Digest != img.Manifest.Digest || m.MediaType != v1.MediaTypeImageManifest || len(m.Parsed.Blobs) != 2 ||
			!bytes.Equal(m.Body, o.ManifestBody(repo, m.Digest)) {
			t.Errorf("%s: %+v", ref, m)
		}
		d, err := c.HeadManifest(t.Context(), target, ref, nil)
		if err != nil || d.Digest != img.Manifest.Digest || d.MediaType != v1.MediaTypeImageManifest || d.Size != img.Manifest.Size {
			t.Errorf("HEAD %s: %+v, %v", ref, d, err)
		}
	}
	if got := o.Requests()[0].Header.Values("Accept"); len(got) != 2 {
		t.Errorf("Accept %q", got)
	}
	for _, r := range o.Requests() {
		if r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("Accept-Encoding %q", r.Header.Get("Accept-Encoding"))
		}
	}
	_, err := c.Manifest(t.Context(), target, "other", nil)
	if e := wantStatus(t, err, 404); e.Code != registry.CodeManifestUnknown {
		t.Errorf("code %s", e.Code)
	}
	for _, ref := range []string{"", "a/b", "../x", "x/manifests/y", "sha256:short", "a?b", "a#b"} {
		before := len(o.Requests())
		if _, err := c.Manifest(t.Context(), target, ref, nil); err == nil || len(o.Requests()) != before {
			t.Errorf("%q was asked for", ref)
		}
	}
}

func TestManifestThatIsNotOne(t *testing.T) {
	both := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","layers":[],"manifests":[],"config":{}}`)
	big := append([]byte(`{"schemaVersion":2,"layers":[],"x":"`), bytes.Repeat([]byte("x"), registry.MaxManifestSize)...)
	for name, c := range map[string]struct {
		fault   rt.Fault
		tagOnly bool
		body    []byte
		retried bool
	}{
		"endless":            {fault: rt.Endless(v1.MediaTypeImageManifest)},
		"too large":          {body: append(big, `"}`...)},
		"both":               {body: both, retried: true},
		"HTML":               {fault: rt.HTML()},
		"gzip":               {fault: rt.Gzip()},
		"other type":         {fault: rt.Header("Content-Type", v1.MediaTypeImageIndex), retried: true},
		"not a type":         {fault: rt.Header("Content-Type", "application/octet-stream"), retried: true},
		"corrupt":            {fault: rt.Flip(30), retried: true},
		"short":              {fault: rt.Length(-1), retried: true},
		"wrong digest":       {fault: rt.Header("Docker-Content-Digest", string(digest.FromString("x"))), tagOnly: true, retried: true},
		"malformed digest":   {fault: rt.Header("Docker-Content-Digest", "md5:0"), tagOnly: true},
		"digest in capitals": {fault: rt.Header("Docker-Content-Digest", "sha256:"+strings.Repeat("A", 64)), tagOnly: true},
		"206":                {fault: rt.Answer(206, "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t)
			d := o.AddImage(repo, "latest", []byte("layer")).Manifest.Digest
			if c.body != nil {
				d = o.AddManifest(repo, "latest", v1.MediaTypeImageManifest, c.body)
			}
			if c.fault != nil {
				o.Inject(rt.Order{Kind: rt.Manifest}, c.fault)
			}
			cl := newClient(t, o)
			refs := []string{"latest", string(d)}
			if c.tagOnly {
				refs = refs[:1]
				if _, err := cl.Manifest(t.Context(), target, string(d), nil); err != nil {
					t.Errorf("by digest the header does not matter: %v", err)
				}
			}
			for _, ref := range refs {
				before := o.Count(rt.Manifest)
				_, err := cl.Manifest(t.Context(), target, ref, nil)
				e := wantStatus(t, err, 502)
				if !strings.Contains(e.Message, host) || !strings.Contains(e.Message, ref) {
					t.Errorf("message %q", e.Message)
				}
				want := 1
				if c.retried {
					want = maxAttempts
				}
				if got := o.Count(rt.Manifest) - before; got != want {
					t.Errorf("%d requests, want %d", got, want)
				}
			}
		})
	}
}

func TestManifestSurvives(t *testing.T) {
	for name, f := range map[string]rt.Fault{
		"corrupt once": rt.Flip(30), "cut": rt.Cut(10), "reset": rt.Reset(), "500": rt.Status(500), "502": rt.Status(502),
	} {
		o := rt.New(t)
		o.AddImage(repo, "latest", []byte("layer"))
		o.Inject(rt.Order{Times: 2}, f)
		if _, err := newClient(t, o).Manifest(t.Context(), target, "latest", nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoDigestHeader(t *testing.T) {
	o := rt.New(t)
	img := o.AddImage(repo, "latest")
	o.Inject(rt.Order{}, rt.Header("Docker-Content-Digest", ""))
	c := newClient(t, o)
	if m, err := c.Manifest(t.Context(), target, "latest", nil); err != nil || m.Digest != img.Manifest.Digest {
		t.Errorf("%+v, %v", m, err)
	}
	if d, err := c.HeadManifest(t.Context(), target, "latest", nil); err != nil || d.Digest != "" {
		t.Errorf("%+v, %v", d, err)
	}
	o.Heal()
	o.Inject(rt.Order{}, rt.Header("Docker-Content-Digest", string(digest.FromString("x"))))
	_, err := c.HeadManifest(t.Context(), target, string(img.Manifest.Digest), nil)
	wantStatus(t, err, 502)
}

func TestPathPrefix(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	img := o.AddImage("proxy/hub/"+repo, "latest", []byte("layer"))
	up := o.Upstream(host)
	up.Endpoint.Path = "proxy/hub"
	c := newClient(t, o, alice, func(c *Config) { c.Endpoints[0].Upstream = up })
	if _, err := c.Manifest(t.Context(), target, "latest", nil); err != nil {
		t.Fatal(err)
	}
	if b, _, err := readBlob(t, c, img.Layers[0].Digest, 0, -1); err != nil || string(b) != "layer" {
		t.Errorf("%q, %v", b, err)
	}
	if n := o.TokensIssued(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}

func TestStore(t *testing.T) {
	data := randomBytes(t, 1<<20)
	for name, opts := range map[string][]rt.Option{
		"plain": {rt.WithStore()}, "TLS and token": {rt.WithStore(), rt.WithTLS(), rt.WithAuth(aliceOnly())},
	} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t, opts...)
			d := o.AddBlob(repo, data)
			c := newClient(t, o, alice, allowing(o.StoreHost()))
			// The URL expires in the middle: another is asked for.
			o.Inject(rt.Order{Kind: rt.Store, Times: 1}, rt.Chain(rt.After(500_000, o.ExpireURLs), rt.Cut(500_000)))
			b, _, err := readBlob(t, c, d, 0, -1)
			if err != nil || !bytes.Equal(b, data) {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			// It has expired when it arrives.
			o.ResetCounters()
			o.Inject(rt.Order{Kind: rt.Store, Times: 1}, rt.Status(403))
			if b, _, err = readBlob(t, c, d, 10, 20); err != nil || !bytes.Equal(b, data[10:20]) {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			if n := o.Count(rt.Blob); n != 2 {
				t.Errorf("%d requests at the origin", n)
			}
			// A store that always refuses is not a refusal of the registry's.
			for _, status := range []int{400, 401, 403} {
				cancel := o.Inject(rt.Order{Kind: rt.Store}, rt.Status(status, "WWW-Authenticate", `Basic realm="store"`))
				_, _, err = readBlob(t, c, d, 0, -1)
				wantStatus(t, err, 502)
				cancel()
			}
			for _, r := range o.Requests(rt.Store) {
				if r.Authorization != "" {
					t.Error("the store saw Authorization")
				}
			}
		})
	}
}

func TestHeadThatIsNotSupported(t *testing.T) {
	data := randomBytes(t, 1000)
	o := rt.New(t, rt.WithStore())
	d := o.AddBlob(repo, data)
	for _, f := range []rt.Fault{rt.Status(405), rt.Redirect("http://" + o.StoreHost() + "/store/" + string(d)), rt.Header("Content-Length", "")} {
		cancel := o.Inject(rt.Order{Kind: rt.Blob, Method: http.MethodHead}, f)
		if n, err := newClient(t, o, allowing(o.StoreHost())).HeadBlob(t.Context(), target, d); err != nil || n != 1000 {
			t.Errorf("%d, %v", n, err)
		}
		cancel()
	}
}

func TestPass(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	img := o.AddImage(repo, "a")
	o.Tag(repo, "b", img.Manifest.Digest)
	c := newClient(t, o, alice)
	header := http.Header{"Accept": {"application/json"}, "Cookie": {"secret"}, "Authorization": {"Bearer stray"}}
	resp, err := c.Pass(t.Context(), target, "tags/list", url.Values{"n": {"1"}, "ns": {host}}, header)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	if string(b) != `{"name":"library/x","tags":["a"]}` || resp.Header.Get("Link") == "" || resp.ContentLength != int64(len(b)) {
		t.Errorf("%s %v", b, resp.Header)
	}
	for _, r := range o.Requests(rt.Tags) {
		if r.Form.Has("ns") || r.Header.Get("Cookie") != "" || r.Authorization == "Bearer stray" {
			t.Errorf("passed on: %+v", r)
		}
	}
	if _, err = c.Pass(t.Context(), target, "referrers/"+string(img.Manifest.Digest), nil, nil); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"blobs/" + string(img.Config.Digest), "tags/other", "../../_catalog", "tags/list?x", "", "x/tags/list"} {
		if _, err := c.Pass(t.Context(), target, bad, nil, nil); err == nil {
			t.Errorf("%q was passed on", bad)
		}
	}
	o.Inject(rt.Order{Kind: rt.Tags}, rt.Endless("application/json"))
	_, err = c.Pass(t.Context(), target, "tags/list", nil, nil)
	wantStatus(t, err, 502)
}
