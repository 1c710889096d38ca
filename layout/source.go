package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/registry"
)

const (
	// atOnce is how many blobs are fetched at a time.
	atOnce = 3
	// attempts is how often a blob is begun again that was cut short; each
	// goes on where the one before ended.
	attempts = 5
)

// Source is an image at a mirror.
type Source struct {
	// Mirror is its URL.
	Mirror string
	// Repository is host/name, Reference a tag or digest.
	Repository, Reference string
	// Platforms of an index are taken, or all of it: "all". Of one platform
	// alone the layout names the manifest itself.
	Platforms []string
	// Matches reports whether a platform that is wanted is what there is.
	Matches func(want, has string) bool
}

func (s Source) get(ctx context.Context, kind, ref string, header http.Header) (*http.Response, error) {
	host, name, _ := strings.Cut(s.Repository, "/")
	u := s.Mirror + "/v2/" + name + "/" + kind + "/" + ref + "?ns=" + url.QueryEscape(host)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what cannot be read is not there
		return nil, errors.Join(registry.ParseError(resp.StatusCode, body, registry.CodeManifestUnknown), resp.Body.Close())
	}
	return resp, nil
}

var manifestTypes = http.Header{"Accept": registry.AcceptAll}

// manifest gets a manifest into the layout.
func (s Source) manifest(ctx context.Context, dir, ref string) (registry.Manifest, v1.Descriptor, []byte, error) {
	var none v1.Descriptor
	resp, err := s.get(ctx, "manifests", ref, manifestTypes.Clone())
	if err != nil {
		return registry.Manifest{}, none, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, registry.MaxManifestSize+1))
	if err != nil {
		return registry.Manifest{}, none, nil, err
	}
	want, err := registry.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err == nil && strings.Contains(ref, ":") && ref != want.String() {
		err = fmt.Errorf("manifest %s came as %s", ref, want)
	}
	if err != nil {
		return registry.Manifest{}, none, nil, err
	}
	m, err := registry.CheckManifest(want, resp.Header.Get("Content-Type"), body)
	if err != nil {
		return registry.Manifest{}, none, nil, err
	}
	file := blobPath(dir, want)
	if err := os.WriteFile(file+".part", body, 0o644); err != nil {
		return m, none, nil, err
	}
	return m, v1.Descriptor{MediaType: m.MediaType, Digest: want, Size: int64(len(body))}, body, os.Rename(file+".part", file)
}

// resolve gets the manifests of the image and returns what the layout is to
// name, and the blobs that are to come.
func (s Source) resolve(ctx context.Context, dir string) (top v1.Descriptor, blobs []v1.Descriptor, err error) {
	m, top, body, err := s.manifest(ctx, dir, s.Reference)
	if err != nil {
		return top, nil, err
	}
	if len(m.Manifests) == 0 {
		return top, m.Blobs, s.checkPlatform(ctx, m)
	}
	walk := registry.Walk{Platforms: s.Platforms, Matches: s.Matches, Manifest: func(ctx context.Context, d v1.Descriptor) (registry.Manifest, int64, error) {
		if d.Digest == top.Digest {
			return m, top.Size, nil
		}
		below, d, _, err := s.manifest(ctx, dir, d.Digest.String())
		return below, d.Size, err
	}}
	image, err := walk.Image(ctx, top)
	if err != nil {
		return top, nil, err
	}
	// All that is left out of an index may be missing from the layout.
	var leaves []v1.Descriptor
	for _, p := range image.Parts {
		switch {
		case !p.Manifest:
			blobs = append(blobs, p.Descriptor)
		case !p.Index:
			leaves = append(leaves, p.Descriptor)
		}
	}
	whole := slices.Contains(s.Platforms, "all") || len(image.Platforms) == 0
	switch {
	case whole:
		return top, blobs, nil
	case len(leaves) == 1:
		return leaves[0], blobs, nil
	case slices.EqualFunc(leaves, m.Manifests, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest }):
		return top, blobs, nil
	}
	return s.partOf(dir, body, leaves, blobs)
}

