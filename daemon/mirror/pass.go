package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoalproject/shoal/registry"
)

// passed are the headers of an answer that are passed on.
var passed = []string{"Content-Type", "Oci-Filters-Applied", "Oci-Tag"}

// pass answers tags and referrers with what the origin says.
func (c *call) pass(ctx context.Context) {
	path := "tags/list"
	if c.path.Kind == registry.Referrers {
		path = "referrers/" + c.path.Digest.String()
	}
	query := c.query
	ns := query["ns"]
	query.Del("ns")
	header := http.Header{}
	if accept := c.r.Header["Accept"]; accept != nil {
		header["Accept"] = accept
	}
	resp, err := c.cfg.Origin.Pass(ctx, c.caller, c.repo, path, query, header)
	if err != nil {
		c.fail(err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.fail(err)
		return
	}
	if n := int64(len(body)); n > small {
		if !c.listings.TryAcquire(n) {
			c.fail(errors.New("too many large listings wait for their clients to read them: try again"))
			return
		}
		defer c.listings.Release(n)
	}
	for _, k := range passed {
		if v := resp.Header[k]; v != nil {
			c.w.Header()[k] = v
		}
	}
	if next := c.nextLink(resp.Header.Get("Link"), ns); next != "" {
		c.w.Header().Set("Link", next)
	}
	c.header(resp.Header.Get("Content-Type"), int64(len(body)))
	c.status(resp.StatusCode)
	if c.r.Method != http.MethodHead {
		c.access.Err = c.write(body)
	}
}

// nextLink makes the origin's link to the next page one that leads through
// the mirror: the path that was asked for, with the origin's query.
func (c *call) nextLink(link string, ns []string) string {
	start, end := strings.IndexByte(link, '<'), strings.IndexByte(link, '>')
	if start < 0 || end < start || !strings.Contains(link[end:], `rel="next"`) && !strings.Contains(link[end:], "rel=next") {
		return ""
	}
	u, err := url.Parse(link[start+1 : end])
	if err != nil {
		return ""
	}
	query := u.Query()
	if len(ns) > 0 {
		query["ns"] = ns
	}
	next := url.URL{Path: c.r.URL.Path, RawQuery: query.Encode()}
	return "<" + next.String() + `>; rel="next"`
}
