package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shoalproject/shoal/registry"
)

// portion is how many bytes of a blob go to a client under one write deadline,
// portionOfManifest the same of everything else.
const (
	portion           = 16 << 20
	portionOfManifest = 256 << 10
)

const blobType = "application/octet-stream"

// blob answers GET and HEAD of a blob.
func (c *call) blob(ctx context.Context) (cut bool) {
	if c.r.Method == http.MethodHead {
		c.headBlob(ctx)
		return false
	}
	wanted := c.wantedRange()
	body, err := c.open(ctx, Request{Offset: wanted.start(), Whole: wanted.whole(), OpenEnd: wanted.set && wanted.last < 0})
	if err != nil {
		c.fail(err)
		return false
	}
	defer body.Close()
	size := body.Size()
	part, err := wanted.of(size)
	if err != nil {
		c.unsatisfiable(size)
		return false
	}
	ready, err := c.wait(ctx, body, part)
	if err != nil {
		c.fail(err)
		return false
	}
	c.content(blobType, c.path.Digest, part.n)
	c.w.Header().Set("Accept-Ranges", "bytes")
	if wanted.set {
		c.w.Header().Set("Content-Range", part.contentRange(size))
		c.status(http.StatusPartialContent)
	} else {
		c.status(http.StatusOK)
	}
	return !c.copy(ctx, body, part, ready, portion, c.cfg.WriteStall)
}

// wait waits a while for the first byte: an error that comes meanwhile can
// still be said.
func (c *call) wait(ctx context.Context, body Reader, part span) (ready bool, err error) {
	if part.n == 0 {
		// Headers alone would already be all of the empty blob.
		return true, body.Wait(ctx, 0)
	}
	soon, cancel := context.WithTimeout(ctx, c.cfg.HeaderWait)
	defer cancel()
	err = body.Wait(soon, part.off)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		return false, nil
	}
	return true, err
}

// wantedRange returns the range that is asked for, if it applies to the
// content under this digest.
func (c *call) wantedRange() byteRange {
	if tag := c.r.Header.Get("If-Range"); tag != "" && tag != `"`+c.path.Digest.String()+`"` {
		return byteRange{}
	}
	list := c.r.Header["Range"]
	if len(list) != 1 {
		return byteRange{}
	}
	return parseRange(list[0])
}

// copy sends part of body and reports whether all of it went. If it is not
// ready, the client gets the headers while it waits. It has stall for each
// portion.
func (c *call) copy(ctx context.Context, body Reader, part span, ready bool, portion int64, stall time.Duration) bool {
	conn := http.NewResponseController(c.w)
	if !ready {
		if err := conn.Flush(); err != nil {
			c.access.Err = err
			return false
		}
	}
	for off, end := part.off, part.off+part.n; off < end; {
		if err := conn.SetWriteDeadline(time.Now().Add(stall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			c.access.Err = err
			return false
		}
		n, err := body.CopyRange(ctx, c.w, off, min(end-off, portion))
		off += n
		c.access.Bytes += n
		if err != nil {
			c.access.Err = err
			return false
		}
	}
	return true
}

func (c *call) unsatisfiable(size int64) {
	c.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	c.fail(&registry.Error{Status: http.StatusRequestedRangeNotSatisfiable, Code: registry.CodeUnsupported, Message: errUnsatisfiable.Error()})
}

// open opens the content that the request names, after asking the origin for
// permission if the caller must show it and has not lately.
func (c *call) open(ctx context.Context, req Request) (Reader, error) {
	req.Caller, req.Repo = c.caller, c.repo
	if req.Digest == "" {
		req.Digest = c.path.Digest
	}
	if req.Body == nil {
		c.settle(ctx, req.Digest, req.Manifest)
	}
	req.Proven = req.Proven || c.may(req.Digest)
	if req.Size == 0 {
		req.Size, _ = c.sizes.Get(sizeKey{c.repo, req.Digest})
	}
	body, err := c.cfg.Blobs.Open(ctx, req)
	if !errors.Is(err, ErrUnproven) {
		c.learnt(req, err)
		return body, err
	}
	size, err := c.prove(ctx, req.Digest, req.Manifest)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		req.Size = size
	}
	req.Proven = true
	return c.cfg.Blobs.Open(ctx, req)
}

func (c *call) headBlob(ctx context.Context) {
	size, err := c.blobSize(ctx)
	if err != nil {
		c.fail(err)
		return
	}
	c.content(blobType, c.path.Digest, size)
	c.w.Header().Set("Accept-Ranges", "bytes")
	c.status(http.StatusOK)
}

// blobSize returns the size of a blob without getting it: from what is here,
// from the origin, or from a manifest that named it if the origin cannot be
// asked.
func (c *call) blobSize(ctx context.Context) (int64, error) {
	d := c.path.Digest
	if !c.may(d) {
		if size, err := c.prove(ctx, d, false); err != nil || size >= 0 {
			return size, err
		}
	}
	if size, ok := c.cfg.Blobs.Stat(d); ok {
		return size, nil
	}
	// A blob that a manifest names may be missing: a GET would find out.
	size, err := c.cfg.Origin.HeadBlob(ctx, c.caller, c.repo, d)
	if err != nil && c.cfg.Origin.Unavailable(err) {
		if size, ok := c.sizes.Get(sizeKey{c.repo, d}); ok {
			return size, nil
		}
	}
	return size, err
}

// ifNoneMatch reports whether the client has the content under that entity
// tag already.
func (c *call) ifNoneMatch(etag string) bool {
	for _, header := range c.r.Header["If-None-Match"] {
		for _, tag := range strings.Split(header, ",") {
			if tag = strings.TrimSpace(tag); tag == etag || tag == "*" {
				return true
			}
		}
	}
	return false
}
