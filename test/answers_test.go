package test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// firstCode is the code of an error document.
func firstCode(a answer) string {
	var doc struct{ Errors []struct{ Code string } }
	if json.Unmarshal(a.body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	return doc.Errors[0].Code
}

// A registry without the referrers API says 404, in words of its own. Clients
// then look for a tag, unless the code is NAME_UNKNOWN.
func TestReferrersWithoutTheAPI(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddImage("app", "v1").Manifest.Digest
	n := startNode(t, o)
	path := fmt.Sprintf("/v2/app/referrers/%s?ns=%s", d, upstream)
	for _, body := range []string{"404 page not found\n", "", `{"message":"no"}`} {
		cancel := o.Inject(registrytest.Order{Kind: registrytest.Referrers}, registrytest.Answer(404, body))
		if a := n.get(path + fmt.Sprintf("&n=%d", len(body))); a.StatusCode != 404 || firstCode(a) == "NAME_UNKNOWN" || firstCode(a) == "" {
			t.Errorf("%q: %d %s", body, a.StatusCode, a.body)
		}
		cancel()
	}
	// The tag schema: the fallback finds nothing or an index.
	if a := n.get(manifestPath(strings.Replace(d.String(), ":", "-", 1))); a.StatusCode != 404 || firstCode(a) != "MANIFEST_UNKNOWN" {
		t.Errorf("the tag of referrers: %d %s", a.StatusCode, a.body)
	}
	if a := n.get(path); a.StatusCode != 200 {
		t.Errorf("a registry with the API: %d %s", a.StatusCode, a.body)
	}
}

// A blob that a manifest names and the registry does not have, foreign layers,
// schema 1: HEAD promises nothing that GET does not keep.
func TestHeadAndGetAgree(t *testing.T) {
	o := registrytest.New(t)
	config := o.AddBlob("app", []byte("{}"))
	foreign, gone := digest.FromString("foreign"), digest.FromString("gone")
	o.AddManifest("app", "v1", v1.MediaTypeImageManifest, []byte(fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x/y","digest":%q,"size":2},"layers":[`+
			`{"mediaType":"x/y","digest":%q,"size":7,"urls":["https://elsewhere.test/x"]},{"mediaType":"x/y","digest":%q,"size":4}]}`,
		v1.MediaTypeImageManifest, config, foreign, gone)))
	sparse := digest.FromString("sparse")
	o.AddManifest("app", "index", v1.MediaTypeImageIndex, []byte(fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":6}]}`, v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, sparse)))
	o.AddManifest("app", "old", "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
	n := startNode(t, o)
	for _, tag := range []string{"v1", "index"} {
		if a := n.get(manifestPath(tag)); a.StatusCode != 200 {
			t.Fatalf("%s: %d %s", tag, a.StatusCode, a.body)
		}
	}
	for _, path := range []string{
		blobPath(foreign), blobPath(gone), blobPath(sparse), manifestPath(sparse.String()), manifestPath("old"), blobPath(config),
	} {
		head := n.do(http.MethodHead, path)
		if get := n.get(path); get.StatusCode != head.StatusCode {
			t.Errorf("%s: HEAD %d, GET %d", path, head.StatusCode, get.StatusCode)
		}
	}
}

// What a tag stands for was told to a client with one Accept. While the registry
// is away, clients with another Accept get it if they take its type.
func TestTagServesOtherAcceptsWhileRegistryIsDown(t *testing.T) {
	o := registrytest.New(t)
	o.AddImage("app", "v1")
	n := startNode(t, o)
	const docker = "application/vnd.docker.distribution.manifest.v2+json"
	if a := n.get(manifestPath("v1"), "Accept", v1.MediaTypeImageManifest); a.StatusCode != 200 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	o.Down()
	for accept, want := range map[string]int{
		v1.MediaTypeImageManifest:                            200,
		docker + ", " + v1.MediaTypeImageManifest + ";q=0.5": 200,
		"*/*":                                 200,
		docker:                                503,
		v1.MediaTypeImageIndex + "," + docker: 503,
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if a := n.do(method, manifestPath("v1"), "Accept", accept); a.StatusCode != want {
				t.Errorf("%s with Accept %s: %d, want %d", method, accept, a.StatusCode, want)
			}
		}
	}
}

// A registry refuses a manifest for a reason: Harbor does with 412. The reason
// arrives, bounded, also where the mirror asked by a HEAD first.
func TestReasonOfRefusalArrives(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddImage("app", "v1").Manifest.Digest
	n := startNode(t, o, func(c *daemon.Config) { c.Auth = "relay" })
	for _, ref := range []string{"v1", d.String()} {
		if a := n.get(manifestPath(ref)); a.StatusCode != 200 {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
	}
	const reason = "current image with 12 vulnerabilities cannot be pulled"
	body := fmt.Sprintf(`{"errors":[{"code":"PROJECTPOLICYVIOLATION","message":%q}]}`, reason+strings.Repeat("!", 10000))
	o.Inject(registrytest.Order{Method: "HEAD"}, registrytest.Status(412))
	o.Inject(registrytest.Order{Method: "GET"}, registrytest.Answer(412, body, "Content-Type", "application/json"))
	for _, ref := range []string{"v1", d.String(), "unseen"} {
		a := n.get(manifestPath(ref), "Authorization", "Bearer somebody")
		if a.StatusCode != 412 || firstCode(a) != "PROJECTPOLICYVIOLATION" || !strings.Contains(string(a.body), reason) || len(a.body) > 2048 {
			t.Errorf("%s: %d, %d bytes: %.300s", ref, a.StatusCode, len(a.body), a.body)
		}
	}
}

// The registry is down and nothing is held: the answer names it and the cause.
func TestErrorNamesTheRegistry(t *testing.T) {
	o := registrytest.New(t)
	n := startNode(t, o)
	o.Down()
	for _, path := range []string{manifestPath("v1"), blobPath(digest.FromString("x"))} {
		a := n.get(path)
		if a.StatusCode != 503 || !strings.Contains(string(a.body), upstream) || !strings.Contains(string(a.body), "connection refused") {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
	}
}
