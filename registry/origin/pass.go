package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoalproject/shoal/registry"
)

// maxPassBody bounds an answer that is passed on, in bytes. Listings come in
// pages; a referrers index is a manifest.
const maxPassBody = registry.MaxManifestSize

// passed are the headers of an answer that mean something to the caller.
var passed = []string{"Content-Type", "Link", "Docker-Content-Digest", "OCI-Filters-Applied", "OCI-Subject"}

// Pass gets tags/list or referrers/DIGEST, the path after the repository
// name, and returns the answer: its status (2xx), the headers that have a
// meaning, and its body in memory, at most registry.MaxManifestSize. Of
// header only Accept is sent. Link is as the origin wrote it: its path is
// below the origin's repository name, the endpoint's prefix included.
func (c *Client) Pass(ctx context.Context, t Target, path string, query url.Values, header http.Header) (*http.Response, error) {
	e, err := c.endpoint(t)
	if err != nil {
		return nil, err
	}
	p, err := registry.ParsePath("/v2/x/" + path)
	if err != nil || p.Name != "x" || p.Kind != registry.Tags && p.Kind != registry.Referrers {
		return nil, &registry.Error{Status: http.StatusNotFound, Code: registry.CodeUnsupported, Message: "not a listing of the pull API"}
	}
	q := &call{
		e: e, t: t, method: http.MethodGet, path: path, what: strings.Replace(path, "/", " ", 1),
		query: url.Values{}, header: http.Header{}, unknown: registry.CodeNameUnknown,
	}
	if p.Kind == registry.Referrers {
		// A registry that has the API answers 200 with an empty list. To
		// clients a 404 means that it does not have it, and that referrers
		// are to be looked for by tag; NAME_UNKNOWN would mean that there is
		// no such repository.
		q.unknown = registry.CodeUnsupported
	}
	for k, v := range query {
		if k != "ns" { // ours, not the origin's
			q.query[k] = v
		}
	}
	if accept := header.Values("Accept"); len(accept) > 0 {
		q.header["Accept"] = accept
	}
	var out *http.Response
	err = q.repeat(ctx, func() error {
		out, err = q.pass(ctx)
		return err
	})
	return out, err
}

func (q *call) pass(ctx context.Context) (*http.Response, error) {
	resp, err := q.do(ctx)
	if err != nil {
		return nil, err
	}
	defer drain(resp)
	if err := q.checkPlain(resp, http.StatusOK); err != nil {
		return nil, err
	}
	release, err := q.e.reserve(ctx, resp.ContentLength)
	if err != nil {
		return nil, q.failed(ctx, err)
	}
	defer release()
	b, err := readLong(resp.Body, resp.ContentLength, maxPassBody)
	switch {
	case errors.Is(err, errTooLong):
		return nil, q.badAnswer("a listing of more than %d bytes", maxPassBody)
	case err != nil:
		return nil, q.failed(ctx, err)
	}
	if err := checkListing(q.unknown == registry.CodeUnsupported, b); err != nil {
		return nil, q.badAnswer("%v", err)
	}
	out := &http.Response{
		Status: resp.Status, StatusCode: resp.StatusCode, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, ContentLength: int64(len(b)), Body: io.NopCloser(bytes.NewReader(b)),
	}
	for _, k := range passed {
		if v := resp.Header.Values(k); len(v) > 0 {
			out.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	return out, nil
}

// checkListing refuses what is not a listing: it is handed to the caller, and
// an origin can redirect the question to a place that the caller cannot reach.
func checkListing(referrers bool, body []byte) error {
	if referrers {
		m, err := registry.ParseManifest("", body)
		if err != nil || len(m.Blobs) > 0 {
			return errors.New("something that is not an index of referrers")
		}
		return nil
	}
	var doc struct {
		Tags *[]string `json:"tags"`
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || json.Unmarshal(body, &doc) != nil || fields["tags"] == nil {
		return errors.New("something that is not a list of tags")
	}
	return nil
}
