package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"
)

// manifestTypes is what a runtime accepts as a manifest.
const manifestTypes = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"

// Client pulls by plain HTTP and hashes what comes, as curl and sha256sum would.
type Client struct {
	// Base is the base URL of a mirror.
	Base string
	// Namespace is the upstream that is named in ?ns=, or empty.
	Namespace string
	// Repository is the repository as it stands in the path, with the upstream
	// before it where Namespace is empty and the default is not meant.
	Repository string
	// HTTP makes the requests, for a way of its own to Base; nil will do where
	// the test itself reaches Base.
	HTTP *http.Client
}

// Content is what one GET brought.
type Content struct {
	// Digest is the sha256 of the body.
	Digest string
	// Size is the length of the body in bytes.
	Size int64
	// Header is the header of the answer.
	Header http.Header
	// Status is its status.
	Status int
}

// fetchClient never keeps a connection, so that nothing outlives a test.
var fetchClient = &http.Client{
	Timeout:   runLimit,
	Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: 30 * time.Second},
}

// Blob gets a blob, or with a non-empty byteRange (as in "bytes=0-9") a part.
func (c Client) Blob(ctx context.Context, digest, byteRange string) (Content, error) {
	return c.get(ctx, "blobs", digest, byteRange)
}

// Manifest gets a manifest by tag or digest.
func (c Client) Manifest(ctx context.Context, reference string) (Content, error) {
	return c.get(ctx, "manifests", reference, "")
}

// PullImage pulls an image by tag as containerd does: HEAD of the tag, index and
// manifest by digest, then config and layers, three at a time. It fails unless
// everything is what it should be.
func (c Client) PullImage(ctx context.Context, img *Image, tag string) error {
	resp, err := c.do(ctx, http.MethodHead, "manifests", tag, "")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if got := resp.Header.Get("Docker-Content-Digest"); resp.StatusCode != http.StatusOK || got != img.Digest {
		return fmt.Errorf("tag %s resolved to %q with status %d, want %s", tag, got, resp.StatusCode, img.Digest)
	}
	if err := c.CheckManifests(ctx, img.Chain()...); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(3)
	for _, d := range img.Blobs {
		group.Go(func() error { return c.CheckBlobs(ctx, d) })
	}
	return group.Wait()
}

// Open gets a blob and leaves the reading to the caller, who closes it.
func (c Client) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, "blobs", digest, "")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered with status %d", digest, resp.StatusCode)
	}
	return resp.Body, nil
}

func (c Client) get(ctx context.Context, kind, reference, byteRange string) (Content, error) {
	resp, err := c.do(ctx, http.MethodGet, kind, reference, byteRange)
	if err != nil {
		return Content{}, err
	}
	defer resp.Body.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, resp.Body)
	if err != nil {
		return Content{}, fmt.Errorf("reading %s: %w", resp.Request.URL, err)
	}
	return Content{
		Digest: "sha256:" + hex.EncodeToString(hash.Sum(nil)),
		Size:   size, Header: resp.Header, Status: resp.StatusCode,
	}, nil
}

func (c Client) do(ctx context.Context, method, kind, reference, byteRange string) (*http.Response, error) {
	target := fmt.Sprintf("%s/v2/%s/%s/%s", c.Base, c.Repository, kind, reference)
	if c.Namespace != "" {
		target += "?ns=" + url.QueryEscape(c.Namespace)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	if kind == "manifests" {
		req.Header.Set("Accept", manifestTypes)
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	if c.HTTP != nil {
		return c.HTTP.Do(req)
	}
	return fetchClient.Do(req)
}

// CheckBlobs gets every blob whole and compares digest and length.
func (c Client) CheckBlobs(ctx context.Context, blobs ...Descriptor) error {
	for _, want := range blobs {
		got, err := c.Blob(ctx, want.Digest, "")
		if err != nil {
			return err
		}
		if err := got.is(want); err != nil {
			return err
		}
	}
	return nil
}

// CheckManifests gets every manifest by digest and compares digest and length.
func (c Client) CheckManifests(ctx context.Context, manifests ...Descriptor) error {
	for _, want := range manifests {
		got, err := c.Manifest(ctx, want.Digest)
		if err != nil {
			return err
		}
		if err := got.is(want); err != nil {
			return err
		}
		if mediaType := got.Header.Get("Content-Type"); mediaType != want.MediaType {
			return fmt.Errorf("%s came as %q, want %q", want.Digest, mediaType, want.MediaType)
		}
	}
	return nil
}

func (got Content) is(want Descriptor) error {
	switch {
	case got.Status != http.StatusOK:
		return fmt.Errorf("%s answered with status %d", want.Digest, got.Status)
	case got.Digest != want.Digest:
		return fmt.Errorf("%s came with digest %s", want.Digest, got.Digest)
	case got.Size != want.Size:
		return fmt.Errorf("%s came with %d bytes, want %d", want.Digest, got.Size, want.Size)
	case got.Header.Get("Docker-Content-Digest") != want.Digest:
		return fmt.Errorf("%s came with Docker-Content-Digest %q", want.Digest, got.Header.Get("Docker-Content-Digest"))
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// countingTransport tells count how many bytes of body each read has brought.
type countingTransport struct {
	http.RoundTripper
	count func(n int)
}

// RoundTrip counts the body of the response as it is read.
func (c countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &countingBody{resp.Body, c.count}
	}
	return resp, err
}

type countingBody struct {
	io.ReadCloser
	count func(n int)
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count(n)
	return n, err
}
