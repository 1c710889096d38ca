// Package fetch brings one blob onto the node: one download however many ask
// for it, its bytes handed to every waiter as they come, its digest checked
// before the last of them go out.
//
// A download is a flight. It owns the unfinished blob in the store and runs
// workers, each of which fills a run of neighbouring pieces from a source.
// A plan, which is pure, decides who fills what. Readers follow the flight:
// each copies what is there to its client and waits for more.
//
// What a reader may see of a blob that is not yet verified are whole pieces
// and the beginnings of pieces that an origin is sending; the last piece is
// held back until the digest of the whole is right. So a client that gets a
// complete body has got the right one.
//
// Where the node is one of a cluster, a flight is a member of the blob's swarm.
// Then a scheduler says which runs it brings from the origin, or from a seed,
// and the flight gets the rest from neighbours, the rarest first. A piece from
// a peer is checked against the sum that the peer gave for it before anybody
// sees it; the digest of the whole has the last word. When neither scheduler
// nor neighbours help, the flight helps itself at the origin.
//
// The package decides and moves no bytes itself: they go from a Stream into
// the Store and out of it. It knows neither HTTP nor files.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// Source opens one blob at its origin, in the name of one caller.
type Source interface {
	// Open opens blob d for the bytes from off up to end, or to the blob's
	// end if end is -1. Errors are final: what is worth another attempt
	// has been attempted.
	Open(ctx context.Context, d digest.Digest, off, end int64) (Stream, error)
	// Size asks for the size of the blob alone, in bytes.
	Size(ctx context.Context, d digest.Digest) (int64, error)
	// Key identifies origin, repository and caller. Sources of equal keys
	// are interchangeable.
	Key() string
	// Origin names what bounds requests to the origin, such as the upstream
	// and the repository, in the same way on each node.
	Origin() string
}

// Stream is the bytes of a blob from an origin. It deals with cuts and stalls
// itself and ends with io.EOF only where it should.
type Stream interface {
	io.ReadCloser
	// Size is the size of the whole blob in bytes.
	Size() int64
	// Offset is where the stream starts. It is less than what was asked for
	// when the origin cannot start in the middle.
	Offset() int64
}

// Store keeps blobs and their pieces.
type Store interface {
	// Blob opens a complete blob. The error is ErrNotFound if there is none.
	Blob(d digest.Digest) (Blob, error)
	// Pending returns the size of an unfinished blob left from before.
	Pending(d digest.Digest) (size int64, ok bool)
	// Partial opens or makes the unfinished blob d. An error wraps
	// ErrUnavailable if the store cannot take it.
	Partial(d digest.Digest, size int64) (Partial, error)
}

// Blob is a complete blob, held against eviction until Close.
type Blob interface {
	Size() int64
	// CopyRange writes n bytes from off to w. Bytes found to have rotted
	// are not written: the error is then ErrCorrupt, and the store no longer
	// has the blob.
	CopyRange(w io.Writer, off, n int64) (int64, error)
	Close() error
}

// Partial is a blob in the making. Its methods may be called concurrently.
type Partial interface {
	// Has reports whether piece i is verified and can be read.
	Has(i int) bool
	// Claimed reports whether piece i was left by an earlier process and
	// must be rechecked before it counts.
	Claimed(i int) bool
	// Sum returns the sum of piece i if it can be read.
	Sum(i int) (piece.Sum, bool)
	// Recheck verifies a claimed piece and reports whether it is right.
	Recheck(i int) (bool, error)
	// Piece starts to write piece i.
	Piece(i int) (PieceWriter, error)
	// Verify hashes the blob in order as pieces come, until its end. The
	// error is a *digest mismatch* made known by wrapping ErrDigest.
	Verify(ctx context.Context) error
	// HashState returns the hash over the bytes [0, offset).
	HashState() (offset int64, h hash.Hash, err error)
	// Reader opens the bytes for reading. It stays good whatever becomes of
	// the Partial.
	Reader() (PartialReader, error)
	// Commit makes the verified blob complete and durable.
	Commit() error
	// Close keeps the pieces for later, Drop deletes them.
	Close() error
	Drop() error
}

// PieceWriter takes the bytes of one piece, in order.
type PieceWriter interface {
	io.Writer
	// Commit makes the complete piece visible.
	Commit() (piece.Sum, error)
	// CommitSum is Commit for a piece that must have a sum. The error is
	// ErrWrongPiece if it has another; then it is not made visible.
	CommitSum(piece.Sum) error
	Discard()
}

// PartialReader reads from an unfinished blob, without regard to which bytes
// are there.
type PartialReader interface {
	CopyRange(w io.Writer, off, n int64) (int64, error)
	Close() error
}

// What a Store's errors wrap.
var (
	ErrNotFound    = errors.New("no such blob")
	ErrCorrupt     = errors.New("blob has rotted")
	ErrUnavailable = errors.New("store takes nothing now")
	ErrDigest      = errors.New("digest mismatch")
	ErrWrongPiece  = errors.New("piece has another sum")
)

// errSize says that sources disagree on how long a blob is.
var errSize = errors.New("sizes differ")

// ErrUnproven is the error of Open when the blob is here but the request did
// not say that the origin lets its caller have it.
var ErrUnproven = errors.New("the caller's permission is not proven")

// ErrBusy is the error of Open when too many blobs are in flight.
var ErrBusy = errors.New("too many blobs in flight")

// errFull says to a request that may be served past the store that it has no
// place in a flight.
var errFull = errors.New("no place in a flight for a blob of this registry")

// BadBlobError says that an origin sent bytes that are not the blob. They
// were not delivered as a whole and not kept.
type BadBlobError struct {
	Digest digest.Digest
	// Source is the key of the source that sent them.
	Source string
	Err    error
}

func (e *BadBlobError) Error() string {
	return fmt.Sprintf("blob %s from %s is wrong: %v", e.Digest, e.Source, e.Err)
}

func (e *BadBlobError) Unwrap() error { return e.Err }
