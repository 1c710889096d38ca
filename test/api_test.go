package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// One pull as containerd does it: HEAD by tag, GET of index and manifest by
// digest, GET of config and layers. The second one costs the origin nothing.
func TestPull(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "", noise(1, 3<<20), noise(2, 100))
	index := o.AddIndex("app", "v1", image.Manifest)
	n := startNode(t, o)
	pull := func() {
		t.Helper()
		head := n.do(http.MethodHead, manifestPath("v1"), "Accept", v1.MediaTypeImageIndex, "Accept", v1.MediaTypeImageManifest)
		if head.StatusCode != 200 || head.Header.Get("Content-Type") != v1.MediaTypeImageIndex ||
			head.Header.Get("Docker-Content-Digest") != index.Digest.String() || head.ContentLength != index.Size {
			t.Fatalf("HEAD by tag: %d %v", head.StatusCode, head.Header)
		}
		for _, d := range []v1.Descriptor{index, image.Manifest} {
			a := n.get(manifestPath(d.Digest.String()))
			n.right(a, d.Digest)
			if got := a.Header.Get("Content-Type"); got != d.MediaType {
				t.Errorf("manifest %s comes as %q", d.Digest, got)
			}
		}
		for _, d := range append(image.Layers, image.Config) {
			a := n.get(blobPath(d.Digest), "Accept-Encoding", "zstd, gzip")
			n.right(a, d.Digest)
			for k, want := range map[string]string{
				"Docker-Content-Digest": d.Digest.String(), "Etag": `"` + d.Digest.String() + `"`,
				"Oci-Namespace": upstream, "Content-Type": "application/octet-stream",
				"Content-Encoding": "", "Content-Length": fmt.Sprint(d.Size),
				"Docker-Distribution-Api-Version": "registry/2.0", "Accept-Ranges": "bytes",
			} {
				if got := a.Header.Get(k); got != want {
					t.Errorf("header %s is %q, want %q", k, got, want)
				}
			}
		}
	}
	pull()
	if got := len(o.Requests()); got != 6 {
		t.Errorf("a cold pull took %d requests: %v", got, o.Requests())
	}
	n.settled()
	o.ResetCounters()
	pull()
	if got := o.Requests(); len(got) != 0 { // the tag was resolved a moment ago
		t.Errorf("a second pull took %v", got)
	}
}

// Every way to name the upstream leads to the same content.
func TestUpstreamChoice(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(3, 1000))
	n := startNode(t, o)
	for _, path := range []string{
		"/v2/app/blobs/%s?ns=" + upstream,
		"/v2/" + upstream + "/app/blobs/%s",
		"/v2/app/blobs/%s",
		"/v2/app/blobs/%s?ns=REGISTRY.test",
	} {
		n.right(n.get(fmt.Sprintf(path, d)), d)
	}
}

func TestDockerHubNames(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("library/alpine", noise(4, 1000))
	n := startNode(t, o, func(c *daemon.Config) {
		c.Registries = []string{"docker.io=" + o.URL()}
		c.DefaultRegistry = "docker.io"
	})
	for _, path := range []string{
		"/v2/library/alpine/blobs/%s?ns=docker.io",
		"/v2/docker.io/alpine/blobs/%s",
		"/v2/docker.io/library/alpine/blobs/%s",
		"/v2/alpine/blobs/%s",
		"/v2/alpine/blobs/%s?ns=registry-1.docker.io",
	} {
		n.right(n.get(fmt.Sprintf(path, d)), d)
	}
}

// An endpoint with a path is a repository prefix, as of a proxy project.
func TestEndpointWithPath(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("proxy/hub/library/x", noise(5, 1000))
	n := startNode(t, o, func(c *daemon.Config) { c.Registries = []string{upstream + "=" + o.URL() + "/proxy/hub"} })
	n.right(n.get(fmt.Sprintf("/v2/library/x/blobs/%s", d)), d)
}

