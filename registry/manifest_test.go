package registry

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	someDescriptor = `{"mediaType":"x/y","digest":"` + someSHA256 + `","size":3}`
	plainImage     = `{"schemaVersion":2,"config":` + someDescriptor + `,"layers":[` + someDescriptor + `]}`
	plainIndex     = `{"schemaVersion":2,"manifests":[` + someDescriptor + `]}`
)

func TestParseManifest(t *testing.T) {
	typed := func(mt, doc string) string { return `{"mediaType":"` + mt + `",` + doc[1:] }
	for _, c := range []struct {
		name, contentType, body, mediaType string
		manifests, blobs                   int
	}{
		{"OCI image", v1.MediaTypeImageManifest, plainImage, v1.MediaTypeImageManifest, 0, 2},
		{"OCI index", v1.MediaTypeImageIndex, plainIndex, v1.MediaTypeImageIndex, 1, 0},
		{"no header, no field", "", plainImage, v1.MediaTypeImageManifest, 0, 2},
		{"no header, no field, index", "", plainIndex, v1.MediaTypeImageIndex, 1, 0},
		{"no header", "", typed(MediaTypeDockerManifest, plainImage), MediaTypeDockerManifest, 0, 2},
		{"plain JSON", "application/json; charset=utf-8", typed(MediaTypeDockerManifestList, plainIndex), MediaTypeDockerManifestList, 1, 0},
		{"parameters", v1.MediaTypeImageManifest + "; charset=utf-8", plainImage, v1.MediaTypeImageManifest, 0, 2},
		{"artifact", "application/vnd.oci.artifact.manifest.v1+json", `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[` + someDescriptor + `]}`, "application/vnd.oci.artifact.manifest.v1+json", 0, 1},
		{"empty index", "", `{"manifests":[]}`, v1.MediaTypeImageIndex, 0, 0},
	} {
		m, err := ParseManifest(c.contentType, []byte(c.body))
		if err != nil || m.MediaType != c.mediaType || len(m.Manifests) != c.manifests || len(m.Blobs) != c.blobs {
			t.Errorf("%s: %+v, %v", c.name, m, err)
		}
	}
}

func TestParseManifestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ contentType, body string }{
		"HTML":              {"text/html", "<html>"},
		"not an object":     {"", "[]"},
		"null":              {"", "null"},
		"two in one":        {"", `{"manifests":[],"layers":[]}`},
		"two in one, typed": {v1.MediaTypeImageIndex, `{"manifests":[],"layers":[]}`},
		"index and config":  {v1.MediaTypeImageIndex, `{"manifests":[],"config":` + someDescriptor + `}`},
		"other type inside": {v1.MediaTypeImageManifest, `{"mediaType":"` + v1.MediaTypeImageIndex + `","layers":[]}`},
		"index as image":    {v1.MediaTypeImageManifest, plainIndex},
		"image as index":    {v1.MediaTypeImageIndex, plainImage},
		"octets":            {"application/octet-stream", plainImage},
		"bad header":        {"a/b/c", plainImage},
		"schema 1":          {"application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[]}`},
		"neither":           {"", `{"schemaVersion":2}`},
		"capital field":     {"", `{"Layers":[]}`},
		"bad digest":        {"", `{"layers":[{"digest":"sha256:abc","size":1}]}`},
		"negative size":     {"", `{"layers":[{"digest":"` + someSHA256 + `","size":-1}]}`},
		"size overflows":    {"", `{"layers":[{"digest":"` + someSHA256 + `","size":99999999999999999999}]}`},
		"layers no list":    {"", `{"layers":{}}`},
		"type no string":    {"", `{"mediaType":1,"layers":[]}`},
		"config no object":  {"", `{"config":[],"layers":[]}`},
	} {
		if m, err := ParseManifest(c.contentType, []byte(c.body)); err == nil {
			t.Errorf("%s: accepted as %+v", name, m)
		}
	}
}

func TestCheckManifest(t *testing.T) {
	body := []byte(plainImage)
	if _, err := CheckManifest(digest.SHA512.FromBytes(body), "", body); err != nil {
		t.Error(err)
	}
	if _, err := CheckManifest(someSHA256, "", body); err == nil || !strings.Contains(err.Error(), someSHA256) {
		t.Errorf("a wrong digest gives %v", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add("", plainImage)
	f.Add(v1.MediaTypeImageIndex, plainIndex)
	f.Add("", `{"manifests":[],"layers":[]}`)
	f.Fuzz(func(t *testing.T, contentType, body string) {
		m, err := ParseManifest(contentType, []byte(body))
		if err != nil {
			return
		}
		if len(m.Manifests) > 0 && len(m.Blobs) > 0 && (m.MediaType == v1.MediaTypeImageIndex || m.MediaType == v1.MediaTypeImageManifest) {
			t.Fatalf("read as index and image at once: %+v", m)
		}
		for _, d := range append(m.Manifests, m.Blobs...) {
			if _, err := ParseDigest(string(d.Digest)); err != nil || d.Size < 0 {
				t.Fatalf("descriptor %+v passed", d)
			}
		}
	})
}
