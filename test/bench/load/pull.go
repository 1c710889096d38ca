// Package load is the clients: one that pulls an image and hashes it as a
// runtime does, one that throws away what it gets, and one that pushes. It
// knows HTTP and the distribution API, and nothing of who answers.
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Parallel is how many layers a runtime asks for at once: containerd's
// default.
const Parallel = 3

// manifestLimit bounds a manifest, as runtimes do.
const manifestLimit = 4 << 20

// Outcome is what a client prints about what it did.
type Outcome struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
	// Requests that ended well.
	Requests int64 `json:"requests"`
	// Silence is the longest time within one response without a byte, in
	// seconds. Pull does not measure it.
	Silence float64 `json:"silence"`
}

// Pull pulls an image as containerd does: HEAD by tag, GET by digest, then
// config and layers, and verifies every byte. It keeps none.
func Pull(ctx context.Context, base, repo, tag string) (Outcome, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: Parallel, ReadBufferSize: 64 << 10, DisableCompression: true}
	defer transport.CloseIdleConnections()
	c := puller{client: &http.Client{Transport: transport}, base: base + "/v2/" + repo}
	start := time.Now()
	d, err := c.resolve(ctx, tag)
	if err != nil {
		return Outcome{}, err
	}
	var body bytes.Buffer
	if err := c.get(ctx, "/manifests/"+d.String(), d, -1, &body); err != nil {
		return Outcome{}, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(body.Bytes(), &m); err != nil {
		return Outcome{}, fmt.Errorf("manifest %s: %w", d, err)
	}
	out := Outcome{Bytes: int64(body.Len()), Requests: 2}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(Parallel)
	for _, desc := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		out.Bytes += desc.Size
		out.Requests++
		g.Go(func() error { return c.get(ctx, "/blobs/"+desc.Digest.String(), desc.Digest, desc.Size, io.Discard) })
	}
	err = g.Wait()
	out.Seconds = time.Since(start).Seconds()
	return out, err
}

type puller struct {
	client *http.Client
	base   string
}

func (c puller) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest+", */*")
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s", method, req.URL, resp.Status)
	}
	return resp, nil
}

func (c puller) resolve(ctx context.Context, tag string) (digest.Digest, error) {
	resp, err := c.do(ctx, http.MethodHead, "/manifests/"+tag)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return digest.Parse(resp.Header.Get("Docker-Content-Digest"))
}

// get copies a body to w and verifies it; a size of -1 is unknown.
func (c puller) get(ctx context.Context, path string, d digest.Digest, size int64, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	limit := size
	if size < 0 {
		limit = manifestLimit
	}
	v := d.Verifier()
	n, err := io.CopyBuffer(io.MultiWriter(v, w), io.LimitReader(resp.Body, limit+1), make([]byte, 256<<10))
	switch {
	case err != nil:
		return fmt.Errorf("%s after %d bytes: %w", path, n, err)
	case size >= 0 && n != size, n > limit:
		return fmt.Errorf("%s: got %d bytes, want %d", path, n, size)
	case !v.Verified():
		return fmt.Errorf("%s: wrong bytes", path)
	}
	return nil
}