func TestRanges(t *testing.T) {
	o := registrytest.New(t)
	content := noise(6, 3<<20)
	size := len(content)
	for _, state := range []string{"cold", "held"} {
		t.Run(state, func(t *testing.T) {
			for header, want := range map[string]struct {
				status   int
				off, end int
			}{
				"bytes=0-":                       {206, 0, size},
				"bytes=0-0":                      {206, 0, 1},
				"bytes=5-99":                     {206, 5, 100},
				"bytes=1000000-":                 {206, 1000000, size},
				"bytes=2000000-999999999":        {206, 2000000, size},
				"bytes=-10":                      {206, size - 10, size},
				"bytes=-99999999":                {206, 0, size},
				fmt.Sprintf("bytes=%d-", size-1): {206, size - 1, size},
				fmt.Sprintf("bytes=%d-", size):   {416, 0, 0},
				"bytes=99999999999999-":          {416, 0, 0},
				"bytes=-0":                       {416, 0, 0},
				// Not one well-formed range: as if none had been asked for.
				"bytes=0-1,5-6":               {200, 0, size},
				"bytes=7-5":                   {416, 0, 0},
				"bytes=a-b":                   {200, 0, size},
				"bytes=+1-":                   {200, 0, size},
				"bytes=99999999999999999999-": {200, 0, size},
				"items=0-1":                   {200, 0, size},
				"bytes=" + strings.Repeat("0-1,", 10000) + "0-1": {200, 0, size},
			} {
				n := startNode(t, o)
				d := o.AddBlob("app", content)
				if state == "held" {
					n.blob(d)
					n.settled()
				}
				a := n.get(blobPath(d), "Range", header)
				if a.err != nil || a.StatusCode != want.status {
					t.Errorf("%.40s: status %d, %v", header, a.StatusCode, a.err)
					continue
				}
				switch want.status {
				case 416:
					if got := a.Header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", size) {
						t.Errorf("%.40s: Content-Range %q", header, got)
					}
				default:
					if !bytes.Equal(a.body, content[want.off:want.end]) {
						t.Errorf("%.40s: wrong bytes", header)
					}
					cr := ""
					if want.status == 206 {
						cr = fmt.Sprintf("bytes %d-%d/%d", want.off, want.end-1, size)
					}
					if got := a.Header.Get("Content-Range"); got != cr {
						t.Errorf("%.40s: Content-Range %q, want %q", header, got, cr)
					}
				}
				n.stop()
			}
		})
	}
}

func TestConditions(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(7, 1000))
	d := image.Layers[0].Digest
	n := startNode(t, o)
	etag := `"` + d.String() + `"`
	if a := n.get(blobPath(d), "Range", "bytes=1-2", "If-Range", etag); a.StatusCode != 206 {
		t.Errorf("If-Range with the right tag: %d", a.StatusCode)
	}
	if a := n.get(blobPath(d), "Range", "bytes=1-2", "If-Range", `"other"`); a.StatusCode != 200 {
		t.Errorf("If-Range with another tag: %d", a.StatusCode)
	}
	mtag := `"` + image.Manifest.Digest.String() + `"`
	if a := n.get(manifestPath("v1"), "If-None-Match", mtag); a.StatusCode != 304 || len(a.body) != 0 {
		t.Errorf("If-None-Match: %d, %d bytes", a.StatusCode, len(a.body))
	}
}

func TestHead(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(8, 5000))
	layer := image.Layers[0]
	n := startNode(t, o)
	check := func() {
		t.Helper()
		a := n.do(http.MethodHead, blobPath(layer.Digest))
		if a.StatusCode != 200 || a.ContentLength != layer.Size || len(a.body) != 0 {
			t.Fatalf("HEAD of a blob: %d, length %d", a.StatusCode, a.ContentLength)
		}
	}
	check()
	if got := o.Count(registrytest.Blob); got != 1 {
		t.Errorf("HEAD of an unknown blob took %d requests", got)
	}
	n.get(manifestPath("v1"))
	check() // a manifest has named it, which does not mean that it is there
	n.blob(layer.Digest)
	n.settled()
	n.stored(layer.Digest, true)
	o.ResetCounters()
	check()
	if got := o.Count(registrytest.Blob, http.MethodHead); got != 0 {
		t.Errorf("the size was asked for %d times although it was known", got)
	}
	if a := n.do(http.MethodHead, blobPath(digest.FromString("absent"))); a.StatusCode != 404 {
		t.Errorf("HEAD of an absent blob: %d", a.StatusCode)
	}
}

func TestNotFoundAlike(t *testing.T) {
	o := registrytest.New(t)
	o.AddImage("app", "v1", noise(9, 10))
	n := startNode(t, o)
	for _, path := range []string{
		manifestPath("absent"), manifestPath(digest.FromString("absent").String()), blobPath(digest.FromString("absent")),
		"/v2/nothing/manifests/v1",
	} {
		get, head := n.get(path), n.do(http.MethodHead, path)
		if get.StatusCode != 404 || head.StatusCode != 404 {
			t.Errorf("%s: GET %d, HEAD %d, want both 404", path, get.StatusCode, head.StatusCode)
		}
		var doc struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(get.body, &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Code == "" {
			t.Errorf("%s: body %q is not an OCI error", path, get.body)
		}
	}
}

func TestEmptyAndSHA512(t *testing.T) {
	o := registrytest.New(t)
	empty := o.AddBlob("app", nil)
	content := noise(10, 700<<10)
	wide := digest.SHA512.FromBytes(content)
	o.AddVirtual("app", wide, bytes.NewReader(content), int64(len(content)))
	n := startNode(t, o)
	for range 2 {
		n.blob(empty)
		n.blob(wide)
		n.settled()
	}
	n.stored(empty, false) // its bytes are known without a file
	n.stored(wide, true)
	// The empty one is asked for by nobody: its bytes are known.
	if got := o.Count(registrytest.Blob); got != 1 {
		t.Errorf("origin was asked %d times", got)
	}
}

func TestPing(t *testing.T) {
	n := startNode(t, registrytest.New(t))
	for _, path := range []string{"/v2", "/v2/"} {
		if a := n.get(path); a.StatusCode != 200 || a.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("%s: %d %v", path, a.StatusCode, a.Header)
		}
	}
}

