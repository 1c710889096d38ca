// Package storetest holds a contract suite for stores of blobs, and Memory, a
// working store in memory for the tests of packages that need one.
//
// The interfaces here are those of daemon/store with its concrete types
// replaced, so that one suite runs on both. The package knows what a store
// promises; it must not know how one keeps it.
package storetest

import (
	"context"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/piece"
)

// Store is what the suite asks of a store. Its errors are those of package
// store.
type Store interface {
	Blob(d digest.Digest) (Blob, error)
	Partial(d digest.Digest, size int64) (Partial, error)
	Evict(d digest.Digest) error
	Health() error
}

// Blob is a handle on a complete blob.
type Blob interface {
	Size() int64
	CopyRange(w io.Writer, off, n int64) (int64, error)
	Close() error
}

// Partial is the handle on an unfinished blob.
type Partial interface {
	Layout() piece.Layout
	Has(i int) bool
	Claimed(i int) bool
	Recheck(i int) (bool, error)
	Piece(i int) (PieceWriter, error)
	Sum(i int) (piece.Sum, bool)
	Verify(ctx context.Context) error
	HashState() (offset int64, h hash.Hash, err error)
	Reader() (PartialReader, error)
	Commit() error
	Close() error
	Drop() error
}

// PieceWriter takes the bytes of one piece.
type PieceWriter interface {
	Write(b []byte) (int, error)
	Written() int64
	Commit() (piece.Sum, error)
	CommitSum(want piece.Sum) error
	Discard()
}

// PartialReader reads an unfinished blob.
type PartialReader interface {
	CopyRange(w io.Writer, off, n int64) (int64, error)
	Close() error
}

// Wrap makes a Store of the real one.
func Wrap(s *store.Store) Store { return wrapped{s} }

type wrapped struct{ *store.Store }

func (w wrapped) Blob(d digest.Digest) (Blob, error) {
	b, err := w.Store.Blob(d)
	if err != nil {
		return nil, err // and not a nil *store.Blob in an interface
	}
	return b, nil
}

func (w wrapped) Partial(d digest.Digest, size int64) (Partial, error) {
	p, err := w.Store.Partial(d, size)
	if err != nil {
		return nil, err
	}
	return wrappedPartial{p}, nil
}

type wrappedPartial struct{ *store.Partial }

func (w wrappedPartial) Piece(i int) (PieceWriter, error) {
	pw, err := w.Partial.Piece(i)
	if err != nil {
		return nil, err
	}
	return pw, nil
}

func (w wrappedPartial) Reader() (PartialReader, error) {
	r, err := w.Partial.Reader()
	if err != nil {
		return nil, err
	}
	return r, nil
}
