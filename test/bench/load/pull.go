// Package load is the clients: one that pulls an image and hashes it as a
// runtime does, one that throws away what it gets, and one that pushes. It
// knows HTTP and the distribution API, and nothing of who answers.
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Parallel is how many layers a runtime asks for at once: containerd's
// default.
const Parallel = 3

const (
	// manifestLimit bounds a manifest, as runtimes do.
	manifestLimit = 4 << 20
	// maxReopens is how many times in a row containerd asks for the rest of a
	// body that ends early and brings nothing.
	maxReopens = 3
)

// ErrWrong is a body of the right length with other bytes than it must have.
var ErrWrong = errors.New("wrong bytes")

// Outcome is what a client prints about what it did.
type Outcome struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
	// Requests that ended well.
	Requests int64 `json:"requests"`
	// Silence is the longest time within one response without a byte, in
	// seconds. Pull does not measure it.
	Silence float64 `json:"silence"`
	// Reopened is how many bodies ended early and were asked for again from
	// there. Discard does not do that.
	Reopened int64 `json:"reopened"`
}

// Pull pulls an image as containerd does: HEAD by tag or digest, GET by
// digest of the index, if it is one, and of the manifest for linux/amd64, then
// config and layers. It verifies every byte and keeps none. A body that ends
// early is gone on with by a range, from the same host: there is no other.
func Pull(ctx context.Context, base, repo, ref string) (Outcome, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: Parallel, ReadBufferSize: 64 << 10, DisableCompression: true}
	defer transport.CloseIdleConnections()
	c := &puller{client: &http.Client{Transport: transport}, base: base + "/v2/" + repo}
	start := time.Now()
	err := c.pull(ctx, ref)
	return Outcome{
		Seconds: time.Since(start).Seconds(), Bytes: c.bytes.Load(),
		Requests: c.requests.Load(), Reopened: c.reopened.Load(),
	}, err
}

type puller struct {
	client *http.Client
	base   string

	bytes, requests, reopened atomic.Int64
}

func (c *puller) pull(ctx context.Context, ref string) error {
	d, err := c.resolve(ctx, ref)
	if err != nil {
		return err
	}
	var m v1.Manifest
	var index v1.Index
	body, err := c.manifest(ctx, d, &index)
	if err != nil {
		return err
	}
	if len(index.Manifests) > 0 {
		at := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool {
			return d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == "amd64"
		})
		if at < 0 {
			return fmt.Errorf("index %s has nothing for linux/amd64", d)
		}
		_, err = c.manifest(ctx, index.Manifests[at].Digest, &m)
	} else if err = json.Unmarshal(body, &m); err != nil {
		err = fmt.Errorf("manifest %s: %w", d, err)
	}
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(Parallel)
	for _, desc := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		g.Go(func() error { return c.get(ctx, "/blobs/"+desc.Digest.String(), desc.Digest, desc.Size, io.Discard) })
	}
	return g.Wait()
}

func (c *puller) manifest(ctx context.Context, d digest.Digest, into any) ([]byte, error) {
	var body bytes.Buffer
	if err := c.get(ctx, "/manifests/"+d.String(), d, -1, &body); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body.Bytes(), into); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d, err)
	}
	return body.Bytes(), nil
}

// do asks for a path, from an offset on.
func (c *puller) do(ctx context.Context, method, path string, offset int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest+", "+v1.MediaTypeImageIndex+", */*")
	want := http.StatusOK
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		want = http.StatusPartialContent
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s from %d: %s", method, req.URL, offset, resp.Status)
	}
	return resp, nil
}

func (c *puller) resolve(ctx context.Context, ref string) (digest.Digest, error) {
	resp, err := c.do(ctx, http.MethodHead, "/manifests/"+ref, 0)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	c.requests.Add(1)
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return "", fmt.Errorf("Docker-Content-Digest of %s: %w", ref, err)
	}
	return d, nil
}

// get copies a body to w and verifies it; a size of -1 is unknown.
func (c *puller) get(ctx context.Context, path string, d digest.Digest, size int64, w io.Writer) error {
	limit := size
	if size < 0 {
		limit = manifestLimit
	}
	v := d.Verifier()
	var got int64
	buf := make([]byte, 256<<10)
	for fruitless := 0; ; {
		n, err := c.rest(ctx, path, got, limit, io.MultiWriter(v, w), buf)
		got += n
		if err == nil {
			break
		}
		if fruitless++; n > 0 {
			fruitless = 0
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) || fruitless > maxReopens {
			return fmt.Errorf("%s after %d bytes: %w", path, got, err)
		}
		c.reopened.Add(1)
	}
	switch {
	case size >= 0 && got != size, got > limit:
		return fmt.Errorf("%s: got %d bytes, want %d", path, got, size)
	case !v.Verified():
		return fmt.Errorf("%s: %w", path, ErrWrong)
	}
	c.requests.Add(1)
	return nil
}

// rest copies what follows an offset.
func (c *puller) rest(ctx context.Context, path string, offset, limit int64, w io.Writer, buf []byte) (int64, error) {
	var conn net.Conn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { conn = info.Conn }})
	resp, err := c.do(ctx, http.MethodGet, path, offset)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	gulps := gulps{body: resp.Body, conn: conn, left: resp.ContentLength}
	defer gulps.sip()
	n, err := io.CopyBuffer(w, io.LimitReader(&gulps, limit+1-offset), buf)
	c.bytes.Add(n)
	return n, err
}

// gulps reads a long body in large parts: the kernel does not wake the client
// for less, so that on a slow link it costs a fraction of the CPU, which
// those who are measured need.
type gulps struct {
	body io.Reader
	conn net.Conn
	left int64
	wide bool
}

const (
	// gulpSize is what the kernel waits for.
	gulpSize = 128 << 10
	// lastSip is how much before the end of a body every byte counts again:
	// what has left the kernel, and is still in buffers, is less.
	lastSip = 1 << 20
)

func (g *gulps) Read(p []byte) (int, error) {
	switch {
	case g.left > lastSip && !g.wide:
		g.wide = true
		g.wake(gulpSize)
	case g.left <= lastSip:
		g.sip()
	}
	n, err := g.body.Read(p)
	g.left -= int64(n)
	return n, err
}

// sip makes the connection as others are.
func (g *gulps) sip() {
	if g.wide {
		g.wide = false
		g.wake(1)
	}
}

// wake sets the number of bytes that the client is woken for. If that fails,
// reading only costs more.
func (g *gulps) wake(n int) {
	c, ok := g.conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
}
