package store

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// entry is one blob, complete or not, that counts against the quota.
type entry struct {
	digest  digest.Digest
	size    int64
	partial bool
	// The fields below are guarded by Store.mu.
	came    int64 // bytes of a partial: of pieces that were begun
	pins    int   // open handles
	elem    *list.Element
	touched time.Time // when its use was last written to disk; zero: not by us
	keep    time.Time // not evicted before
	marked  bool      // see Store.Mark

	proof *proof // of a complete blob: what is known of its bytes
}

// index is what the store holds, and in which order it was used. Guarded by
// Store.mu.
//
// The order is a container/list and not a golang-lru cache: entries with an
// open handle stay in their place and are stepped over, where a cache would
// evict its oldest entry whatever holds it.
type index struct {
	blobs    map[digest.Digest]*entry
	partials map[digest.Digest]*entry
	order    *list.List // of *entry, most recently used first
	used     int64      // bytes: the sum of what the entries take
}

// takes is what an entry counts for: a blob that is coming only with what has
// come of it.
func (e *entry) takes() int64 {
	if e.partial {
		return e.came
	}
	return e.size
}

func (x *index) init() {
	x.blobs, x.partials = map[digest.Digest]*entry{}, map[digest.Digest]*entry{}
	x.order = list.New()
}

func (x *index) of(e *entry) map[digest.Digest]*entry {
	if e.partial {
		return x.partials
	}
	return x.blobs
}

// add takes e in as the most recently used.
func (x *index) add(e *entry) {
	x.of(e)[e.digest] = e
	e.elem = x.order.PushFront(e)
	x.used += e.takes()
}

// grow sets what has come of a partial.
func (x *index) grow(e *entry, came int64) {
	if x.of(e)[e.digest] == e {
		x.used += came - e.came
		e.came = came
	}
}

// promised is what may still come of the partials that are open, in bytes.
func (x *index) promised() (sum int64) {
	for _, e := range x.partials {
		if e.pins > 0 {
			sum += e.size - e.came
		}
	}
	return sum
}

// drop forgets e. It reports false if e was forgotten before.
func (x *index) drop(e *entry) bool {
	if x.of(e)[e.digest] != e {
		return false
	}
	delete(x.of(e), e.digest)
	x.order.Remove(e.elem)
	x.used -= e.takes()
	return true
}

func (x *index) use(e *entry) { x.order.MoveToFront(e.elem) }

// pinned counts the entries with an open handle.
func (x *index) pinned() (n int) {
	for el := x.order.Front(); el != nil; el = el.Next() {
		if el.Value.(*entry).pins > 0 {
			n++
		}
	}
	return n
}

// victims returns the least recently used entries without handle or pin whose
// sizes make up at least need bytes, or fewer if there are no more.
func (x *index) victims(need int64) (v []*entry, sum int64) {
	now := time.Now()
	for el := x.order.Back(); el != nil && sum < need; el = el.Prev() {
		if e := el.Value.(*entry); e.pins == 0 && !e.keep.After(now) {
			v = append(v, e)
			sum += e.takes()
		}
	}
	return v, sum
}

// Limit returns the quota in bytes as the disk allows it now.
func (s *Store) Limit() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limitLocked()
}

// limitLocked returns the quota in bytes as the disk allows it now: what the
// store has allocated, and what is free beyond the tenth that stays free.
func (s *Store) limitLocked() (int64, error) {
	sp, err := s.fs.space(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		if err = s.restoreDirsLocked(); err == nil {
			sp, err = s.fs.space(s.dir)
		}
	}
	if err != nil {
		return 0, err
	}
	// A piece of a partial counts from its first byte on, but takes from the
	// disk only what is written.
	allocated := s.index.used
	for d, e := range s.index.partials {
		var has int64
		if info, err := s.fs.lstat(s.partialPath(d)); err == nil {
			has = min(info.allocated, e.came)
		}
		allocated -= e.came - has
	}
	return max(0, min(s.maxBytes, allocated+sp.avail-sp.total/freeShare)), nil
}

