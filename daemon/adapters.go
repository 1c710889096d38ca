package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
	"github.com/shoalproject/shoal/scheduler"
)

// fetchStore is the store as package fetch wants it.
type fetchStore struct{ *store.Store }

func (s fetchStore) Blob(d digest.Digest) (fetch.Blob, error) {
	b, err := s.Store.Blob(d)
	if err != nil {
		return nil, fetchError(err)
	}
	return fetchBlob{b}, nil
}

func (s fetchStore) Partial(d digest.Digest, size int64) (fetch.Partial, error) {
	p, err := s.Store.Partial(d, size)
	if err != nil {
		return nil, fetchError(err)
	}
	return fetchPartial{p}, nil
}

type fetchBlob struct{ *store.Blob }

func (b fetchBlob) CopyRange(w io.Writer, off, n int64) (int64, error) {
	m, err := b.Blob.CopyRange(w, off, n)
	return m, fetchError(err)
}

type fetchPartial struct{ *store.Partial }

func (p fetchPartial) Piece(i int) (fetch.PieceWriter, error) {
	w, err := p.Partial.Piece(i)
	if err != nil {
		return nil, fetchError(err)
	}
	return fetchWriter{w}, nil
}

func (p fetchPartial) Verify(ctx context.Context) error { return fetchError(p.Partial.Verify(ctx)) }

func (p fetchPartial) Reader() (fetch.PartialReader, error) {
	r, err := p.Partial.Reader()
	if err != nil {
		return nil, err
	}
	return r, nil
}

type fetchWriter struct{ *store.PieceWriter }

func (w fetchWriter) Write(b []byte) (int, error) {
	n, err := w.PieceWriter.Write(b)
	return n, fetchError(err)
}

func (w fetchWriter) CommitSum(sum piece.Sum) error { return fetchError(w.PieceWriter.CommitSum(sum)) }

func (w fetchWriter) Commit() (piece.Sum, error) {
	s, err := w.PieceWriter.Commit()
	return s, fetchError(err)
}

// fetchError says an error of the store in the words of package fetch.
func fetchError(err error) error {
	var wrong *store.DigestError
	var wrongPiece *store.SumError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%w: %w", fetch.ErrNotFound, err)
	case errors.Is(err, store.ErrCorrupt):
		return fmt.Errorf("%w: %w", fetch.ErrCorrupt, err)
	case errors.Is(err, store.ErrUnavailable):
		return fmt.Errorf("%w: %w", fetch.ErrUnavailable, err)
	case errors.As(err, &wrong):
		return fmt.Errorf("%w: %w", fetch.ErrDigest, err)
	case errors.As(err, &wrongPiece):
		return fmt.Errorf("%w: %w", fetch.ErrWrongPiece, err)
	default:
		return err
	}
}

// mirrorOrigin is the clients of origins as package mirror wants them.
type mirrorOrigin struct {
	client *origin.Client
	// anybody has no credential of any kind, for callers that are public.
	anybody *origin.Client
}

// of returns the client that asks in the name of c.
func (o mirrorOrigin) of(c mirror.Caller) *origin.Client {
	if c.Public {
		return o.anybody
	}
	return o.client
}

func target(c mirror.Caller, repo registry.Repository) origin.Target {
	return origin.Target{Repository: repo, Authorization: c.Authorization, Anonymous: c.Anonymous}
}

func (o mirrorOrigin) Manifest(ctx context.Context, c mirror.Caller, repo registry.Repository, tag string, accept []string) (mirror.Manifest, error) {
	m, err := o.of(c).Manifest(ctx, target(c, repo), tag, accept)
	if err != nil {
		return mirror.Manifest{}, err
	}
	return mirror.Manifest{
		Descriptor: mirror.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Body))},
		Body:       m.Body,
	}, nil
}

func (o mirrorOrigin) HeadManifest(ctx context.Context, c mirror.Caller, repo registry.Repository, ref string, accept []string) (mirror.Descriptor, error) {
	d, err := o.of(c).HeadManifest(ctx, target(c, repo), ref, accept)
	if err != nil {
		return mirror.Descriptor{}, err
	}
	return mirror.Descriptor(*d), nil
}

