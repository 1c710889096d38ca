package demo

import (
	"context"
	"errors"
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

// atOnce is how many blobs a runtime pulls at a time.
const atOnce = 3

// pull pulls an image, by tag or digest, as a runtime does. It checks every
// digest and keeps nothing.
func pull(ctx context.Context, mirror, reference string) error {
	r, err := remote.NewRepository(mirror + "/" + upstream + "/" + repo)
	if err != nil {
		return err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	r.PlainHTTP = true
	r.Client = &auth.Client{Client: &http.Client{Transport: transport}}
	desc, err := r.Resolve(ctx, reference)
	if err != nil {
		return err
	}
	body, err := content.FetchAll(ctx, r, desc)
	if err != nil {
		return err
	}
	m, err := registry.ParseManifest(desc.MediaType, body)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, blob := range m.Blobs {
		group.Go(func() error { return pullBlob(ctx, r, blob) })
	}
	return group.Wait()
}

func pullBlob(ctx context.Context, r *remote.Repository, blob v1.Descriptor) error {
	rc, err := r.Blobs().Fetch(ctx, blob)
	if err != nil {
		return err
	}
	defer rc.Close()
	v := content.NewVerifyReader(rc, blob)
	if _, err := io.Copy(io.Discard, v); err != nil {
		return fmt.Errorf("layer %.19s…: %w", blob.Digest, err)
	}
	if err := v.Verify(); err != nil {
		return fmt.Errorf("layer %.19s…: %w", blob.Digest, err)
	}
	return nil
}

// wrong reports whether a pull failed because wrong bytes were delivered as
// complete. A body that is cut short is no such thing.
func wrong(err error) bool {
	return errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData)
}
