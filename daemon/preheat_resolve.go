package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// errImage says that an image is not fit to be preheated.
var errImage = errors.New("image")

// resolve finds out what an image consists of. Its manifests are kept and
// shared like those of a pull, so that each leaves the origin once.
func (p *preheater) resolve(ctx context.Context, t *task, repo registry.Repository) (*jobs.Resolution, error) {
	caller := p.caller(t)
	top, err := p.top(ctx, caller, repo, t.order.Reference)
	if err != nil {
		return nil, err
	}
	manifest, size, err := p.manifest(ctx, caller, repo, top.Descriptor, top.Body)
	if err != nil {
		return nil, err
	}
	res := &jobs.Resolution{Digest: top.Digest.String(), MediaType: manifest.MediaType}
	list := contents{index: map[string]int{}}
	list.add(jobs.Content{Digest: top.Digest.String(), Size: size, Manifest: true})
	if len(manifest.Manifests) == 0 {
		list.addBlobs(manifest, nil)
		res.Contents = list.list
		return res, list.check()
	}
	wanted, err := choose(manifest.Manifests, t.order.Platforms)
	if err != nil {
		return nil, err
	}
	for _, w := range wanted {
		child, size, err := p.manifest(ctx, caller, repo, mirror.Descriptor{Digest: w.Digest, Size: w.Size}, nil)
		if err != nil {
			return nil, err
		}
		list.add(jobs.Content{Digest: w.Digest.String(), Size: size, Manifest: true, Platforms: w.platforms})
		list.addBlobs(child, w.platforms)
		for _, platform := range w.platforms {
			if !slices.Contains(res.Platforms, platform) {
				res.Platforms = append(res.Platforms, platform)
			}
		}
	}
	res.Contents = list.list
	return res, list.check()
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

// chosen is a manifest of an index with the platforms that want it.
type chosen struct {
	v1.Descriptor
	platforms []string
}

// choose picks from an index what is wanted for the platforms. Without any
// platform in the index all of it is.
func choose(index []v1.Descriptor, platforms []string) ([]chosen, error) {
	var out []chosen
	has := []string{}
	for _, d := range index {
		if name := platformOf(d); name != "" {
			has = append(has, name)
		}
	}
	everything := len(has) == 0 || slices.Contains(platforms, "all")
	for _, d := range index {
		if everything {
			out = append(out, chosen{Descriptor: d})
		}
	}
	if everything {
		return out, nil
	}
	at := map[digest.Digest]int{}
	var missing []string
	for _, want := range platforms {
		i := slices.IndexFunc(index, func(d v1.Descriptor) bool { return platformOf(d) == want })
		if i < 0 {
			i = slices.IndexFunc(index, func(d v1.Descriptor) bool { return jobs.PlatformMatches(want, platformOf(d)) })
		}
		if i < 0 {
			missing = append(missing, want)
			continue
		}
		d := index[i]
		if k, ok := at[d.Digest]; ok {
			out[k].platforms = append(out[k].platforms, want)
			continue
		}
		at[d.Digest] = len(out)
		out = append(out, chosen{d, []string{want}})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: there is no manifest for %s; there are %s", errImage, strings.Join(missing, ", "), strings.Join(has, ", "))
	}
	return out, nil
}

// platformOf returns os/arch[/variant], or nothing for what is for none, such
// as attestations.
func platformOf(d v1.Descriptor) string {
	if d.Platform == nil || d.Platform.OS == "unknown" || d.Platform.OS == "" {
		return ""
	}
	name := d.Platform.OS + "/" + d.Platform.Architecture
	if d.Platform.Variant != "" {
		name += "/" + d.Platform.Variant
	}
	return name
}

// contents is a list without duplicates.
type contents struct {
	list  []jobs.Content
	index map[string]int
}

// add adds a content, or the platforms that need it too.
func (c *contents) add(one jobs.Content) {
	i, ok := c.index[one.Digest]
	if !ok {
		c.index[one.Digest] = len(c.list)
		one.Platforms = slices.Clone(one.Platforms)
		c.list = append(c.list, one)
		return
	}
	if len(one.Platforms) == 0 || len(c.list[i].Platforms) == 0 {
		c.list[i].Platforms = nil // all need it
		return
	}
	for _, p := range one.Platforms {
		if !slices.Contains(c.list[i].Platforms, p) {
			c.list[i].Platforms = append(c.list[i].Platforms, p)
		}
	}
}

// addBlobs adds what a manifest names, but for layers that registries do not
// hold.
func (c *contents) addBlobs(m registry.Manifest, platforms []string) {
	for _, d := range m.Blobs {
		if len(d.URLs) > 0 || strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, "foreign") {
			continue
		}
		c.add(jobs.Content{Digest: d.Digest.String(), Size: d.Size, Platforms: platforms})
	}
	for _, d := range m.Manifests { // an index in an index
		c.add(jobs.Content{Digest: d.Digest.String(), Size: d.Size, Manifest: true, Platforms: platforms})
	}
}

func (c *contents) check() error {
	if len(c.list) > jobs.MaxContents {
		return fmt.Errorf("%w: it consists of %d contents, at most %d can be preheated", errImage, len(c.list), jobs.MaxContents)
	}
	return nil
}
