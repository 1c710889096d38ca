package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// specCodes are the error codes of the OCI distribution specification 1.1.
var specCodes = []string{
	"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID",
	"MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED", "TOOMANYREQUESTS",
}

// conformance is one request of the specification's pull and content discovery
// categories.
type conformance struct {
	name, method, path string
	header             map[string]string
	// want is what the specification allows.
	want []int
	// code is the error code that a GET must bear, if the specification has
	// one for the case.
	code string
	// differs is what the mirror answers otherwise than docker-registry does,
	// as README.md words it.
	differs string
}

const strictNames = "what is no name, tag or digest is refused with 400 and a code of the specification; docker-registry says 404 to some"

// absent is a digest of nothing that is there.
const absent = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// conformances are restated from the distribution specification, section "Pull"
// and "Content Discovery". {digest}, {platform} and {layer} are those of the
// image.
var conformances = []conformance{
	{name: "manifest by tag", path: "manifests/" + tag, want: []int{200}},
	{name: "index by digest", path: "manifests/{digest}", want: []int{200}},
	{name: "manifest by digest", path: "manifests/{platform}", want: []int{200}},
	{name: "manifest of an unknown tag", path: "manifests/missing", want: []int{404}, code: "MANIFEST_UNKNOWN"},
	{name: "manifest of an unknown digest", path: "manifests/" + absent, want: []int{404}, code: "MANIFEST_UNKNOWN"},
	{name: "manifest of a bad tag", path: "manifests/.bad", want: []int{400, 404}, differs: strictNames},
	{name: "blob", path: "blobs/{layer}", want: []int{200}},
	{name: "unknown blob", path: "blobs/" + absent, want: []int{404}, code: "BLOB_UNKNOWN"},
	{name: "blob of a bad digest", path: "blobs/sha256:bad", want: []int{400, 404}, differs: strictNames},
	{name: "first bytes of a blob", path: "blobs/{layer}", header: map[string]string{"Range": "bytes=0-9"}, want: []int{206}},
	{name: "bytes amid a blob", path: "blobs/{layer}", header: map[string]string{"Range": "bytes=1000-1999"}, want: []int{206}},
	{name: "rest of a blob", path: "blobs/{layer}", header: map[string]string{"Range": "bytes=100000-"}, want: []int{206}},
	{name: "last bytes of a blob", path: "blobs/{layer}", header: map[string]string{"Range": "bytes=-5"}, want: []int{206}},
	{name: "bytes beyond a blob", path: "blobs/{layer}", header: map[string]string{"Range": "bytes=99999999-"}, want: []int{416}},
}

// discoveries are GETs alone.
var discoveries = []conformance{
	{name: "tags", path: "tags/list", want: []int{200}},
	{name: "one tag", path: "tags/list?n=1", want: []int{200}},
	{name: "tags after one", path: "tags/list?n=5&last=" + tag, want: []int{200}},
}

// answer is what a registry said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// site is one way to ask for the repository.
type site struct {
	name string
	// url returns the URL of a path below the repository.
	url func(repository, path string) string
}

func (s site) ask(t *testing.T, method, repository, path string, header map[string]string) answer {
	t.Helper()
	return askURL(t, method, s.url(repository, path), header)
}