// checkPlatform returns why an image of a single platform is not what was asked
// for. An artifact is of no platform.
func (s Source) checkPlatform(ctx context.Context, m registry.Manifest) error {
	if len(m.Blobs) == 0 || m.Blobs[0].Size > registry.MaxManifestSize || slices.Contains(s.Platforms, "all") ||
		m.Blobs[0].MediaType != v1.MediaTypeImageConfig && m.Blobs[0].MediaType != registry.MediaTypeDockerConfig {
		return nil
	}
	resp, err := s.get(ctx, "blobs", m.Blobs[0].Digest.String(), http.Header{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, m.Blobs[0].Size+1))
	if err != nil {
		return err
	}
	var config v1.Platform
	if m.Blobs[0].Digest.Algorithm().FromBytes(raw) != m.Blobs[0].Digest || json.Unmarshal(raw, &config) != nil {
		return fmt.Errorf("config %s of the image cannot be read", m.Blobs[0].Digest)
	}
	has := registry.PlatformOf(v1.Descriptor{Platform: &config})
	if has == "" || slices.ContainsFunc(s.Platforms, func(want string) bool { return s.Matches(want, has) }) {
		return nil
	}
	return fmt.Errorf("the image is for %s alone, not for %s; --platform %[1]s takes it", has, strings.Join(s.Platforms, ", "))
}

// partOf makes an index of the platforms that are wanted, since tools take an
// index whose manifests are missing for a broken one.
func (s Source) partOf(dir string, body []byte, wanted, blobs []v1.Descriptor) (v1.Descriptor, []v1.Descriptor, error) {
	var index v1.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return v1.Descriptor{}, nil, err
	}
	index.Manifests = wanted
	raw, err := json.Marshal(index)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	d := v1.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if d.MediaType == "" {
		d.MediaType = v1.MediaTypeImageIndex
	}
	return d, blobs, os.WriteFile(blobPath(dir, d.Digest), raw, 0o644)
}

// fetchAll brings blobs into the layout.
func (s Source) fetchAll(ctx context.Context, dir string, blobs []v1.Descriptor, progress Progress) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	seen := map[digest.Digest]bool{}
	for _, d := range blobs {
		if seen[d.Digest] || len(d.URLs) > 0 {
			continue
		}
		seen[d.Digest] = true
		group.Go(func() error {
			tell := progress(d.Digest.Encoded()[:12], d.Size)
			if has(dir, d) {
				tell(d.Size, true)
				return nil
			}
			if err := s.fetch(ctx, dir, d, tell); err != nil {
				return fmt.Errorf("blob %s: %w", d.Digest, err)
			}
			tell(d.Size, true)
			return nil
		})
	}
	return group.Wait()
}

// fetch brings one blob into the layout, going on where an earlier attempt
// ended.
func (s Source) fetch(ctx context.Context, dir string, d v1.Descriptor, tell func(int64, bool)) error {
	file := blobPath(dir, d.Digest)
	part, err := os.OpenFile(file+".part", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer part.Close()
	v := d.Digest.Verifier()
	off, err := io.Copy(v, part)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		if off > d.Size {
			err = fmt.Errorf("it has more than the %d bytes that the manifest says", d.Size)
		} else if off < d.Size {
			var n int64
			n, err = s.copy(ctx, d, off, io.MultiWriter(part, v), func(n int64) { tell(off+n, false) })
			off += n
		}
		if off == d.Size && v.Verified() {
			break
		}
		if off >= d.Size {
			return errors.Join(errors.New("the bytes that came do not have the digest"), os.Remove(part.Name()))
		}
		var refused *registry.Error
		if ctx.Err() != nil || errors.As(err, &refused) && refused.Status < 500 || try == attempts {
			return err
		}
		pause := time.NewTimer(time.Duration(try) * time.Second)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
	if err := errors.Join(part.Sync(), os.Rename(part.Name(), file)); err != nil {
		return err
	}
	return nil
}

// copy writes the blob from off on.
func (s Source) copy(ctx context.Context, d v1.Descriptor, off int64, w io.Writer, tell func(int64)) (int64, error) {
	header := http.Header{}
	if off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	resp, err := s.get(ctx, "blobs", d.Digest.String(), header)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if off > 0 && resp.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("the mirror answers a range with %d", resp.StatusCode)
	}
	n, err := io.Copy(w, &counted{Reader: io.LimitReader(resp.Body, d.Size-off), tell: tell})
	if err == nil && n < d.Size-off {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// counted tells how many bytes were read.
type counted struct {
	io.Reader
	n    int64
	tell func(int64)
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}
