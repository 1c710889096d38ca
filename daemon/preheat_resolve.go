package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// errImage says that an image is not fit to be preheated.
var errImage = errors.New("image")

// resolve finds out what an image consists of. Its manifests are kept and
// shared like those of a pull, so that each leaves the origin once.
func (p *preheater) resolve(ctx context.Context, t *task, repo registry.Repository, caller mirror.Caller) (*jobs.Resolution, error) {
	top, err := p.top(ctx, caller, repo, t.order.Reference)
	if err != nil {
		return nil, err
	}
	platforms := t.order.Platforms
	if len(platforms) == 0 {
		platforms = []string{ownPlatform}
	}
	image, err := registry.Walk{Platforms: platforms, Matches: jobs.PlatformMatches, Manifest: func(ctx context.Context, d v1.Descriptor) (registry.Manifest, int64, error) {
		var body []byte
		if d.Digest == top.Digest {
			body = top.Body
		}
		return p.manifest(ctx, caller, repo, mirror.Descriptor{Digest: d.Digest, Size: d.Size}, body)
	}}.Image(ctx, v1.Descriptor{Digest: top.Digest, Size: top.Size})
	if err != nil {
		// What an origin or the store says keeps its kind; all else is the image's.
		var e *registry.Error
		if errors.As(err, &e) || errors.Is(err, store.ErrUnavailable) || origin.IsUnavailable(err) || ctx.Err() != nil || errors.Is(err, errImage) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errImage, err)
	}
	res := &jobs.Resolution{Digest: top.Digest.String(), MediaType: image.Parts[0].MediaType, Platforms: image.Platforms}
	for _, part := range image.Parts {
		if !part.Manifest && registry.Elsewhere(part.Descriptor) {
			continue
		}
		res.Contents = append(res.Contents, jobs.Content{Digest: part.Digest.String(), Size: part.Size, Manifest: part.Manifest, Platforms: part.Platforms})
	}
	if len(res.Contents) > jobs.MaxContents {
		return nil, fmt.Errorf("%w: it consists of %d contents, at most %d can be preheated", errImage, len(res.Contents), jobs.MaxContents)
	}
	return res, nil
}

// confirm finds out for itself what the image of an order is, and returns how
// the order's contents differ from that. The scheduler has them from other
// nodes, none of which is to decide what this one holds under the image's name.
func (p *preheater) confirm(ctx context.Context, t *task, repo registry.Repository) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	p.tags.Settle(ctx, p.caller(t), repo, digest.Digest(t.order.Contents[0].Digest))
	return p.attempt(ctx, t, func(caller mirror.Caller) error {
		own, err := p.resolve(ctx, t, repo, caller)
		if err != nil {
			return err
		}
		return differs(own, t.order.Contents)
	})
}

// differs returns how what other nodes say of an image differs from what this
// one found, nil if it does not.
func differs(own *jobs.Resolution, said []jobs.Content) error {
	if said[0].Digest != own.Digest {
		return fmt.Errorf("%w: the registry says that it is %s, other nodes say %s; it may have changed during the job, or one of them lies", errImage, own.Digest, said[0].Digest)
	}
	found := map[string]jobs.Content{}
	for _, c := range own.Contents {
		found[c.Digest] = c
	}
	for _, c := range said {
		if f, ok := found[c.Digest]; !ok || f.Size != c.Size || f.Manifest != c.Manifest {
			return fmt.Errorf("%w: other nodes say that it consists of content %s, of %d bytes, which its manifests do not say", errImage, c.Digest, c.Size)
		}
		delete(found, c.Digest)
	}
	for missing := range found {
		return fmt.Errorf("%w: other nodes leave out content %s, which its manifests name", errImage, missing)
	}
	return nil
}

// top asks the origin what a reference stands for. A HEAD is enough, which
// origins do not count.
func (p *preheater) top(ctx context.Context, caller mirror.Caller, repo registry.Repository, ref string) (mirror.Manifest, error) {
	if d, err := registry.ParseDigest(ref); err == nil {
		return mirror.Manifest{Descriptor: mirror.Descriptor{Digest: d}}, nil
	}
	o := p.blobs.origins
	d, err := o.HeadManifest(ctx, caller, repo, ref, mirror.AcceptAll)
	if err != nil {
		return mirror.Manifest{}, err
	}
	if d.Digest != "" {
		return mirror.Manifest{Descriptor: d}, nil
	}
	return o.Manifest(ctx, caller, repo, ref, mirror.AcceptAll)
}

// manifest gets a manifest, which may be at hand.
func (p *preheater) manifest(ctx context.Context, caller mirror.Caller, repo registry.Repository, d mirror.Descriptor, body []byte) (registry.Manifest, int64, error) {
	r, err := p.blobs.Open(ctx, mirror.Request{Caller: caller, Repo: repo, Digest: d.Digest, Manifest: true, Body: body, Size: max(d.Size, 0), Whole: true, Proven: true})
	if err != nil {
		return registry.Manifest{}, 0, err
	}
	defer r.Close()
	if r.Size() > registry.MaxManifestSize {
		return registry.Manifest{}, 0, fmt.Errorf("%w: manifest %s has %d bytes", errImage, d.Digest, r.Size())
	}
	var buf bytes.Buffer
	if _, err := r.CopyRange(ctx, &buf, 0, r.Size()); err != nil {
		return registry.Manifest{}, 0, err
	}
	m, err := registry.ParseManifest("", buf.Bytes())
	if err != nil {
		return registry.Manifest{}, 0, fmt.Errorf("%w: manifest %s: %w", errImage, d.Digest, err)
	}
	return m, r.Size(), nil
}
