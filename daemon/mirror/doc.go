// Package mirror answers the pull API of OCI registries, over plain HTTP on
// loopback, as container runtimes speak it to a mirror: GET and HEAD of
// manifests and blobs, with ranges; /v2/; tags and referrers passed on.
//
// Runtimes ask the mirror first and the origin next. So every answer is
// chosen by what a runtime makes of it: a 404 or another 4xx, and a 5xx, send
// it on to the origin at once; 429 and 408 make it hammer the mirror, and a
// redirect ends the pull, so that none of these is ever sent. Headers go out
// when the first byte is there or cannot be expected soon. A body that cannot
// be finished rightly is cut short, which a runtime answers with a request for
// the rest, and that with an error.
//
// Callers that need a proof of permission (auth.go) get content only if the
// origin has lately let them have it. What the origin said is remembered for a
// short time (permits.go); where the bytes are is of no account.
//
// The package knows HTTP and the registry API. Where bytes come from is
// decided behind the interfaces Origin and Blobs.
package mirror

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

// Caller says in whose name an origin is asked.
type Caller struct {
	// Authorization is the header that came with the request, sent on
	// verbatim to the upstream and nowhere else.
	Authorization string
	// Anonymous asks the origin without any credential, and hands on its
	// challenge.
	Anonymous bool
	// Public asks the origin as anybody could: no credential of the daemon's
	// goes along, and a token is got where the origin wants one. If none of
	// the three is set, the daemon asks in its own name.
	Public bool
	// ID tells callers apart and does not tell what they sent. It is empty
	// for the daemon itself.
	ID string
	// expires is when the token says that it does, or zero.
	expires time.Time
}

// Origin asks origins for what is not content by digest. Errors wrap a
// *registry.Error.
type Origin interface {
	// Manifest gets the manifest of a tag.
	Manifest(ctx context.Context, c Caller, repo registry.Repository, tag string, accept []string) (Manifest, error)
	// HeadManifest asks for the manifest of a tag or digest.
	HeadManifest(ctx context.Context, c Caller, repo registry.Repository, ref string, accept []string) (Descriptor, error)
	// HeadBlob asks for the size of a blob, in bytes.
	HeadBlob(ctx context.Context, c Caller, repo registry.Repository, d digest.Digest) (int64, error)
	// Pass gets path below the repository. Only a 2xx is no error; its body
	// is bounded.
	Pass(ctx context.Context, c Caller, repo registry.Repository, path string, query url.Values, header http.Header) (*http.Response, error)
	// Unavailable reports whether err says that the origin cannot be asked,
	// rather than that it refuses.
	Unavailable(err error) bool
}

// Descriptor is what an origin says of a manifest. Digest is empty and Size
// negative if it does not say.
type Descriptor struct {
	MediaType string
	Digest    digest.Digest
	Size      int64
}

// Manifest is a manifest as an origin sent it.
type Manifest struct {
	Descriptor
	Body []byte
}

// Blobs gets content by digest, from this node or from elsewhere.
type Blobs interface {
	// Open returns a reader once the size is known. The error is
	// ErrUnproven if the content is here but the request does not say that
	// its caller may have it.
	Open(ctx context.Context, req Request) (Reader, error)
	// Stat returns the size of content that is here, in bytes.
	Stat(d digest.Digest) (size int64, ok bool)
}

// Request asks for content by digest.
type Request struct {
	Caller Caller
	Repo   registry.Repository
	Digest digest.Digest
	// Manifest says that the content is a manifest, not a blob.
	Manifest bool
	// Body is the content itself, if it is at hand.
	Body []byte
	// Size is that of the content in bytes, as far as a manifest or an
	// origin has said it; else 0.
	Size int64
	// Offset is the byte wanted first.
	Offset int64
	// Whole says that all of the content is wanted, in one body; OpenEnd that
	// a range is, up to the end or as far as the client cares to read.
	Whole, OpenEnd bool
	// Proven says that the caller may have the content.
	Proven bool
}

// Sharing decides what other nodes are given of what comes here.
type Sharing interface {
	// Local reports that d, fetched in the name of c, stays on this node,
	// because it is not known that everyone may have it.
	Local(c Caller, repo registry.Repository, d digest.Digest) bool
	// Given notes that the origin has just given d to c.
	Given(c Caller, repo registry.Repository, d digest.Digest)
	// Names notes that d is a manifest that names others.
	Names(d digest.Digest, named []digest.Digest)
}

// shareNothing is the Sharing of a node that knows no others.
type shareNothing struct{}

func (shareNothing) Local(Caller, registry.Repository, digest.Digest) bool { return false }
func (shareNothing) Given(Caller, registry.Repository, digest.Digest)      {}
func (shareNothing) Names(digest.Digest, []digest.Digest)                  {}

// Reader reads content.
type Reader interface {
	Size() int64
	// Wait returns when the byte at off can be read, or never will be. Of
	// empty content it waits for the proof that it is to be empty.
	Wait(ctx context.Context, off int64) error
	// CopyRange writes n bytes from off to w as they come. When it fails,
	// the last byte of the content was not written.
	CopyRange(ctx context.Context, w io.Writer, off, n int64) (int64, error)
	Close() error
}

// ErrUnproven is Open's answer to a caller that has yet to show that the
// origin lets it have the content.
var ErrUnproven = errors.New("permission is not proven")
