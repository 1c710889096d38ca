package store

import (
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
)

// Mark marks the complete blob d as one that everyone may have. The store
// does not know what makes it so; it keeps the mark with the blob, also through
// a restart, and drops it with the blob. The error is ErrNotFound if there is no
// such blob.
//
// The mark is an empty file of its own, so that nothing but an explicit copy of
// it makes a blob count as marked. It is not synced: a mark that a loss of power
// takes away makes a blob stay on this node, and no more.
func (s *Store) Mark(d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.index.blobs[d]
	if e == nil {
		return fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	if e.marked {
		return nil
	}
	e.marked = true // for this process at least
	f, err := s.fs.open(s.blobPath(d)+markSuffix, os.O_WRONLY|os.O_CREATE)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return s.writeFailedLocked("marking "+string(d), err)
	}
	return nil
}

// Marked reports whether d is here, complete, and marked.
func (s *Store) Marked(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.index.blobs[d]
	return e != nil && e.marked
}
