package registrytest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoalproject/shoal/registry"
)

type content struct {
	r    io.ReaderAt
	size int64
}

type manifest struct {
	mediaType string
	body      []byte
	subject   digest.Digest // of the manifest that this one refers to, or ""
	// What a list of referrers says of it, beside its descriptor.
	artifactType string
	annotations  map[string]string
}

type repository struct {
	blobs     map[digest.Digest]bool
	manifests map[digest.Digest]manifest
	tags      map[string]digest.Digest
}

func (o *Origin) repo(name string) *repository {
	r := o.repos[name]
	if r == nil {
		r = &repository{blobs: map[digest.Digest]bool{}, manifests: map[digest.Digest]manifest{}, tags: map[string]digest.Digest{}}
		o.repos[name] = r
	}
	return r
}

// AddBlob puts data into a repository and returns its sha256 digest.
func (o *Origin) AddBlob(repo string, data []byte) digest.Digest {
	d := digest.FromBytes(data)
	o.AddVirtual(repo, d, bytes.NewReader(data), int64(len(data)))
	return d
}

// AddVirtual puts a blob into a repository whose bytes are read from r when
// they are asked for. The digest is taken as given: use Digest to compute it,
// or a wrong one to make a corrupt origin.
func (o *Origin) AddVirtual(repo string, d digest.Digest, r io.ReaderAt, size int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blobs[d] = content{r: r, size: size}
	o.repo(repo).blobs[d] = true
}

// Digest returns the sha256 digest of the first size bytes of r.
func Digest(r io.ReaderAt, size int64) (digest.Digest, error) {
	return digest.FromReader(io.NewSectionReader(r, 0, size))
}

// Remove takes a blob or manifest out of a repository, with its tags.
func (o *Origin) Remove(repo string, d digest.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.repo(repo)
	delete(r.blobs, d)
	delete(r.manifests, d)
	for tag, to := range r.tags {
		if to == d {
			delete(r.tags, tag)
		}
	}
}

// AddManifest puts a manifest, index or anything else into a repository,
// under a tag if it is not "", and returns its digest. Nothing is checked.
func (o *Origin) AddManifest(repo, tag, mediaType string, body []byte) digest.Digest {
	d := digest.FromBytes(body)
	var doc struct {
		Subject      *v1.Descriptor    `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Config       v1.Descriptor     `json:"config"`
		Annotations  map[string]string `json:"annotations"`
	}
	m := manifest{mediaType: mediaType, body: body}
	if json.Unmarshal(body, &doc) == nil && doc.Subject != nil {
		m.subject = doc.Subject.Digest
		m.artifactType = cmp.Or(doc.ArtifactType, doc.Config.MediaType)
		m.annotations = doc.Annotations
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.repo(repo)
	r.manifests[d] = m
	if tag != "" {
		r.tags[tag] = d
	}
	return d
}

// Tag points a tag at a manifest.
func (o *Origin) Tag(repo, tag string, d digest.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.repo(repo).tags[tag] = d
}

// Image is what AddImage has put into the origin.
type Image struct {
	Manifest v1.Descriptor
	Config   v1.Descriptor
	Layers   []v1.Descriptor
}

// Layer is a layer to be: bytes that are already there or are generated.
type Layer struct {
	Digest digest.Digest
	Size   int64
}

// AddImage puts an image of the given layers into a repository, under a tag if
// it is not "".
func (o *Origin) AddImage(repo, tag string, layers ...[]byte) Image {
	list := make([]Layer, len(layers))
	for i, data := range layers {
		list[i] = Layer{o.AddBlob(repo, data), int64(len(data))}
	}
	return o.AddImageOf(repo, tag, list...)
}

// AddImageOf is AddImage for layers that AddVirtual has put there.
func (o *Origin) AddImageOf(repo, tag string, layers ...Layer) Image {
	var img Image
	conf := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range layers {
		img.Layers = append(img.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size})
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.Digest)
	}
	raw := mustJSON(conf)
	img.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: o.AddBlob(repo, raw), Size: int64(len(raw))}
	body := mustJSON(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: img.Config, Layers: append([]v1.Descriptor{}, img.Layers...),
	})
	d := o.AddManifest(repo, tag, v1.MediaTypeImageManifest, body)
	img.Manifest = v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: d, Size: int64(len(body))}
	return img
}

// AddIndex puts an index of the given manifests into a repository and returns
// its descriptor.
func (o *Origin) AddIndex(repo, tag string, manifests ...v1.Descriptor) v1.Descriptor {
	body := mustJSON(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: append([]v1.Descriptor{}, manifests...),
	})
	d := o.AddManifest(repo, tag, v1.MediaTypeImageIndex, body)
	return v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: d, Size: int64(len(body))}
}

// ManifestBody returns the bytes of a manifest, or nil.
func (o *Origin) ManifestBody(repo string, d digest.Digest) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.repo(repo).manifests[d].body
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("registrytest: %v", err)) // only of our own types
	}
	return b
}

// Random is an endless source of bytes that do not compress and repeat for
// the same seed, readable at any offset without holding any.
type Random uint64

// ReadAt fills p; it never fails.
func (s Random) ReadAt(p []byte, off int64) (int, error) {
	var word [8]byte
	for n := 0; n < len(p); {
		at := uint64(off) + uint64(n)
		binary.LittleEndian.PutUint64(word[:], mix(uint64(s)^mix(at/8)))
		n += copy(p[n:], word[at%8:])
	}
	return len(p), nil
}

// mix is the finalizer of splitmix64 (Steele, Lea, Flood 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Zeros is an endless source of zero bytes, for sparse blobs.
type Zeros struct{}

// ReadAt clears p; it never fails.
func (Zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (o *Origin) findBlob(repo string, d digest.Digest) (content, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.repos[repo]
	if r == nil || !r.blobs[d] {
		return content{}, false
	}
	c, ok := o.blobs[d]
	return c, ok
}

func (o *Origin) findManifest(p registry.Path) (manifest, digest.Digest, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.repos[p.Name]
	if r == nil {
		return manifest{}, "", false
	}
	d := p.Digest
	if p.Tag != "" {
		d = r.tags[p.Tag]
	}
	m, ok := r.manifests[d]
	return m, d, ok
}

func (o *Origin) listTags(repo string) ([]string, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.repos[repo]
	if r == nil {
		return nil, false
	}
	tags := make([]string, 0, len(r.tags))
	for t := range r.tags {
		tags = append(tags, t)
	}
	slices.Sort(tags)
	return tags, true
}

func (o *Origin) listReferrers(repo string, subject digest.Digest) []v1.Descriptor {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := []v1.Descriptor{}
	if r := o.repos[repo]; r != nil {
		for d, m := range r.manifests {
			if m.subject == subject {
				out = append(out, v1.Descriptor{
					MediaType: m.mediaType, Digest: d, Size: int64(len(m.body)),
					ArtifactType: m.artifactType, Annotations: m.annotations,
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b v1.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return out
}
