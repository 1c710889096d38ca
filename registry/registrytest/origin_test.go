package registrytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// client returns an HTTP client that is closed with the test.
func client(t *testing.T, o *Origin) *http.Client {
	conf := &tls.Config{RootCAs: o.RootCAs()}
	if o.cfg.mtls {
		conf.Certificates = []tls.Certificate{o.ClientCert()}
	}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func orasRepository(t *testing.T, o *Origin, cred auth.Credential) *remote.Repository {
	t.Helper()
	r, err := remote.NewRepository(o.Host() + "/library/x")
	if err != nil {
		t.Fatal(err)
	}
	r.PlainHTTP = o.RootCAs() == nil
	r.Client = &auth.Client{Client: client(t, o), Cache: auth.NewCache(), Credential: auth.StaticCredential(o.Host(), cred)}
	return r
}

// TestORASPulls holds the origin against a client that others wrote: what it
// refuses to read, real clients may refuse too.
func TestORASPulls(t *testing.T) {
	user := Auth{Users: map[string]string{"u": "secret"}, RefreshTokens: map[string]string{"refresh": "u"}}
	for name, c := range map[string]struct {
		opts []Option
		cred auth.Credential
	}{
		"plain":           {},
		"TLS and HTTP/2":  {opts: []Option{WithTLS()}},
		"mTLS":            {opts: []Option{WithMTLS()}},
		"store":           {opts: []Option{WithStore(), WithTLS()}},
		"token by GET":    {opts: []Option{WithAuth(user), WithStore()}, cred: auth.Credential{Username: "u", Password: "secret"}},
		"token by POST":   {opts: []Option{WithAuth(user)}, cred: auth.Credential{RefreshToken: "refresh"}},
		"basic":           {opts: []Option{WithAuth(Auth{Basic: true, Users: user.Users})}, cred: auth.Credential{Username: "u", Password: "secret"}},
		"anonymous token": {opts: []Option{WithAuth(Auth{Allow: func(string, string) bool { return true }}), WithTokenServer()}},
	} {
		t.Run(name, func(t *testing.T) {
			o := New(t, c.opts...)
			if o.cfg.tokensAway {
				// oras refuses a realm on loopback unless its hostname is the
				// registry's, which it is here.
				t.Log("tokens from", o.TokenHost())
			}
			layer := bytes.Repeat([]byte("layer "), 10000)
			img := o.AddImage("library/x", "", layer, []byte("small"))
			o.AddIndex("library/x", "latest", img.Manifest)
			src := orasRepository(t, o, c.cred)
			dst := memory.New()
			if _, err := oras.Copy(t.Context(), src, "latest", dst, "", oras.DefaultCopyOptions); err != nil {
				t.Fatal(err)
			}
			rc, err := dst.Fetch(t.Context(), img.Layers[0])
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, layer) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if got := o.Sent(img.Layers[0].Digest); got != int64(len(layer)) {
				t.Errorf("sent %d bytes of the layer, want %d", got, len(layer))
			}
		})
	}
}

