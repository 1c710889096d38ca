package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry"
)

// pull pulls an image as a runtime does, three blobs at a time, checks every
// digest, keeps nothing, and returns the number of bytes.
func pull(ctx context.Context, ref, tag string) (int64, error) {
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return 0, err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	repo.PlainHTTP = true
	repo.Client = &auth.Client{Client: &http.Client{Transport: transport}}
	desc, err := repo.Resolve(ctx, tag)
	if err != nil {
		return 0, err
	}
	body, err := content.FetchAll(ctx, repo, desc)
	if err != nil {
		return 0, err
	}
	m, err := registry.ParseManifest(desc.MediaType, body)
	if err != nil {
		return 0, err
	}
	total := int64(len(body))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(3)
	for _, blob := range m.Blobs {
		total += blob.Size
		group.Go(func() error { return pullBlob(ctx, repo, blob) })
	}
	return total, group.Wait()
}

func pullBlob(ctx context.Context, repo *remote.Repository, blob v1.Descriptor) error {
	rc, err := repo.Blobs().Fetch(ctx, blob)
	if err != nil {
		return err
	}
	defer rc.Close()
	v := content.NewVerifyReader(rc, blob)
	if _, err := io.Copy(io.Discard, v); err != nil {
		return fmt.Errorf("layer %.19s…: %w", blob.Digest, err)
	}
	return v.Verify()
}
