package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer to push: what r gives at [0, Size).
type Layer struct {
	Bytes io.ReaderAt
	Size  int64
}

// Pushed is an image that was pushed.
type Pushed struct {
	// Descriptor is that of the index, if there is one, else of the manifest.
	v1.Descriptor
	// Layers are those of the manifest.
	Layers []v1.Descriptor
	// Bytes is all that a pull of it brings, in bytes.
	Bytes int64
}

// Push uploads an image of the layers.
func Push(ctx context.Context, base, repo, tag string, layers ...Layer) (Pushed, error) {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	conf := v1.Image{Platform: platform, RootFS: v1.RootFS{Type: "layers"}}
	var p Pushed
	for _, l := range layers {
		d, err := digest.FromReader(io.NewSectionReader(l.Bytes, 0, l.Size))
		if err != nil {
			return p, err
		}
		if err := pushBlob(ctx, base, repo, d, l); err != nil {
			return p, err
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: l.Size})
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, d)
		p.Bytes += l.Size
	}
	raw, err := json.Marshal(conf)
	if err != nil {
		return p, err
	}
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := pushBlob(ctx, base, repo, m.Config.Digest, Layer{bytes.NewReader(raw), m.Config.Size}); err != nil {
		return p, err
	}
	p.Descriptor, err = pushManifest(ctx, base, repo, tag, m.MediaType, m)
	p.Bytes += m.Config.Size + p.Size
	p.Layers = m.Layers
	return p, err
}

// platform is that of all images; Pull takes it.
var platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// PushIndex uploads an index of an image that was pushed.
func PushIndex(ctx context.Context, base, repo, tag string, img Pushed) (Pushed, error) {
	entry := img.Descriptor
	entry.Platform = &platform
	var err error
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{entry}}
	img.Descriptor, err = pushManifest(ctx, base, repo, tag, index.MediaType, index)
	img.Bytes += img.Size
	return img, err
}

func pushManifest(ctx context.Context, base, repo, tag, mediaType string, m any) (v1.Descriptor, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	_, err = send(ctx, http.MethodPut, base+"/v2/"+repo+"/manifests/"+tag, mediaType, bytes.NewReader(body), int64(len(body)), http.StatusCreated)
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}, err
}

func pushBlob(ctx context.Context, base, repo string, d digest.Digest, l Layer) error {
	resp, err := send(ctx, http.MethodPost, base+"/v2/"+repo+"/blobs/uploads/", "", nil, 0, http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("upload of %s: %w", d, err)
	}
	q := to.Query()
	q.Set("digest", d.String())
	to.RawQuery = q.Encode()
	_, err = send(ctx, http.MethodPut, to.String(), "application/octet-stream", io.NewSectionReader(l.Bytes, 0, l.Size), l.Size, http.StatusCreated)
	return err
}

func send(ctx context.Context, method, to, contentType string, body io.Reader, size int64, want int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s %s: %s: %s", method, to, resp.Status, text)
	}
	return resp, nil
}