func (o mirrorOrigin) HeadBlob(ctx context.Context, c mirror.Caller, repo registry.Repository, d digest.Digest) (int64, error) {
	return o.of(c).HeadBlob(ctx, target(c, repo), d)
}

func (o mirrorOrigin) Pass(ctx context.Context, c mirror.Caller, repo registry.Repository, path string, query url.Values, header http.Header) (*http.Response, error) {
	return o.of(c).Pass(ctx, target(c, repo), path, query, header)
}

func (mirrorOrigin) Unavailable(err error) bool { return origin.IsUnavailable(err) }

// smallBlob is up to which size a blob is as small as a manifest, in bytes: a
// config, most of all.
const smallBlob = 1 << 20

func small(req mirror.Request) bool { return req.Manifest || req.Size > 0 && req.Size <= smallBlob }

// mirrorBlobs is the fetcher as package mirror wants it.
type mirrorBlobs struct {
	fetcher *fetch.Fetcher
	store   *store.Store
	origins mirrorOrigin
	sharing *sharing    // nil: there are no other nodes
	pods    *precedence // nil: nobody waits
}

// unfinished reports whether a part of d is in the store and nothing adds to it.
func (d *Daemon) unfinished(blob digest.Digest) bool {
	_, pending := d.store.Pending(blob)
	return pending && !d.fetcher.InFlight(blob)
}

// blobs returns what the mirror gets content from.
func (d *Daemon) blobs() mirrorBlobs {
	b := mirrorBlobs{fetcher: d.fetcher, store: d.store, origins: mirrorOrigin{d.client, d.anybody}, pods: d.pods}
	if d.cluster != nil {
		b.sharing = d.cluster.sharing
	}
	return b
}

func (b mirrorBlobs) Stat(d digest.Digest) (int64, bool) {
	if d == d.Algorithm().FromBytes(nil) {
		return 0, true // it is nowhere, and needs not be
	}
	return b.store.Stat(d)
}

func (b mirrorBlobs) Open(ctx context.Context, req mirror.Request) (mirror.Reader, error) {
	wanted := b.request(req)
	wanted.MayPass = true
	r, err := b.fetcher.Open(ctx, wanted)
	if errors.Is(err, fetch.ErrUnproven) {
		return nil, mirror.ErrUnproven
	}
	if err != nil {
		return nil, err
	}
	return b.pods.await(r), nil
}

// request is req as package fetch wants it.
func (b mirrorBlobs) request(req mirror.Request) fetch.Request {
	return fetch.Request{
		Digest: req.Digest, Source: b.source(req), Offset: req.Offset, Proven: req.Proven,
		Size: req.Size, AtHand: req.Body != nil, Whole: req.Whole, OpenEnd: req.OpenEnd, Small: small(req),
		Private: b.sharing != nil && b.sharing.Local(req.Caller, req.Repo, req.Digest),
		Public:  b.sharing != nil && b.sharing.may(req.Digest),
	}
}

func (b mirrorBlobs) source(req mirror.Request) fetch.Source {
	s := originSource{client: b.origins.of(req.Caller), target: target(req.Caller, req.Repo), key: sourceKey(req.Caller, req.Repo), origin: req.Repo.String()}
	if req.Manifest {
		return manifestSource{s, req.Body}
	}
	return blobSource{s}
}

// keySalt is of this process alone, so that nobody can try passwords on a key.
var keySalt = rand.Text()

// sourceKey names a source for people, without what the caller sent. Sources of
// different credentials never have the same key: what one has proved is not
// another's.
func sourceKey(c mirror.Caller, repo registry.Repository) string {
	switch {
	case c.Public:
		return repo.String() + " for everyone"
	case c.Anonymous:
		return repo.String() + " for anonymous"
	case c.ID != "":
		return repo.String() + " for caller " + c.ID
	case c.Authorization != "": // of a preheat
		sum := sha256.Sum256([]byte(keySalt + c.Authorization))
		return fmt.Sprintf("%s for credential %x", repo, sum[:16])
	default:
		return repo.String()
	}
}

