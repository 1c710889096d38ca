package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds of one image, for whom its author has no end in mind.
const (
	maxDepth     = 4        // indexes within indexes
	maxManifests = 512      // manifests that are read
	maxManifestB = 32 << 20 // bytes of them
	maxParts     = 16 << 10
)

// Walk finds out what an image consists of.
type Walk struct {
	// Platforms are those that are wanted of an index, os/arch[/variant], or
	// "all" for everything that it names.
	Platforms []string
	// Matches reports whether a platform that is wanted is what there is.
	Matches func(want, has string) bool
	// Manifest gets a manifest and its size. Its bytes must have the digest.
	Manifest func(context.Context, v1.Descriptor) (Manifest, int64, error)
}

// Part is one content of an image.
type Part struct {
	// Descriptor is what the parent says of it, with the true size of a
	// manifest.
	v1.Descriptor
	// Manifest says that it is a manifest or index, Index that it is an index.
	Manifest, Index bool
	// Platforms are those of the wanted ones that need it; none: all do.
	Platforms []string
}

// Image is what Walk found: each content once, parents before what they name.
type Image struct {
	Parts []Part
	// Platforms are those of the wanted ones that the image is made for; none
	// if it does not say, and is the same for all.
	Platforms []string
}

// NoPlatformError says that an image is made for other platforms than wanted.
type NoPlatformError struct{ Want, Has []string }

func (e *NoPlatformError) Error() string {
	return fmt.Sprintf("there is no manifest for %s; there are %s", strings.Join(e.Want, ", "), strings.Join(e.Has, ", "))
}

// Image walks from the top down, into indexes within indexes too.
func (w Walk) Image(ctx context.Context, top v1.Descriptor) (Image, error) {
	s := &walk{Walk: w, read: map[digest.Digest]Manifest{}, sizes: map[digest.Digest]int64{}}
	wants := w.Platforms
	if slices.Contains(wants, "all") {
		wants = nil
	}
	found, err := s.walk(ctx, top, wants, nil, 0)
	if err != nil {
		return Image{}, err
	}
	if found == nil {
		return Image{}, &NoPlatformError{w.Platforms, s.has}
	}
	img := Image{Parts: merge(found.parts)}
	for _, want := range w.Platforms {
		if slices.Contains(found.platforms, want) && !slices.Contains(img.Platforms, want) {
			img.Platforms = append(img.Platforms, want)
		}
	}
	return img, nil
}

// walk is one Walk at work.
type walk struct {
	Walk
	read  map[digest.Digest]Manifest
	sizes map[digest.Digest]int64
	bytes int64
	parts int
	has   []string // platforms that were seen
}

// found is what is below a manifest, itself included.
type found struct {
	parts     []Part
	platforms []string // of the wanted ones
}

func (s *walk) manifest(ctx context.Context, d v1.Descriptor) (Manifest, int64, error) {
	if m, ok := s.read[d.Digest]; ok {
		return m, s.sizes[d.Digest], nil
	}
	if len(s.read) >= maxManifests {
		return Manifest{}, 0, fmt.Errorf("the image has more than %d manifests", maxManifests)
	}
	m, size, err := s.Walk.Manifest(ctx, d)
	if err != nil {
		return Manifest{}, 0, err
	}
	if s.bytes += size; s.bytes > maxManifestB {
		return Manifest{}, 0, fmt.Errorf("the manifests of the image have more than %d bytes", maxManifestB)
	}
	s.read[d.Digest], s.sizes[d.Digest] = m, size
	return m, size, nil
}