func askURL(t *testing.T, method, url string, header map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", manifestTypes)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := fetchClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	// docker-registry says of a refusal that it is as long as the blob.
	if err != nil && resp.StatusCode < 300 {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// codes are those of an error's body, nil if it is none of the specification.
func (a answer) codes() (codes []string) {
	var body struct {
		Errors []struct{ Code string }
	}
	if json.Unmarshal(a.body, &body) != nil {
		return nil
	}
	for _, e := range body.Errors {
		codes = append(codes, e.Code)
	}
	return codes
}

// referrers are the entries of an index, in order.
func (a answer) referrers(t *testing.T) (list []string) {
	t.Helper()
	var index struct {
		MediaType string
		Manifests []any
	}
	if err := json.Unmarshal(a.body, &index); err != nil || index.Manifests == nil {
		t.Fatalf("no index: %v: %s", err, a.body)
	}
	for _, m := range index.Manifests {
		list = append(list, fmt.Sprint(m))
	}
	slices.Sort(list)
	return list
}

// same compares what a pull depends on.
func (a answer) same(b answer) error {
	if a.status != b.status {
		return fmt.Errorf("status %d, and the origin's is %d", a.status, b.status)
	}
	if a.status >= 300 {
		return nil
	}
	for _, name := range []string{"Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest"} {
		if got, want := a.header.Get(name), b.header.Get(name); got != want && want != "" {
			return fmt.Errorf("%s is %q, and the origin's is %q", name, got, want)
		}
	}
	if string(a.body) != string(b.body) {
		return fmt.Errorf("a body of %d bytes, %s, and the origin's has %d bytes, %s", len(a.body), digestOf(a.body), len(b.body), digestOf(b.body))
	}
	return nil
}

// sites are the origin and the ways by which clients ask a mirror for it.
func sites(origin string, d *Daemon) []site {
	plain := func(base string) func(string, string) string {
		return func(repository, path string) string { return base + "/v2/" + repository + "/" + path }
	}
	return []site{
		{"origin", plain(origin)},
		{"mirror, default upstream", plain(d.URL())},
		{"mirror, upstream in the path", func(repository, path string) string {
			return plain(d.URL())(upstream+"/"+repository, path)
		}},
		{"mirror, ns", func(repository, path string) string {
			u, err := url.Parse(plain(d.URL())(repository, path))
			if err != nil {
				panic(err) // only of our own paths
			}
			q := u.Query()
			q.Set("ns", upstream)
			u.RawQuery = q.Encode()
			return u.String()
		}},
	}
}

// TestConformance asks a mirror what the specification has a registry answer
// that is pulled from, beside the registry itself.
func TestConformance(t *testing.T) {
	b := newBed(t, MultiPlatform)
	b.registry.Push(t, b.image, repository, "v2")
	b.registry.Push(t, b.image, repository, "v3")
	readme, err := os.ReadFile(filepath.Join(mustSource(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []conformance
	for _, c := range conformances {
		for _, c.method = range []string{"HEAD", "GET"} {
			if c.method == "GET" || c.header == nil { // ranges are of GET
				cases = append(cases, c)
			}
		}
	}
	for _, c := range discoveries {
		c.method = "GET"
		cases = append(cases, c)
	}
	for _, c := range cases {
		c.path = strings.NewReplacer("{digest}", b.image.Digest, "{platform}", b.image.Manifests[1].Digest, "{layer}", b.image.Blobs[1].Digest).Replace(c.path)
		t.Run(c.method+" "+c.name, func(t *testing.T) {
			if !strings.Contains(string(readme), c.differs) {
				t.Errorf("README.md does not say that %s", c.differs)
			}
			list := sites(b.registry.Origin.URL(), b.daemon)
			origin := list[0].ask(t, c.method, repository, c.path, c.header)
			for _, s := range list[1:] {
				got := s.ask(t, c.method, repository, c.path, c.header)
				if !slices.Contains(c.want, got.status) {
					t.Errorf("%s: status %d, and the specification has %v", s.name, got.status, c.want)
				}
				if err := got.same(origin); err != nil && c.differs == "" {
					t.Errorf("%s: %v", s.name, err)
				}
				if got.status >= 400 && got.status != 416 && c.method == "GET" {
					codes := got.codes()
					if len(codes) == 0 || slices.ContainsFunc(codes, func(code string) bool { return !slices.Contains(specCodes, code) }) {
						t.Errorf("%s: an error without a code of the specification: %s", s.name, got.body)
					}
					if c.code != "" && !slices.Contains(codes, c.code) {
						t.Errorf("%s: code %v, want %s", s.name, codes, c.code)
					}
				}
			}
		})
	}

	// GET /v2/ says that this is a registry, and tags are read page by page by
	// the links that come with them.
	if got := askURL(t, "GET", b.daemon.URL()+"/v2/", nil); got.status != 200 {
		t.Errorf("GET /v2/: status %d", got.status)
	}
	for _, s := range sites(b.registry.Origin.URL(), b.daemon) {
		var tags []string
		for next := s.url(repository, "tags/list?n=1"); next != "" && len(tags) < 10; {
			page := askURL(t, "GET", next, nil)
			var list struct{ Tags []string }
			if err := json.Unmarshal(page.body, &list); err != nil || page.status != 200 {
				t.Fatalf("%s: GET %s: status %d, %v", s.name, next, page.status, err)
			}
			tags = append(tags, list.Tags...)
			target, _, more := strings.Cut(strings.TrimPrefix(page.header.Get("Link"), "<"), ">")
			if !more {
				break
			}
			base, err := url.Parse(next)
			if err != nil {
				t.Fatal(err)
			}
			to, err := base.Parse(target)
			if err != nil {
				t.Fatalf("%s: link %q: %v", s.name, target, err)
			}
			next = to.String()
		}
		if !slices.Equal(tags, []string{"v1", "v2", "v3"}) {
			t.Errorf("%s: tags page by page: %v", s.name, tags)
		}
	}
}

// TestConformanceOfReferrers does that with the referrers API of a registry that
// has it.
func TestConformanceOfReferrers(t *testing.T) {
	img := newImage(t, MultiPlatform)
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	c := newClientBed(t, NewNode(t, "node"))
	addr := strings.TrimPrefix(server.URL, "http://")
	(&Registry{addr: addr}).Push(t, img, repository, tag)
	c.fill(t, addr, "")
	d := c.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + server.URL}, DefaultRegistry: upstream})
	list := sites(server.URL, d)
	for _, path := range []string{
		"referrers/" + img.Digest, "referrers/" + img.Digest + "?artifactType=" + url.QueryEscape("application/vnd.e2e.signature"),
		"referrers/" + img.Manifests[1].Digest, "referrers/" + absent,
	} {
		origin := list[0].ask(t, "GET", repository, path, nil)
		for _, s := range list[1:] {
			got := s.ask(t, "GET", repository, path, nil)
			// This registry gives the list in any order.
			if want, is := origin.referrers(t), got.referrers(t); got.status != 200 || !slices.Equal(want, is) {
				t.Errorf("%s: GET %s: status %d, referrers %q, want %q", s.name, path, got.status, is, want)
			}
			for _, name := range []string{"Content-Type", "OCI-Filters-Applied"} {
				if is, want := got.header.Get(name), origin.header.Get(name); is != want {
					t.Errorf("%s: GET %s: %s is %q, and the origin's is %q", s.name, path, name, is, want)
				}
			}
		}
	}
}
