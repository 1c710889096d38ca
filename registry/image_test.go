package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// images is a registry of documents, by digest.
type images map[digest.Digest][]byte

func (r images) put(kind string, doc any) v1.Descriptor {
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	d := v1.Descriptor{MediaType: kind, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	r[d.Digest] = raw
	return d
}

// image is one of a single layer, which bears its name.
func (r images) image(name, platform string) v1.Descriptor {
	d := r.put(v1.MediaTypeImageManifest, v1.Manifest{MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{Digest: digest.FromString("config " + name), Size: 2}, Layers: []v1.Descriptor{{Digest: digest.FromString(name), Size: 7}}})
	return on(d, platform)
}

func on(d v1.Descriptor, platform string) v1.Descriptor {
	if p := strings.Split(platform, "/"); len(p) >= 2 {
		d.Platform = &v1.Platform{OS: p[0], Architecture: p[1]}
		if len(p) == 3 {
			d.Platform.Variant = p[2]
		}
	}
	return d
}

func (r images) index(children ...v1.Descriptor) v1.Descriptor {
	return r.put(v1.MediaTypeImageIndex, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: children})
}

func (r images) walk(top v1.Descriptor, platforms ...string) (Image, error) {
	w := Walk{Platforms: platforms, Matches: func(want, has string) bool { return strings.HasPrefix(has+"/", want+"/") },
		Manifest: func(_ context.Context, d v1.Descriptor) (Manifest, int64, error) {
			m, err := CheckManifest(d.Digest, "", r[d.Digest])
			return m, int64(len(r[d.Digest])), err
		}}
	return w.Image(context.Background(), top)
}

// layers returns the names of those of list that an image has.
func layers(img Image, names ...string) (has []string) {
	for _, name := range names {
		if slices.ContainsFunc(img.Parts, func(p Part) bool { return p.Digest == digest.FromString(name) }) {
			has = append(has, name)
		}
	}
	return has
}

func TestWalk(t *testing.T) {
	r := images{}
	amd, arm, arm7 := r.image("amd", "linux/amd64"), r.image("arm", "linux/arm64"), r.image("arm7", "linux/arm/v7")
	note := r.image("note", "unknown/unknown")
	plain := r.image("plain", "")
	flat := r.index(amd, arm, arm7, note)
	inner := r.index(amd, note)
	for _, c := range []struct {
		name      string
		top       v1.Descriptor
		platforms []string
		want      string // layers
		has       string // platforms
	}{
		{"a manifest", plain, []string{"linux/amd64"}, "plain", ""},
		{"one platform", flat, []string{"linux/amd64"}, "amd", "linux/amd64"},
		{"any variant", flat, []string{"linux/arm"}, "arm7", "linux/arm"},
		{"two, one of which is missing", flat, []string{"linux/arm64", "plan9/386"}, "arm", "linux/arm64"},
		{"all", flat, []string{"all"}, "amd arm arm7 note", ""},
		{"of no platform", r.index(plain, note), []string{"linux/amd64"}, "plain note", ""},
		{"within an index", r.index(inner), []string{"linux/amd64"}, "amd", "linux/amd64"},
		{"within the one for the platform", r.index(on(inner, "linux/amd64"), arm), []string{"linux/amd64"}, "amd", "linux/amd64"},
		{"beside an index", r.index(inner, arm), []string{"linux/arm64"}, "arm", "linux/arm64"},
		{"both", r.index(inner, arm), []string{"linux/amd64", "linux/arm64"}, "amd arm", "linux/amd64 linux/arm64"},
		{"all within an index", r.index(inner, arm), []string{"all"}, "amd arm note", ""},
		{"two deep", r.index(r.index(inner), r.index(arm)), []string{"linux/amd64"}, "amd", "linux/amd64"},
		{"of no platform within an index", r.index(r.index(plain)), []string{"linux/amd64"}, "plain", ""},
	} {
		img, err := r.walk(c.top, c.platforms...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := strings.Join(layers(img, "amd", "arm", "arm7", "note", "plain"), " "); !sameWords(got, c.want) {
			t.Errorf("%s: layers %s, want %s", c.name, got, c.want)
		}
		if got := strings.Join(img.Platforms, " "); got != c.has {
			t.Errorf("%s: platforms %s, want %s", c.name, got, c.has)
		}
		if img.Parts[0].Digest != c.top.Digest || !img.Parts[0].Manifest || len(img.Parts[0].Platforms) > 0 {
			t.Errorf("%s: the first part is %+v", c.name, img.Parts[0])
		}
	}
	var none *NoPlatformError
	for name, top := range map[string]v1.Descriptor{"flat": flat, "nested": r.index(inner)} {
		if _, err := r.walk(top, "plan9/386"); !errors.As(err, &none) || !strings.Contains(err.Error(), "linux/amd64") {
			t.Errorf("%s: for a platform that is not there: %v", name, err)
		}
	}
	img, err := r.walk(r.index(inner, arm), "linux/amd64", "linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range img.Parts {
		if p.Digest == inner.Digest && !slices.Equal(p.Platforms, []string{"linux/amd64"}) {
			t.Errorf("the inner index is for %v", p.Platforms)
		}
	}
}

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// An author who means harm gets no more than the bounds.
func TestWalkIsBounded(t *testing.T) {
	r := images{}
	deep := r.image("deep", "linux/amd64")
	for range maxDepth + 1 {
		deep = r.index(deep)
	}
	var wide, heavy []v1.Descriptor
	for i := range maxManifests + 1 {
		wide = append(wide, r.image(fmt.Sprint(i), ""))
	}
	blobs := make([]v1.Descriptor, 1000)
	for i := range 20 {
		for k := range blobs {
			blobs[k] = v1.Descriptor{Digest: digest.FromString(fmt.Sprint(i, " ", k)), Size: 1}
		}
		heavy = append(heavy, r.put(v1.MediaTypeImageManifest, v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: blobs[0], Layers: blobs}))
	}
	// Each index names the next one many times over.
	bomb := r.image("bomb", "")
	for range maxDepth {
		list := make([]v1.Descriptor, 200)
		for i := range list {
			list[i] = bomb
		}
		bomb = r.index(list...)
	}
	for name, top := range map[string]v1.Descriptor{"deep": deep, "wide": r.index(wide...), "heavy": r.index(heavy...), "a bomb": bomb} {
		if img, err := r.walk(top, "all"); err == nil {
			t.Errorf("%s: no error, %d parts", name, len(img.Parts))
		}
	}
}
