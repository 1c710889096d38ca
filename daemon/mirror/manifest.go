package mirror

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

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
	c.settle(ctx, d, true)
	c.learn(d, m)
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

// resolve finds out what the tag stands for: as the caller's like were told a
// moment ago, as the origin says now, or, if it cannot be asked, as it said
// last. The caller of a HEAD always gets a size; that of a GET may get the
// body along.
func (c *call) resolve(ctx context.Context) (Manifest, error) {
	req := tagRequest{repo: c.repo, tag: c.path.Tag, accept: c.r.Header["Accept"], caller: c.caller}
	old, known := c.tags.last(req)
	if known && time.Since(old.at) < c.cfg.TagTTL && c.may(old.Digest) {
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	// Of a tag that is known, the manifest is likely here: asking for its
	// digest is enough. Origins count GETs of manifests, not HEADs.
	req.body = c.r.Method == http.MethodGet && !known
	m, err := c.tags.resolve(ctx, req)
	if err == nil {
		c.granted(m.Digest)
		if c.unsettled(m.Digest) {
			c.probe(ctx, m.Digest, true, req) // it is wanted next
		}
		c.askIfPublic(req.tag, req.accept)
		return m, nil
	}
	if c.cfg.Origin.Unavailable(err) {
		return c.resolveOffline(req, err)
	}
	c.refused(c.caller, old.Digest, err)
	return Manifest{}, err
}

// resolveOffline returns what the tag stood for last, if that may be told to
// the caller. err says why the origin cannot be asked.
func (c *call) resolveOffline(req tagRequest, err error) (Manifest, error) {
	for _, who := range c.likes() {
		req.caller = who
		old, known := c.tags.last(req)
		if !known || c.offline(old.Digest, err) != nil {
			continue
		}
		c.cfg.Logger.Warn("origin cannot be asked, tag is served as it was", "repository", req.repo, "tag", req.tag, "digest", old.Digest, "age", time.Since(old.at), "err", err)
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	if old, known := c.tags.learned(req); known && c.offline(old.Digest, err) == nil {
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	return Manifest{}, c.offline("", err)
}

// manifestByDigest returns the manifest with that digest. body is the
// manifest, if it is at hand.
func (c *call) manifestByDigest(ctx context.Context, d digest.Digest, body []byte) (registry.Manifest, []byte, error) {
	// Who has just been given the manifest by the origin may have it.
	r, err := c.open(ctx, Request{Digest: d, Manifest: true, Body: body, Whole: true, Proven: body != nil})
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

// learn remembers what a manifest says of what it names: sizes, and that who
// may have the manifest may have those.
func (c *call) learn(d digest.Digest, m registry.Manifest) {
	var named []digest.Digest
	for _, list := range [][]v1.Descriptor{m.Blobs, m.Manifests} {
		for _, n := range list {
			c.sizes.Add(sizeKey{c.repo, n.Digest}, n.Size)
			// Registries see to it that what a manifest names is in its
			// repository, but for what is elsewhere anyway.
			if len(n.URLs) == 0 {
				named = append(named, n.Digest)
			}
		}
	}
	for _, who := range c.likes() {
		c.permits.extend(who, c.repo, d, named)
	}
	c.cfg.Sharing.Names(d, named)
}
