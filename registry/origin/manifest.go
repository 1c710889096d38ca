package origin

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/shoalproject/shoal/registry"
)

// Manifest is a manifest or index as the origin sent it, verified.
type Manifest struct {
	// MediaType is the type to serve it by.
	MediaType string
	// Digest is the digest of Body.
	Digest digest.Digest
	Body   []byte
	Parsed registry.Manifest
}

// Descriptor is what a HEAD says of a manifest. It is a claim.
type Descriptor struct {
	MediaType string
	// Digest is "" if the origin sends none.
	Digest digest.Digest
	// Size is in bytes, -1 if the origin sends none.
	Size int64
}

// Manifest gets the manifest that ref, a tag or digest, names. By digest the
// body is verified; by tag it is held against the digest that the origin
// sends, if it sends one. More than registry.MaxManifestSize is an error.
func (c *Client) Manifest(ctx context.Context, t Target, ref string, accept []string) (*Manifest, error) {
	q, err := c.manifestCall(http.MethodGet, t, ref, accept)
	if err != nil {
		return nil, err
	}
	var m *Manifest
	err = q.repeat(ctx, func() error {
		m, err = q.manifest(ctx, ref)
		return err
	})
	return m, err
}

// HeadManifest asks what ref, a tag or digest, names.
func (c *Client) HeadManifest(ctx context.Context, t Target, ref string, accept []string) (*Descriptor, error) {
	q, err := c.manifestCall(http.MethodHead, t, ref, accept)
	if err != nil {
		return nil, err
	}
	var d *Descriptor
	err = q.repeat(ctx, func() error {
		resp, err := q.do(ctx)
		if err != nil {
			return err
		}
		defer drain(resp)
		d, err = q.descriptor(resp, ref)
		return err
	})
	return d, err
}

func (c *Client) manifestCall(method string, t Target, ref string, accept []string) (*call, error) {
	e, err := c.endpoint(t)
	if err != nil {
		return nil, err
	}
	if p, err := registry.ParsePath("/v2/x/manifests/" + ref); err != nil || p.Kind != registry.Manifests || p.Name != "x" {
		return nil, &registry.Error{Status: http.StatusBadRequest, Code: registry.CodeManifestInvalid, Message: "not a tag or digest"}
	}
	return &call{
		e: e, t: t, method: method, path: "manifests/" + ref, what: "manifest " + ref,
		header: http.Header{"Accept": accept}, unknown: registry.CodeManifestUnknown,
	}, nil
}

func (q *call) manifest(ctx context.Context, ref string) (*Manifest, error) {
	resp, err := q.do(ctx)
	if err != nil {
		return nil, err
	}
	defer drain(resp)
	if err := q.checkPlain(resp, http.StatusOK); err != nil {
		return nil, err
	}
	if err := q.checkSchema(resp); err != nil {
		return nil, err
	}
	if resp.ContentLength > registry.MaxManifestSize {
		return nil, q.badAnswer("a manifest of %d bytes, more than %d", resp.ContentLength, registry.MaxManifestSize)
	}
	release, err := q.e.reserve(ctx, resp.ContentLength)
	if err != nil {
		return nil, q.failed(ctx, err)
	}
	defer release()
	b, err := readLong(resp.Body, resp.ContentLength, registry.MaxManifestSize)
	switch {
	case errors.Is(err, errTooLong):
		return nil, q.badAnswer("a manifest of more than %d bytes", registry.MaxManifestSize)
	case err != nil:
		return nil, q.failed(ctx, err)
	}
	want, err := q.wanted(resp, ref)
	if err != nil {
		return nil, err
	}
	if want == "" {
		want = digest.FromBytes(b)
	}
	parsed, err := registry.CheckManifest(want, resp.Header.Get("Content-Type"), b)
	if err != nil {
		err = q.badAnswer("%v", err)
		var f *failure
		errors.As(err, &f)
		f.retry = true // a proxy on the way may have mangled it once
		return nil, err
	}
	return &Manifest{MediaType: parsed.MediaType, Digest: want, Body: b, Parsed: parsed}, nil
}

// wanted returns the digest that the body must have: that of ref, else the
// one that the origin sent, else "".
func (q *call) wanted(resp *http.Response, ref string) (digest.Digest, error) {
	if strings.Contains(ref, ":") {
		return digest.Digest(ref), nil
	}
	sent := resp.Header.Get("Docker-Content-Digest")
	if sent == "" {
		return "", nil
	}
	d, err := registry.ParseDigest(sent)
	if err != nil {
		return "", q.badAnswer("Docker-Content-Digest: %v", err)
	}
	return d, nil
}

func (q *call) descriptor(resp *http.Response, ref string) (*Descriptor, error) {
	if err := q.checkPlain(resp, http.StatusOK); err != nil {
		return nil, err
	}
	if err := q.checkSchema(resp); err != nil {
		return nil, err
	}
	d := &Descriptor{MediaType: resp.Header.Get("Content-Type"), Size: resp.ContentLength}
	t, _, err := mime.ParseMediaType(d.MediaType)
	if err == nil && !strings.HasSuffix(t, "+json") && t != "application/json" {
		return nil, q.badAnswer("a manifest of type %.100q", t)
	}
	if d.Digest, err = q.wanted(resp, ref); err != nil {
		return nil, err
	}
	if sent := resp.Header.Get("Docker-Content-Digest"); strings.Contains(ref, ":") && sent != "" && sent != ref {
		return nil, q.badAnswer("Docker-Content-Digest %.100q", sent)
	}
	if d.Size > registry.MaxManifestSize {
		return nil, q.badAnswer("a manifest of %d bytes, more than %d", d.Size, registry.MaxManifestSize)
	}
	return d, nil
}

// checkSchema refuses manifests of schema 1, whose digest does not cover the
// bytes that are sent. A HEAD is answered as a GET would be.
func (q *call) checkSchema(resp *http.Response) error {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(t, "application/vnd.docker.distribution.manifest.v1+") {
		return nil
	}
	return &failure{answered: true, reg: &registry.Error{
		Status: http.StatusNotFound, Code: registry.CodeManifestUnknown,
		Message: q.String() + ": it is of the obsolete schema 1, which cannot be verified and is not served here; get it from the registry itself",
	}}
}

// checkPlain holds an answer to a status and refuses encodings and HTML,
// which is what captive portals and login pages answer with.
func (q *call) checkPlain(resp *http.Response, status int) error {
	if resp.StatusCode != status {
		return q.badAnswer("status %d instead of %d", resp.StatusCode, status)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return q.badAnswer("Content-Encoding %.40q", enc)
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && (t == "text/html" || t == "application/xhtml+xml") {
		return q.badAnswer("an HTML page")
	}
	return nil
}