// walk returns what of d and below it is wanted, nil if nothing is. Without
// wants everything is. The parts are needed by the platforms in need.
func (s *walk) walk(ctx context.Context, d v1.Descriptor, wants, need []string, depth int) (*found, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("manifest %s: indexes within indexes, more than %d deep", d.Digest, maxDepth)
	}
	m, size, err := s.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	d.Size = size
	if d.MediaType == "" {
		d.MediaType = m.MediaType
	}
	out := &found{parts: []Part{{Descriptor: d, Manifest: true, Index: len(m.Manifests) > 0, Platforms: need}}}
	if s.parts += 1 + len(m.Blobs); s.parts > maxParts {
		return nil, fmt.Errorf("the image consists of more than %d contents", maxParts)
	}
	for _, b := range m.Blobs {
		out.parts = append(out.parts, Part{Descriptor: b, Platforms: need})
	}
	if len(m.Manifests) == 0 {
		return out, nil
	}
	children, nested := s.choose(m.Manifests, wants)
	any := len(children) > 0
	for _, c := range children {
		below, err := s.walk(ctx, c.Descriptor, c.wants, c.wants, depth+1)
		if err != nil {
			return nil, err
		}
		if below == nil { // an index for other platforms than its parent says
			continue
		}
		out.add(below)
		out.platforms = append(out.platforms, c.wants...)
	}
	// What is for no platform at this level may be within another index.
	for _, n := range nested {
		below, err := s.walk(ctx, n.Descriptor, n.wants, n.wants, depth+1)
		if err != nil {
			return nil, err
		}
		if below == nil {
			continue
		}
		any = true
		// Only those that found something in it need it.
		if len(below.platforms) > 0 {
			for i := range below.parts {
				if slices.Equal(below.parts[i].Platforms, n.wants) {
					below.parts[i].Platforms = below.platforms
				}
			}
		}
		out.add(below)
	}
	if !any {
		return nil, nil
	}
	return out, nil
}

func (f *found) add(below *found) {
	f.parts = append(f.parts, below.parts...)
	f.platforms = append(f.platforms, below.platforms...)
}

// child is a manifest of an index, with the platforms for which it is wanted.
type child struct {
	v1.Descriptor
	wants []string
}

// choose picks the children of an index that are for the platforms, and those
// that are indexes for no platform, to be looked into for the platforms that
// no other child is for. Of an index that speaks of no platform all is wanted.
func (s *walk) choose(index []v1.Descriptor, wants []string) (children, nested []child) {
	var named, within []v1.Descriptor
	for _, d := range index {
		switch {
		case PlatformOf(d) != "":
			named = append(named, d)
			s.has = append(s.has, PlatformOf(d))
		case d.MediaType == v1.MediaTypeImageIndex || d.MediaType == MediaTypeDockerManifestList:
			within = append(within, d)
		}
	}
	if len(wants) == 0 || len(named) == 0 && len(within) == 0 {
		for _, d := range index {
			children = append(children, child{d, nil})
		}
		return children, nil
	}
	if len(named) == 0 {
		for _, d := range index {
			if !slices.ContainsFunc(within, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
				children = append(children, child{d, nil})
			}
		}
	}
	var missing []string
	for _, want := range wants {
		i := slices.IndexFunc(named, func(d v1.Descriptor) bool { return PlatformOf(d) == want })
		if i < 0 {
			i = slices.IndexFunc(named, func(d v1.Descriptor) bool { return s.Matches(want, PlatformOf(d)) })
		}
		if i < 0 {
			missing = append(missing, want)
			continue
		}
		if k := slices.IndexFunc(children, func(c child) bool { return c.Digest == named[i].Digest }); k >= 0 {
			children[k].wants = append(children[k].wants, want)
			continue
		}
		children = append(children, child{named[i], []string{want}})
	}
	if len(missing) > 0 {
		for _, d := range within {
			nested = append(nested, child{d, missing})
		}
	}
	return children, nested
}

// PlatformOf returns os/arch[/variant], or nothing for what is for none, such
// as attestations.
func PlatformOf(d v1.Descriptor) string {
	if d.Platform == nil || d.Platform.OS == "unknown" || d.Platform.OS == "" {
		return ""
	}
	name := d.Platform.OS + "/" + d.Platform.Architecture
	if d.Platform.Variant != "" {
		name += "/" + d.Platform.Variant
	}
	return name
}

// merge leaves each content once, with all platforms that need it.
func merge(parts []Part) []Part {
	at := map[digest.Digest]int{}
	var out []Part
	for _, p := range parts {
		i, ok := at[p.Digest]
		if !ok {
			at[p.Digest] = len(out)
			p.Platforms = slices.Clone(p.Platforms)
			out = append(out, p)
			continue
		}
		if len(p.Platforms) == 0 || len(out[i].Platforms) == 0 {
			out[i].Platforms = nil // all need it
			continue
		}
		for _, one := range p.Platforms {
			if !slices.Contains(out[i].Platforms, one) {
				out[i].Platforms = append(out[i].Platforms, one)
			}
		}
	}
	return out
}

// Elsewhere reports whether a layer is one that registries do not hold.
func Elsewhere(d v1.Descriptor) bool {
	return len(d.URLs) > 0 || strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, "foreign")
}
