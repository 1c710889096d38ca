package test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/layout"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

func target(t *testing.T, s string) layout.Target {
	t.Helper()
	to, err := layout.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func noProgress(string, int64) func(int64, bool) { return func(int64, bool) {} }

// complete insists that all files named by their digest have it, and that what
// the index names is there, and returns the names of the index.
func complete(t *testing.T, files map[string][]byte) (names []string) {
	t.Helper()
	for name, data := range files {
		if dir, hex := filepath.Split(name); filepath.Base(dir) == "sha256" && digest.FromBytes(data).Encoded() != hex {
			t.Errorf("%s has wrong bytes", name)
		}
	}
	var index v1.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var need func(d v1.Descriptor)
	need = func(d v1.Descriptor) {
		data, ok := files["blobs/sha256/"+d.Digest.Encoded()]
		if !ok {
			t.Errorf("%s %s is missing", d.MediaType, d.Digest)
			return
		}
		var m struct {
			Manifests, Layers []v1.Descriptor
			Config            *v1.Descriptor
		}
		if d.MediaType != v1.MediaTypeImageIndex && d.MediaType != v1.MediaTypeImageManifest {
			return
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Error(err)
		}
		if m.Config != nil {
			m.Layers = append(m.Layers, *m.Config)
		}
		for _, below := range append(m.Manifests, m.Layers...) {
			need(below)
		}
	}
	for _, d := range index.Manifests {
		names = append(names, d.Annotations[v1.AnnotationRefName])
		need(d)
	}
	if files["oci-layout"] == nil {
		t.Error("oci-layout is missing")
	}
	return names
}

func readDir(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path) // it is below
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPullToLayout(t *testing.T) {
	o := registrytest.New(t)
	o.AddImage("app", "v1", noise(1, 3<<20), noise(2, 1000))
	layers := index(o, "multi", 100, "linux/amd64", "linux/arm64")
	n := startNode(t, o)
	source := func(ref string, platforms ...string) layout.Source {
		return layout.Source{Mirror: n.url, Repository: upstream + "/app", Reference: ref, Platforms: platforms, Matches: jobs.PlatformMatches}
	}
	dir := filepath.Join(t.TempDir(), "layout")
	for name, src := range map[string]layout.Source{"one:v1": source("v1", "linux/amd64"), "arm:multi": source("multi", "linux/arm64"), "all:multi": source("multi", "all")} {
		if _, err := layout.Pull(t.Context(), src, name, target(t, "oci:"+dir), noProgress); err != nil {
			t.Fatal(err)
		}
		if names := complete(t, readDir(t, dir)); !slices.Contains(names, name) {
			t.Errorf("%s is not in the index: %q", name, names)
		}
	}

	file := filepath.Join(t.TempDir(), "image.tar")
	if _, err := layout.Pull(t.Context(), source("multi", "linux/arm64"), "x", target(t, "tar:"+file), noProgress); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	complete(t, files)
	if files["blobs/sha256/"+layers["linux/amd64"].Encoded()] != nil {
		t.Error("the tar has another platform")
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside the tar there are %v, %v", left, err)
	}
	if _, err := layout.Pull(t.Context(), source("multi", "linux/s390x"), "x", target(t, "oci:"+dir), noProgress); err == nil {
		t.Error("a platform that is not there")
	}
}

// A pull that was interrupted goes on where it was, and what somebody has
// changed on the disk is not believed.
func TestPullResumes(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "v1", noise(1, 8<<20))
	big := img.Layers[0].Digest
	n := startNode(t, o)
	src := layout.Source{Mirror: n.url, Repository: upstream + "/app", Reference: "v1", Platforms: []string{"all"}}
	to := "oci:" + filepath.Join(t.TempDir(), "layout")
	release := make(chan struct{})
	defer close(release)
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: big}, registrytest.HangAfter(4<<20, release))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := layout.Pull(ctx, src, "x", target(t, to), func(_ string, size int64) func(int64, bool) {
		return func(bytes int64, _ bool) {
			if size == 8<<20 && bytes > 2<<20 {
				cancel()
			}
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	o.Heal()
	n.settled()
	o.ResetCounters()
	least := int64(1 << 40)
	if _, err := layout.Pull(t.Context(), src, "x", target(t, to), func(_ string, size int64) func(int64, bool) {
		return func(bytes int64, _ bool) {
			if size == 8<<20 {
				least = min(least, bytes)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if least < 2<<20 {
		t.Errorf("it began again at %d", least)
	}
	files := readDir(t, to[len("oci:"):])
	complete(t, files)

	path := filepath.Join(to[len("oci:"):], "blobs", "sha256", big.Encoded())
	files["blobs/sha256/"+big.Encoded()][5] ^= 1
	if err := os.WriteFile(path, files["blobs/sha256/"+big.Encoded()], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Pull(t.Context(), src, "x", target(t, to), noProgress); err != nil {
		t.Fatal(err)
	}
	complete(t, readDir(t, to[len("oci:"):]))
}