// admitLocked looks whether a blob of which size more bytes may come can be made
// to fit into the quota, beside all that may still come of others. It evicts
// nothing: the size is somebody's word, and room is made for bytes that come.
func (s *Store) admitLocked(size int64) error {
	limit, err := s.limitLocked()
	if err != nil {
		return s.writeFailedLocked("looking for free space", err)
	}
	s.stats.LimitBytes = limit
	if size > limit && size > 0 {
		return fmt.Errorf("%w: %d bytes are more than the quota of %d (%d configured, a tenth of the disk stays free)", ErrUnavailable, size, limit, s.maxBytes)
	}
	promised := s.index.promised()
	need := s.index.used + promised - (limit - size)
	if need <= 0 || size == 0 {
		return nil
	}
	if _, sum := s.index.victims(need); sum < need {
		return fmt.Errorf("%w: no room for %d bytes: of a quota of %d, %d are in use and %d promised", ErrUnavailable, size, limit, s.index.used-sum, promised)
	}
	return nil
}

// shrinkLocked evicts until what there is fits into the quota, as far as that can
// be had.
func (s *Store) shrinkLocked() error {
	limit, err := s.limitLocked()
	if err != nil {
		return s.writeFailedLocked("looking for free space", err)
	}
	s.stats.LimitBytes = limit
	return s.evictForLocked(s.index.used - limit)
}

// evictForLocked evicts need bytes, or fewer if there are no more.
func (s *Store) evictForLocked(need int64) error {
	if need <= 0 {
		return nil
	}
	victims, _ := s.index.victims(need)
	for _, e := range victims {
		if err := s.evictLocked(e); err != nil {
			return err
		}
	}
	return nil
}

// growLocked evicts for n more bytes of a partial, which was admitted. If the disk
// has less room by now, the blob goes on as far as the disk takes it.
func (s *Store) growLocked(e *entry, n int64) error {
	limit, err := s.limitLocked()
	if err != nil {
		return s.writeFailedLocked("looking for free space", err)
	}
	s.stats.LimitBytes = limit
	if err := s.evictForLocked(s.index.used + n - limit); err != nil {
		return err
	}
	if s.index.used+n > s.maxBytes {
		return fmt.Errorf("%w: no room for %d more bytes of %s: a quota of %d is in use", ErrUnavailable, n, e.digest, s.maxBytes)
	}
	s.index.grow(e, e.came+n)
	return nil
}

// evictOne evicts the least recently used entry and reports whether there was
// one that could go.
func (s *Store) evictOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	victims, _ := s.index.victims(1)
	return len(victims) > 0 && s.evictLocked(victims[len(victims)-1]) == nil
}

func (s *Store) evictLocked(e *entry) error {
	if err := s.removeFilesLocked(e); err != nil {
		return s.writeFailedLocked("evicting "+string(e.digest), err)
	}
	s.index.drop(e)
	s.tellRemovedLocked(e)
	s.stats.Evictions++
	s.log.Debug("evicted", "digest", e.digest, "bytes", e.size, "partial", e.partial)
	return nil
}

func (s *Store) tellRemovedLocked(e *entry) {
	if s.removed != nil && !e.partial {
		s.removed(e.digest)
	}
}

// removeFilesLocked unlinks what e has on disk. A second file that stays
// behind is an orphan, which the next Open removes.
func (s *Store) removeFilesLocked(e *entry) error {
	path, beside := s.blobPath(e.digest), sidecarSuffix
	if e.partial {
		path, beside = s.partialPath(e.digest), journalSuffix
	}
	if e.marked {
		// First, so that no mark outlives its blob.
		if err := s.fs.removeAll(path + markSuffix); err != nil {
			return err
		}
	}
	if err := s.fs.removeAll(path); err != nil {
		return err
	}
	if !e.partial && s.index.partials[e.digest] != nil {
		// A Commit may have written this sidecar anew for its own bytes.
		return nil
	}
	_ = s.fs.removeAll(path + beside)
	return nil
}

// forget drops a complete blob that turned out lost or rotten, even while
// other handles have it open. Its name may by now be that of a fresh copy,
// which stays.
func (s *Store) forget(e *entry, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.index.drop(e) {
		return
	}
	s.tellRemovedLocked(e)
	s.stats.Corruptions++
	s.log.Error("blob is lost or rotten; evicted", "digest", e.digest, "bytes", e.size, "cause", why)
	if err := s.removeFilesLocked(e); err != nil {
		s.log.Error("files of a rotten blob stay behind", "digest", e.digest, "err", err)
	}
}

// Evict removes the complete blob d. Handles that are open stay readable.
// The error is ErrNotFound if there is none.
func (s *Store) Evict(d digest.Digest) error {
	if _, _, err := split(d); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.index.blobs[d]
	if e == nil {
		return fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	return s.evictLocked(e)
}
