package mirror

import (
	"bytes"
	"context"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry"
)

// AcceptAll names every kind of manifest that can be served, for requests of
// our own by digest.
var AcceptAll = registry.AcceptAll

// manifest answers GET and HEAD of a manifest.
func (c *call) manifest(ctx context.Context) {
	d, body := c.path.Digest, []byte(nil)
	if c.path.Tag != "" {
		r, err := c.resolve(ctx)
		if err != nil {
			c.fail(err)
			return
		}
		c.sizes.Add(sizeKey{c.repo, r.Digest}, r.Size)
		if c.r.Method == http.MethodHead {
			c.answerManifest(r.Descriptor, nil)
			return
		}
		d, body = r.Digest, r.Body
	}
	m, body, err := c.manifestByDigest(ctx, d, body)
	if err != nil {
		c.fail(err)
		return
	}
	c.learn(m)
	c.answerManifest(Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(body))}, body)
}

func (c *call) answerManifest(d Descriptor, body []byte) {
	c.content(d.MediaType, d.Digest, d.Size)
	if c.ifNoneMatch(`"` + d.Digest.String() + `"`) {
		c.w.Header().Del("Content-Length")
		c.status(http.StatusNotModified)
		return
	}
	c.status(http.StatusOK)
	if c.r.Method != http.MethodHead {
		c.write(body)
	}
}

// resolve finds out what the tag stands for. The caller of a HEAD always gets
// a size; that of a GET may get the body along.
func (c *call) resolve(ctx context.Context) (Manifest, error) {
	return c.tags.resolve(ctx, tagRequest{
		repo: c.repo, tag: c.path.Tag, accept: c.r.Header["Accept"],
		caller: c.caller, proven: c.proven, body: c.r.Method == http.MethodGet,
	})
}

// manifestByDigest returns the manifest with that digest. body is the
// manifest, if it is at hand.
func (c *call) manifestByDigest(ctx context.Context, d digest.Digest, body []byte) (registry.Manifest, []byte, error) {
	// Who has just been given the manifest by the origin may have it.
	r, err := c.open(ctx, Request{Digest: d, Manifest: true, Body: body, Proven: body != nil})
	if err != nil {
		return registry.Manifest{}, nil, err
	}
	defer r.Close()
	if r.Size() > registry.MaxManifestSize {
		return registry.Manifest{}, nil, &registry.Error{
			Status: http.StatusBadGateway, Code: registry.CodeManifestInvalid,
			Message: fmt.Sprintf("manifest %s has %d bytes, more than %d", d, r.Size(), registry.MaxManifestSize),
		}
	}
	var buf bytes.Buffer
	buf.Grow(int(r.Size()))
	if _, err := r.CopyRange(ctx, &buf, 0, r.Size()); err != nil {
		return registry.Manifest{}, nil, err
	}
	m, err := registry.ParseManifest("", buf.Bytes())
	if err != nil {
		// A blob that somebody asks for as if it were a manifest.
		return registry.Manifest{}, nil, &registry.Error{Status: http.StatusNotFound, Code: registry.CodeManifestUnknown, Message: fmt.Sprintf("%s: %v", d, err)}
	}
	return m, buf.Bytes(), nil
}

// learn remembers the sizes of what a manifest names.
func (c *call) learn(m registry.Manifest) {
	for _, list := range [][]v1.Descriptor{m.Blobs, m.Manifests} {
		for _, named := range list {
			c.sizes.Add(sizeKey{c.repo, named.Digest}, named.Size)
		}
	}
}