func TestORASListsTagsAndReferrers(t *testing.T) {
	o := New(t)
	img := o.AddImage("library/x", "a")
	for _, tag := range []string{"b", "c", "d"} {
		o.Tag("library/x", tag, img.Manifest.Digest)
	}
	o.AddManifest("library/x", "", v1.MediaTypeImageManifest, mustJSON(v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, Config: v1.DescriptorEmptyJSON, Subject: &img.Manifest, ArtifactType: "a/b",
	}))
	r := orasRepository(t, o, auth.EmptyCredential)
	r.TagListPageSize = 2
	var tags []string
	if err := r.Tags(t.Context(), "", func(page []string) error { tags = append(tags, page...); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tags, []string{"a", "b", "c", "d"}) {
		t.Errorf("tags %v", tags)
	}
	n := 0
	if err := r.Referrers(t.Context(), img.Manifest, "", func(d []v1.Descriptor) error { n += len(d); return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 1 {
		t.Errorf("%d referrers", n)
	}
}

func TestORASIsRefused(t *testing.T) {
	o := New(t, WithAuth(Auth{Users: map[string]string{"u": "secret"}}))
	o.AddImage("library/x", "latest")
	for name, cred := range map[string]auth.Credential{
		"anonymous": {}, "wrong password": {Username: "u", Password: "wrong"},
	} {
		if _, err := orasRepository(t, o, cred).Resolve(t.Context(), "latest"); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if _, err := orasRepository(t, o, auth.Credential{Username: "u", Password: "secret"}).Resolve(t.Context(), "other"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("unknown tag: %v", err)
	}
}

func get(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestStoreRejectsAuthorizationAndExpiredURLs(t *testing.T) {
	o := New(t, WithStore())
	d := o.AddBlob("library/x", []byte("data"))
	c := client(t, o)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, _, err := get(t, c, o.URL()+"/v2/library/x/blobs/"+string(d))
	if err != nil {
		t.Fatal(err)
	}
	signed := resp.Header.Get("Location")
	if resp, b, err := get(t, c, signed); err != nil || resp.StatusCode != 200 || string(b) != "data" {
		t.Fatalf("signed URL: %v %s %v", resp, b, err)
	}
	if resp, _, err := get(t, c, signed, "Authorization", "Bearer x"); err != nil || resp.StatusCode != 400 {
		t.Errorf("with Authorization: %v %v", resp, err)
	}
	o.ExpireURLs()
	if resp, _, err := get(t, c, signed); err != nil || resp.StatusCode != 403 {
		t.Errorf("expired: %v %v", resp, err)
	}
}

func TestFaults(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 100)
	cut := func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }
	for name, c := range map[string]struct {
		fault Fault
		check func(resp *http.Response, body []byte, err error) bool
	}{
		"cut":     {Cut(10), func(_ *http.Response, b []byte, err error) bool { return cut(err) && len(b) == 10 }},
		"longer":  {Length(1), func(_ *http.Response, b []byte, err error) bool { return cut(err) && len(b) == 1000 }},
		"shorter": {Length(-1), func(_ *http.Response, b []byte, err error) bool { return err == nil && len(b) == 999 }},
		"extra":   {Extra(7), func(_ *http.Response, b []byte, err error) bool { return err == nil && len(b) == 1007 }},
		"flip":    {Flip(3), func(_ *http.Response, b []byte, err error) bool { return err == nil && b[3] == '2' && b[4] == '4' }},
		"reset":   {Reset(), func(_ *http.Response, _ []byte, err error) bool { return err != nil }},
		"status": {Status(503, "Retry-After", "1"), func(r *http.Response, _ []byte, _ error) bool {
			return r.StatusCode == 503 && r.Header.Get("Retry-After") == "1"
		}},
		"loop": {RedirectLoop(), func(_ *http.Response, _ []byte, err error) bool {
			return err != nil && strings.Contains(err.Error(), "10 redirects")
		}},
		"html": {HTML(), func(r *http.Response, _ []byte, _ error) bool {
			return strings.HasPrefix(r.Header.Get("Content-Type"), "text/html")
		}},
		"gzip": {Gzip(), func(r *http.Response, b []byte, _ error) bool {
			return r.Header.Get("Content-Encoding") == "gzip" && b[0] == 0x1f
		}},
		"header":     {Header("Docker-Content-Digest", ""), func(r *http.Response, _ []byte, _ error) bool { return r.Header.Get("Docker-Content-Digest") == "" }},
		"chain":      {Chain(Flip(0), Length(-2)), func(_ *http.Response, b []byte, err error) bool { return err == nil && len(b) == 998 && b[0] == '1' }},
		"throttle":   {Throttle(1 << 30), func(_ *http.Response, b []byte, err error) bool { return err == nil && len(b) == 1000 }},
		"no range":   {NoRanges(), func(r *http.Response, _ []byte, _ error) bool { return r.StatusCode == 200 }},
		"wrong type": {Header("Content-Type", "x/y"), func(r *http.Response, _ []byte, _ error) bool { return r.Header.Get("Content-Type") == "x/y" }},
	} {
		t.Run(name, func(t *testing.T) {
			o := New(t)
			d := o.AddBlob("x", data)
			o.Inject(Order{Kind: Blob, Digest: d, Skip: 1}, c.fault)
			url := o.URL() + "/v2/x/blobs/" + string(d)
			cl := client(t, o)
			if _, b, err := get(t, cl, url); err != nil || !bytes.Equal(b, data) {
				t.Fatalf("the skipped request: %v", err)
			}
			resp, b, err := get(t, cl, url, "Accept-Encoding", "identity")
			if !c.check(resp, b, err) {
				t.Errorf("%v, %d bytes, %v", resp, len(b), err)
			}
		})
	}
}

func TestSlowAndHang(t *testing.T) {
	o := New(t)
	d := o.AddBlob("x", make([]byte, 100))
	step, release := make(chan struct{}), make(chan struct{})
	o.Inject(Order{Times: 1}, Slow(50, step))
	o.Inject(Order{Skip: 1}, HangAfter(30, release))
	url, c := o.URL()+"/v2/x/blobs/"+string(d), client(t, o)
	go func() { step <- struct{}{}; step <- struct{}{} }()
	if _, b, err := get(t, c, url); err != nil || len(b) != 100 {
		t.Fatalf("slow: %d bytes, %v", len(b), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 30)); err != nil {
		t.Fatal(err)
	}
	if o.Concurrent() != 1 {
		t.Errorf("%d requests under way", o.Concurrent())
	}
	cancel()
	resp.Body.Close()
	close(release)
	if _, b, err := get(t, c, url); err != nil || len(b) != 100 {
		t.Errorf("released: %d bytes, %v", len(b), err)
	}
}

func TestDownAndUp(t *testing.T) {
	o := New(t)
	c := client(t, o)
	o.Down()
	if _, _, err := get(t, c, o.URL()+"/v2/"); err == nil {
		t.Fatal("answered while down")
	}
	if err := o.Up(); err != nil {
		t.Fatal(err)
	}
	if resp, _, err := get(t, c, o.URL()+"/v2/"); err != nil || resp.StatusCode != 200 {
		t.Fatalf("after Up: %v", err)
	}
}

func TestVirtualBlobs(t *testing.T) {
	whole := make([]byte, 1000)
	Random(7).ReadAt(whole, 0)
	for off := range int64(100) {
		part := make([]byte, 50)
		Random(7).ReadAt(part, off)
		if !bytes.Equal(part, whole[off:off+50]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	o := New(t)
	size := int64(3 << 20)
	d, err := Digest(Random(1), size)
	if err != nil {
		t.Fatal(err)
	}
	o.AddVirtual("x", d, Random(1), size)
	_, b, err := get(t, client(t, o), o.URL()+"/v2/x/blobs/"+string(d))
	if err != nil || d.Algorithm().FromBytes(b) != d {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
