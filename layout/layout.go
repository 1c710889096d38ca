// Package layout writes images as OCI image layouts, to a directory or a tar
// file, from a mirror.
//
// It knows the layout (image-spec 1.1) and the pull API. Where the mirror has
// its bytes from, and in whose name, is the mirror's to know. What is written
// under its name is complete and has its digest.
package layout

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Target is where a layout goes.
type Target struct {
	tar  bool
	path string
}

// ParseTarget reads oci:DIRECTORY or tar:FILE.
func ParseTarget(s string) (Target, error) {
	kind, path, ok := strings.Cut(s, ":")
	if !ok || path == "" || kind != "oci" && kind != "tar" {
		return Target{}, fmt.Errorf("%q: want oci:DIRECTORY or tar:FILE", s)
	}
	return Target{tar: kind == "tar", path: filepath.Clean(path)}, nil
}

// dir is the directory that is filled: that of the layout, or one beside the
// tar that is to be made of it.
func (t Target) dir() string {
	if t.tar {
		return t.path + ".partial"
	}
	return t.path
}

// blobPath is the path of a blob in a layout.
func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// Progress is told of a blob that begins to come. What it returns hears how
// many bytes are there, and when it is complete.
type Progress func(name string, size int64) func(bytes int64, done bool)

// Pull writes an image to a target under a name, and returns the digest of
// what the layout's index names. What a Pull that was interrupted left is
// used.
func Pull(ctx context.Context, src Source, name string, t Target, progress Progress) (digest.Digest, error) {
	dir := t.dir()
	for _, algorithm := range []string{"sha256", "sha512"} {
		if err := os.MkdirAll(filepath.Join(dir, "blobs", algorithm), 0o755); err != nil {
			return "", err
		}
	}
	top, blobs, err := src.resolve(ctx, dir)
	if err != nil {
		return "", err
	}
	if err := src.fetchAll(ctx, dir, blobs, progress); err != nil {
		return "", err
	}
	top.Annotations = map[string]string{v1.AnnotationRefName: name}
	if err := writeIndex(dir, top); err != nil {
		return "", err
	}
	if t.tar {
		if err := pack(dir, t.path); err != nil {
			return "", err
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	return top.Digest, nil
}

// writeIndex adds an image to the layout's index, in the place of one that had
// its name.
func writeIndex(dir string, top v1.Descriptor) error {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	file := filepath.Join(dir, v1.ImageIndexFile)
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &index)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", file, err)
	}
	list := []v1.Descriptor{}
	for _, d := range index.Manifests {
		if d.Annotations[v1.AnnotationRefName] != top.Annotations[v1.AnnotationRefName] {
			list = append(list, d)
		}
	}
	index.Manifests = append(list, top)
	if err := writeFile(filepath.Join(dir, v1.ImageLayoutFile), v1.ImageLayout{Version: v1.ImageLayoutVersion}); err != nil {
		return err
	}
	return writeFile(file, index)
}

// writeFile replaces a file by a document, whole or not at all.
func writeFile(file string, doc any) error {
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".part", raw, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".part", file)
}

// pack makes a tar of a layout.
func pack(dir, file string) (err error) {
	out, err := os.Create(file + ".part")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close(), os.Remove(out.Name()))
		}
	}()
	w := tar.NewWriter(out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := errors.Join(w.Close(), out.Sync()); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

// has reports whether a layout holds a blob, by reading it: a file of an
// interrupted machine may be anything.
func has(dir string, d v1.Descriptor) bool {
	f, err := os.Open(blobPath(dir, d.Digest))
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || d.Size > 0 && info.Size() != d.Size {
		return false
	}
	v := d.Digest.Verifier()
	_, err = io.Copy(v, f)
	return err == nil && v.Verified()
}
