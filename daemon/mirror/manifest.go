package mirror

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

// AcceptAll names every kind of manifest that can be served, for requests of
// our own by digest.
var AcceptAll = registry.AcceptAll

// manifest answers GET and HEAD of a manifest.
// It reports whether the body must be cut short.
func (c *call) manifest(ctx context.Context) (cut bool) {
	defer c.releaseBody()
	d, body := c.path.Digest, []byte(nil)
	if c.path.Tag != "" {
		r, err := c.resolve(ctx)
		if err != nil {
			c.fail(err)
			return false
		}
		c.sizes.Add(sizeKey{c.repo, r.Digest}, r.Size)
		if c.r.Method == http.MethodHead {
			c.announceManifest(r.Descriptor)
			return false
		}
		d, body = r.Digest, r.Body
	}
	f, r, err := c.manifestByDigest(ctx, d, body)
	if err != nil {
		c.fail(err)
		return false
	}
	defer r.Close()
	c.settle(ctx, d, true)
	c.learn(d, f)
	if !c.announceManifest(Descriptor{MediaType: f.mediaType, Digest: d, Size: r.Size()}) {
		return false
	}
	// From the store's file, like a blob: a client that does not read holds
	// no memory.
	return !c.copy(ctx, r, span{0, r.Size()}, true, portionOfManifest, c.cfg.AnswerStall)
}

// announceManifest sends the headers of a manifest, and reports whether the body
// is wanted too.
func (c *call) announceManifest(d Descriptor) bool {
	c.content(d.MediaType, d.Digest, d.Size)
	if c.ifNoneMatch(`"` + d.Digest.String() + `"`) {
		c.w.Header().Del("Content-Length")
		c.status(http.StatusNotModified)
		return false
	}
	c.status(http.StatusOK)
	return c.r.Method != http.MethodHead
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
	req.body = c.r.Method == http.MethodGet && !known && c.reserveBody()
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
	if !req.body {
		err = c.reason(ctx, c.path.Tag, req.accept, err)
	}
	return Manifest{}, err
}

// reason returns why the origin refuses a manifest to a GET, where it was asked
// by a HEAD, whose answer has no body: Harbor says there that an image has not
// been scanned, or who signs.
func (c *call) reason(ctx context.Context, ref string, accept []string, err error) error {
	var e *registry.Error
	if c.r.Method != http.MethodGet || !errors.As(err, &e) {
		return err
	}
	switch {
	case e.Status < 400 || e.Status > 499, e.Status == http.StatusUnauthorized, e.Status == http.StatusNotFound, e.Status == http.StatusTooManyRequests:
		return err
	}
	if _, full := c.cfg.Origin.Manifest(ctx, c.caller, c.repo, ref, accept); full != nil && !c.cfg.Origin.Unavailable(full) {
		return full
	}
	return err
}

// resolveOffline returns what the tag stood for last, if that may be told to
// the caller. err says why the origin cannot be asked.
func (c *call) resolveOffline(req tagRequest, err error) (Manifest, error) {
	for _, who := range c.likes() {
		req.caller = who
		old, known := c.tags.lastFitting(req)
		if !known || c.offline(old.Digest, err) != nil {
			continue
		}
		c.cfg.Logger.Warn("origin cannot be asked, tag is served as it was", "repository", req.repo, "tag", req.tag, "digest", old.Digest, "age", time.Since(old.at), "err", err)
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	if old, known := c.tags.learned(req); known && takes(req.accept, old.MediaType) && c.offline(old.Digest, err) == nil {
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	return Manifest{}, c.offline("", err)
}

// reserveBody reserves memory for a manifest that comes along with what its tag
// stands for, and reports whether there is any.
func (c *call) reserveBody() bool {
	c.reserved = c.bodies.TryAcquire(1)
	return c.reserved
}

func (c *call) releaseBody() {
	if c.reserved {
		c.bodies.Release(1)
		c.reserved = false
	}
}

// manifestByDigest returns what the manifest with that digest says, and a reader
// of it, to be closed. body is the manifest, if it is at hand.
func (c *call) manifestByDigest(ctx context.Context, d digest.Digest, body []byte) (*facts, Reader, error) {
	// Who has just been given the manifest by the origin may have it.
	r, err := c.open(ctx, Request{Digest: d, Manifest: true, Body: body, Whole: true, Proven: body != nil})
	if err != nil {
		return nil, nil, err
	}
	f, err := c.manifests.of(ctx, d, r)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	if len(body) > maxUnreserved {
		// The reader may hold on to the body while its client reads; what is
		// in the store by now needs none.
		r.Close()
		if r, err = c.open(ctx, Request{Digest: d, Manifest: true, Whole: true, Proven: true}); err != nil {
			return nil, nil, err
		}
	}
	c.releaseBody()
	return f, r, nil
}

// learn remembers what a manifest says of what it names: sizes, and that who
// may have the manifest may have those.
func (c *call) learn(d digest.Digest, f *facts) {
	for _, n := range f.named {
		if !n.elsewhere {
			c.sizes.Add(sizeKey{c.repo, n.digest}, n.size)
		}
	}
	for _, who := range c.likes() {
		c.permits.extend(who, c.repo, d, f.inside)
	}
	c.cfg.Sharing.Names(d, f.inside)
}
