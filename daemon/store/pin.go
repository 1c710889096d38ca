package store

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// pinShare is the part of the quota that may be pinned: three quarters.
	// The rest is for what is pulled meanwhile.
	pinShareOf, pinShare = 4, 3
	// maxPin bounds what a clock that was wrong once can do.
	maxPin = 31 * 24 * time.Hour
)

// Pin keeps the complete blob d from being evicted until then. A pin that ends
// later stays; it survives a restart. The error is ErrNotFound if there is no
// such blob, ErrUnavailable if too much is pinned already.
func (s *Store) Pin(d digest.Digest, until time.Time) error {
	s.mu.Lock()
	e := s.index.blobs[d]
	if e == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	now := time.Now()
	if !until.After(now) || e.keep.After(until) {
		s.mu.Unlock()
		return nil
	}
	if !e.keep.After(now) {
		limit, err := s.limitLocked()
		if err != nil {
			s.mu.Unlock()
			return s.writeFailed("looking for free space", err)
		}
		if most := limit / pinShareOf * pinShare; s.index.kept(now)+e.size > most {
			s.mu.Unlock()
			return fmt.Errorf("%w: %s cannot be pinned: of %d bytes that may be, %d are", ErrUnavailable, d, most, s.index.kept(now))
		}
	}
	e.keep, e.touched = until, until
	s.mu.Unlock()
	// A time of use that is to come is how a pin is known after a restart.
	if err := s.fs.touch(s.blobPath(d)+sidecarSuffix, until); err != nil {
		return s.writeFailed("pinning "+string(d), err)
	}
	return nil
}

// kept returns how many bytes are pinned.
func (x *index) kept(now time.Time) (sum int64) {
	for _, e := range x.blobs {
		if e.keep.After(now) {
			sum += e.size
		}
	}
	return sum
}

// keepFrom returns until when a blob whose sidecar has this modification time
// is pinned.
func keepFrom(mtime int64) time.Time {
	until, now := time.Unix(0, mtime), time.Now()
	if !until.After(now) || until.After(now.Add(maxPin)) {
		return time.Time{}
	}
	return until
}