type originSource struct {
	client *origin.Client
	target origin.Target
	key    string
	origin string
}

func (s originSource) Key() string    { return s.key }
func (s originSource) Origin() string { return s.origin }

// refusal is an error of an origin that a scheduler can be told of.
type refusal struct {
	error
	target origin.Target
}

func (r refusal) Unwrap() error { return r.error }

// Because says it in the scheduler's words.
func (r refusal) Because() (scheduler.Reason, time.Duration) {
	var e *registry.Error
	switch {
	case !errors.As(r.error, &e):
		return scheduler.ReasonUnreachable, 0
	case e.Status == http.StatusTooManyRequests || e.RetryAfter > 0:
		// The other nodes keep away from an origin that limits them too: by
		// address, or by the credentials that nodes have in common. That it
		// limits one caller of this node is no concern of theirs.
		own := r.target.Authorization == "" && !r.target.Anonymous
		if own || origin.IsLimitedForAll(r.error) {
			return scheduler.ReasonRateLimited, e.RetryAfter
		}
		return scheduler.ReasonUnreachable, 0
	case e.Status < http.StatusInternalServerError:
		return scheduler.ReasonRefused, 0
	default:
		return scheduler.ReasonUnreachable, 0
	}
}

// blobSource opens a blob.
type blobSource struct{ originSource }

func (s blobSource) Open(ctx context.Context, d digest.Digest, off, end int64) (fetch.Stream, error) {
	stream, err := s.client.Blob(ctx, s.target, d, off, end)
	var refused *registry.Error
	if errors.As(err, &refused) && refused.Status == http.StatusRequestedRangeNotSatisfiable && off > 0 {
		// The caller wants bytes beyond the end; from the start, the size
		// comes to light.
		stream, err = s.client.Blob(ctx, s.target, d, 0, -1)
	}
	if err != nil {
		return nil, refusal{err, s.target}
	}
	return stream, nil
}

func (s blobSource) Size(ctx context.Context, d digest.Digest) (int64, error) {
	size, err := s.client.HeadBlob(ctx, s.target, d)
	if err != nil {
		return 0, refusal{err, s.target}
	}
	return size, nil
}

// manifestSource gets a manifest, which comes in one piece, unless it is at
// hand already.
type manifestSource struct {
	originSource
	body []byte
}

func (s manifestSource) Open(ctx context.Context, d digest.Digest, off, _ int64) (fetch.Stream, error) {
	if s.body != nil {
		return newBytesStream(s.body), nil
	}
	m, err := s.client.Manifest(ctx, s.target, d.String(), mirror.AcceptAll)
	if err != nil {
		return nil, refusal{err, s.target}
	}
	// From the store it will be served without the header it came with.
	if inner, err := registry.ParseManifest("", m.Body); err != nil || inner.MediaType != m.MediaType {
		return nil, &registry.Error{
			Status: http.StatusBadGateway, Code: registry.CodeManifestInvalid,
			Message: fmt.Sprintf("manifest %s came as %q, which it does not say itself", d, m.MediaType),
		}
	}
	return newBytesStream(m.Body), nil
}

func (s manifestSource) Size(ctx context.Context, d digest.Digest) (int64, error) {
	if s.body != nil {
		return int64(len(s.body)), nil
	}
	m, err := s.client.HeadManifest(ctx, s.target, d.String(), mirror.AcceptAll)
	if err != nil {
		return 0, refusal{err, s.target}
	}
	return m.Size, nil
}

type bytesStream struct {
	*bytes.Reader
}

func newBytesStream(b []byte) fetch.Stream { return bytesStream{bytes.NewReader(b)} }

func (bytesStream) Offset() int64 { return 0 }
func (bytesStream) Close() error  { return nil }
