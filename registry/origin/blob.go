package origin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"
	"github.com/shoalproject/shoal/registry"
)

// HeadBlob returns the size of a blob in bytes, as the origin says.
func (c *Client) HeadBlob(ctx context.Context, t Target, d digest.Digest) (size int64, err error) {
	q, err := c.blobCall(http.MethodHead, t, d)
	if err != nil {
		return 0, err
	}
	err = q.repeat(ctx, func() error {
		resp, err := q.do(ctx)
		if err != nil {
			return err
		}
		defer drain(resp)
		if size = resp.ContentLength; size < 0 {
			return q.badAnswer("no Content-Length")
		}
		return q.checkPlain(resp, http.StatusOK)
	})
	if err == nil || !headUnsupported(err) {
		return size, err
	}
	// Some stores sign URLs for GET alone: the first byte's Content-Range
	// tells the size too.
	s, err := c.Blob(ctx, t, d, 0, 1)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if s.Size() < 0 {
		return 0, q.badAnswer("neither Content-Length nor Content-Range")
	}
	return s.Size(), nil
}

func headUnsupported(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.answered && !f.limited &&
		(f.reg.Status == http.StatusBadGateway || f.reg.Status == http.StatusMethodNotAllowed)
}

// Blob opens a blob for the bytes from off up to end, exclusive; -1 is to its
// end. The first answer has come when it returns. What is read is not
// verified here.
func (c *Client) Blob(ctx context.Context, t Target, d digest.Digest, off, end int64) (*Stream, error) {
	q, err := c.blobCall(http.MethodGet, t, d)
	if err != nil {
		return nil, err
	}
	if off < 0 || end >= 0 && end <= off || end < -1 {
		return nil, fmt.Errorf("%s: range from %d to %d is empty or not one", q, off, end)
	}
	s := &Stream{ctx: ctx, q: q, start: off, pos: off, end: end, size: -1, first: true}
	err = q.repeat(ctx, s.open)
	if err != nil {
		return nil, err
	}
	s.first = false
	return s, nil
}

func (c *Client) blobCall(method string, t Target, d digest.Digest) (*call, error) {
	e, err := c.endpoint(t)
	if err != nil {
		return nil, err
	}
	if _, err := registry.ParseDigest(string(d)); err != nil {
		return nil, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeDigestInvalid, Message: err.Error()}
	}
	return &call{
		e: e, t: t, method: method, path: "blobs/" + string(d), what: "blob " + string(d),
		header: http.Header{}, unknown: registry.CodeBlobUnknown,
	}, nil
}
