package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Hello is the line that the test image prints when it runs.
const Hello = "hello from a container that came through shoal"

// LargeLayer is the least size of the largest layer of the test images, in
// bytes. Its content does not compress.
const LargeLayer = 17 << 20

// Image is a test image, made on the spot.
type Image struct {
	// Digest is what a tag resolves to: an index or a manifest.
	Digest string
	// Manifests are all manifests: the index if there is one, the manifest for
	// this machine's platform, others.
	Manifests []Descriptor
	// Blobs are the config and the layers for this machine's platform.
	Blobs []Descriptor
	// AllBlobs are those of every platform.
	AllBlobs []Descriptor

	image v1.Image
	index v1.ImageIndex
}

// Descriptor names content.
type Descriptor struct {
	Digest    string
	MediaType string
	Size      int64 // bytes
}

// Payload is the number of bytes of a pull for this machine's platform: the
// manifests that lead to it, config and layers.
func (img *Image) Payload() int64 {
	var sum int64
	for _, d := range img.Chain() {
		sum += d.Size
	}
	for _, d := range img.Blobs {
		sum += d.Size
	}
	return sum
}

// Chain is the manifests that lead to this machine's platform: the index, if
// there is one, and the first of its manifests.
func (img *Image) Chain() []Descriptor { return img.Manifests[:min(2, len(img.Manifests))] }

// Large is the largest blob.
func (img *Image) Large() Descriptor {
	var large Descriptor
	for _, d := range img.Blobs {
		if d.Size > large.Size {
			large = d
		}
	}
	return large
}

// SinglePlatform is an image for this machine: a program that prints [Hello],
// and layers of sizes from a hundred bytes to [LargeLayer].
var SinglePlatform = sync.OnceValues(func() (*Image, error) {
	img, err := nativeImage()
	if err != nil {
		return nil, err
	}
	return singlePlatform(img)
})

func singlePlatform(img v1.Image) (*Image, error) {
	blobs, err := blobsOf(img)
	if err != nil {
		return nil, err
	}
	desc, err := partial.Descriptor(img)
	if err != nil {
		return nil, err
	}
	return &Image{
		Digest: desc.Digest.String(), Manifests: []Descriptor{descriptor(desc)},
		Blobs: blobs, AllBlobs: blobs, image: img,
	}, nil
}

// MultiPlatform is an index of [SinglePlatform] and of an image for another
// architecture, which shares no layer with it and cannot run here.
var MultiPlatform = sync.OnceValues(func() (*Image, error) {
	native, err := nativeImage()
	if err != nil {
		return nil, err
	}
	foreign, err := imageOf(foreignArch(), []file{{"/hello", []byte("not for this machine")}}, noise(3, 300<<10))
	if err != nil {
		return nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	out := &Image{}
	for _, img := range []v1.Image{native, foreign} {
		desc, err := partial.Descriptor(img)
		if err != nil {
			return nil, err
		}
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		desc.Platform = config.Platform()
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: *desc})
		out.Manifests = append(out.Manifests, descriptor(desc))
		blobs, err := blobsOf(img)
		if err != nil {
			return nil, err
		}
		if img == native {
			out.Blobs = blobs
		}
		out.AllBlobs = append(out.AllBlobs, blobs...)
	}
	desc, err := partial.Descriptor(index)
	if err != nil {
		return nil, err
	}
	out.index = index
	out.Digest = desc.Digest.String()
	out.Manifests = append([]Descriptor{descriptor(desc)}, out.Manifests...)
	return out, nil
})

// NoiseImage is an image of uncompressed layers of so many bytes each, which do
// not compress. It does not run. Other seeds have other layers.
func NoiseImage(seed byte, sizes ...int) (*Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, n := range sizes {
		content, err := tarOf([]file{{fmt.Sprintf("/noise-%d", i), noiseBytes(seed+byte(i), n)}})
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, static.NewLayer(content, types.OCIUncompressedLayer)); err != nil {
			return nil, fmt.Errorf("adding a layer: %w", err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return singlePlatform(img)
}

func foreignArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

var nativeImage = sync.OnceValues(func() (v1.Image, error) {
	program, err := helloBinary()
	if err != nil {
		return nil, err
	}
	return imageOf(runtime.GOARCH,
		[]file{{"/hello", program}},
		[]file{{"/etc/motd", []byte("a layer of a few bytes\n")}},
		noise(1, 64<<10),
		[]file{{"/text", bytes.Repeat([]byte("a layer that compresses well\n"), 100_000)}},
		noise(2, LargeLayer),
	)
})

// file is one file of a layer.
type file struct {
	path    string
	content []byte
}

// noise is a layer of n bytes that do not compress, the same in every run.
func noise(seed byte, n int) []file {
	return []file{{fmt.Sprintf("/noise-%d", seed), noiseBytes(seed, n)}}
}

// noiseBytes are n bytes that do not compress, the same in every run.
func noiseBytes(seed byte, n int) []byte {
	content := make([]byte, n)
	source := rand.NewChaCha8([32]byte{seed})
	_, _ = source.Read(content) // never fails
	return content
}

// imageOf is an OCI image whose entry point is /hello.
func imageOf(arch string, layers ...[]file) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, files := range layers {
		content, err := tarOf(files)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content)), nil
		}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
		if err != nil {
			return nil, fmt.Errorf("making a layer: %w", err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, fmt.Errorf("adding a layer: %w", err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Entrypoint = []string{"/hello"}
	return mutate.ConfigFile(img, config)
}

// tarOf packs files, without times, so that digests are the same in every run.
func tarOf(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.path[1:], Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func blobsOf(img v1.Image) ([]Descriptor, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	blobs := []Descriptor{descriptor(&manifest.Config)}
	for i := range manifest.Layers {
		blobs = append(blobs, descriptor(&manifest.Layers[i]))
	}
	return blobs, nil
}

func descriptor(d *v1.Descriptor) Descriptor {
	return Descriptor{Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size}
}
