package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifestSize is the largest manifest accepted, in bytes: the limit that
// the distribution specification sets for registries.
const MaxManifestSize = 4 << 20

// Media types of Docker, which image-spec does not list.
const (
	MediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig       = "application/vnd.docker.container.image.v1+json"
)

// AcceptAll names every kind of manifest that can be served, for the Accept
// header: some registries do not find what is not named there.
var AcceptAll = []string{
	v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, MediaTypeDockerManifestList, MediaTypeDockerManifest, "*/*",
}

// plainJSON says nothing about the kind of a manifest; some origins send it.
const plainJSON = "application/json"

// Manifest is what Shoal needs to know of a manifest or an index.
type Manifest struct {
	// MediaType is the type by which the document is served.
	MediaType string
	// Manifests are the children of an index.
	Manifests []v1.Descriptor
	// Blobs are the config and the layers of an image, in that order. Sizes
	// are claims of whoever wrote the manifest.
	Blobs []v1.Descriptor
}

// longManifest is the length of a manifest, in bytes, from which on parsing
// holds one. Those of images have a few KiB.
const longManifest = 256 << 10

var parsing = make(chan struct{}, 1)

// ParseManifest reads a manifest that came with the given Content-Type,
// which may be empty. A document that could be read in two ways is refused
// (CVE-2021-41190): one whose mediaType is not the type it came with, or that
// is index and image at once. Schema 1 is refused: its digest does not cover
// the bytes that are sent.
//
// A parsed manifest may take ten times its length of memory, so long ones are
// parsed one at a time.
func ParseManifest(contentType string, body []byte) (Manifest, error) {
	if len(body) > longManifest {
		parsing <- struct{}{}
		defer func() { <-parsing }()
	}
	// Into a map first: decoding to a struct would also take "Layers".
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(body, &doc); err != nil {
		return Manifest{}, fmt.Errorf("manifest is not a JSON object: %w", err)
	}
	m, err := mediaType(contentType, doc)
	if err != nil {
		return Manifest{}, err
	}
	if err := checkShape(m.MediaType, doc); err != nil {
		return Manifest{}, err
	}
	if m.Manifests, err = descriptors(doc, "manifests"); err != nil {
		return Manifest{}, err
	}
	if raw, ok := doc["config"]; ok {
		config, err := descriptor("config", raw)
		if err != nil {
			return Manifest{}, err
		}
		m.Blobs = append(m.Blobs, config)
	}
	for _, key := range []string{"layers", "blobs"} {
		list, err := descriptors(doc, key)
		if err != nil {
			return Manifest{}, err
		}
		m.Blobs = append(m.Blobs, list...)
	}
	return m, nil
}

func mediaType(contentType string, doc map[string]json.RawMessage) (m Manifest, err error) {
	var inner string
	if raw, ok := doc["mediaType"]; ok {
		if err := json.Unmarshal(raw, &inner); err != nil {
			return m, fmt.Errorf("manifest field mediaType: %w", err)
		}
	}
	if contentType != "" {
		if m.MediaType, _, err = mime.ParseMediaType(contentType); err != nil {
			return m, fmt.Errorf("content type %.100q of the manifest: %w", contentType, err)
		}
		if inner != "" && inner != m.MediaType && m.MediaType != plainJSON {
			return m, fmt.Errorf("manifest says that it is %.100q but came as %.100q", inner, m.MediaType)
		}
		if m.MediaType != plainJSON {
			if !strings.HasSuffix(m.MediaType, "+json") {
				return m, fmt.Errorf("content type %.100q is not that of a manifest", m.MediaType)
			}
			return m, nil
		}
	}
	m.MediaType = inner
	if inner != "" {
		return m, nil
	}
	// Only OCI documents may go without mediaType.
	switch {
	case doc["manifests"] != nil:
		m.MediaType = v1.MediaTypeImageIndex
	case doc["layers"] != nil:
		m.MediaType = v1.MediaTypeImageManifest
	default:
		return m, errors.New("document is neither an image manifest nor an index")
	}
	return m, nil
}

func checkShape(mediaType string, doc map[string]json.RawMessage) error {
	_, index := doc["manifests"]
	_, layers := doc["layers"]
	_, config := doc["config"]
	_, fsLayers := doc["fsLayers"]
	image := layers || config
	switch {
	case index && image:
		return errors.New("manifest is both an index and an image")
	case fsLayers:
		return errors.New("manifest is of the obsolete schema 1")
	}
	switch mediaType {
	case v1.MediaTypeImageIndex, MediaTypeDockerManifestList:
		if image || !index {
			return fmt.Errorf("manifest of type %s has no manifests", mediaType)
		}
	case v1.MediaTypeImageManifest, MediaTypeDockerManifest:
		if index || !image {
			return fmt.Errorf("manifest of type %s has no layers", mediaType)
		}
	}
	return nil
}

func descriptors(doc map[string]json.RawMessage, key string) ([]v1.Descriptor, error) {
	raw, ok := doc[key]
	if !ok {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("manifest field %s: %w", key, err)
	}
	out := make([]v1.Descriptor, len(list))
	for i, r := range list {
		var err error
		if out[i], err = descriptor(fmt.Sprintf("%s[%d]", key, i), r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func descriptor(where string, raw json.RawMessage) (v1.Descriptor, error) {
	var d v1.Descriptor
	if err := json.Unmarshal(raw, &d); err != nil {
		return d, fmt.Errorf("manifest field %s: %w", where, err)
	}
	if _, err := ParseDigest(string(d.Digest)); err != nil {
		return d, fmt.Errorf("manifest field %s: %w", where, err)
	}
	if d.Size < 0 {
		return d, fmt.Errorf("manifest field %s: size %d is negative", where, d.Size)
	}
	return d, nil
}

// CheckManifest verifies that body has the digest want and parses it.
func CheckManifest(want digest.Digest, contentType string, body []byte) (Manifest, error) {
	if got := want.Algorithm().FromBytes(body); got != want {
		return Manifest{}, fmt.Errorf("manifest %s: the body has digest %s", want, got)
	}
	m, err := ParseManifest(contentType, body)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w", want, err)
	}
	return m, nil
}