func TestReadOnly(t *testing.T) {
	o := registrytest.New(t)
	n := startNode(t, o)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if a := n.do(method, "/v2/app/blobs/uploads/"); a.StatusCode != 405 || a.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", method, a.StatusCode)
		}
	}
	if got := o.Requests(); len(got) != 0 {
		t.Errorf("origin was asked %v", got)
	}
}

func TestTagsAndReferrers(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(11, 10))
	for i := range 5 {
		o.Tag("app", fmt.Sprintf("t%d", i), image.Manifest.Digest)
	}
	subject, err := json.Marshal(image.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	signature := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"x/sig","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],"subject":%s}`,
		v1.MediaTypeImageManifest, digest.FromString("{}"), subject)
	referrer := o.AddManifest("app", "", v1.MediaTypeImageManifest, []byte(signature))
	n := startNode(t, o)

	a := n.get(fmt.Sprintf("/v2/app/referrers/%s?ns=%s", image.Manifest.Digest, upstream))
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != v1.MediaTypeImageIndex || !bytes.Contains(a.body, []byte(referrer)) || !bytes.Contains(a.body, []byte(`"artifactType":"x/sig"`)) {
		t.Errorf("referrers: %d %v %s", a.StatusCode, a.Header, a.body)
	}

	// Page by page, by the links as they come.
	var tags []string
	next := "/v2/app/tags/list?n=2&ns=" + upstream
	for range 10 {
		a := n.get(next)
		var page struct{ Tags []string }
		if err := json.Unmarshal(a.body, &page); err != nil || a.StatusCode != 200 {
			t.Fatalf("%s: %d %v", next, a.StatusCode, err)
		}
		tags = append(tags, page.Tags...)
		link := a.Header.Get("Link")
		if link == "" {
			break
		}
		if next = link[strings.Index(link, "<")+1 : strings.Index(link, ">")]; !strings.Contains(next, "ns="+upstream) {
			t.Fatalf("link %q does not lead back through the mirror", link)
		}
	}
	if want := []string{"t0", "t1", "t2", "t3", "t4", "v1"}; !slices.Equal(tags, want) {
		t.Errorf("tags %v, want %v", tags, want)
	}
}

func TestTagIsResolvedOnceInAWhile(t *testing.T) {
	o := registrytest.New(t)
	first := o.AddImage("app", "v1", noise(12, 10))
	n := startNode(t, o)
	for range 10 {
		n.right(n.get(manifestPath("v1")), first.Manifest.Digest)
		n.do(http.MethodHead, manifestPath("v1"))
	}
	if got := o.Count(registrytest.Manifest); got != 1 {
		t.Errorf("origin was asked %d times", got)
	}
}

func TestTagMoves(t *testing.T) {
	o := registrytest.New(t)
	first := o.AddImage("app", "v1", noise(13, 10))
	n := startNode(t, o, func(c *daemon.Config) { c.TagTTL = 1 })
	n.right(n.get(manifestPath("v1")), first.Manifest.Digest)
	second := o.AddImage("app", "v1", noise(14, 10))
	n.right(n.get(manifestPath("v1")), second.Manifest.Digest)
	// The origin is down: what it said last holds.
	o.Down()
	n.right(n.get(manifestPath("v1")), second.Manifest.Digest)
	if !strings.Contains(n.logs.String(), "tag is served as it was") {
		t.Error("a stale tag is not logged")
	}
	if a := n.get(manifestPath("never-seen")); a.StatusCode != 503 {
		t.Errorf("an unknown tag with the origin down: %d", a.StatusCode)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	n := startNode(t, registrytest.New(t))
	for path, want := range map[string]string{
		"/healthz": `"ok"`, "/readyz": `"ok"`, "/metrics": "shoal_store_healthy 1", "/debug/pprof/": "goroutine",
	} {
		if status, body := n.admin(path); status != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d", path, status)
		}
		if a := n.get(path); a.StatusCode != 404 {
			t.Errorf("%s is on the mirror too: %d", path, a.StatusCode)
		}
	}
}
