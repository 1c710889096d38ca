package store

import (
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// SumError says that a piece does not have the sum it should have.
type SumError struct {
	Index     int
	Want, Got piece.Sum
}

func (e *SumError) Error() string {
	return fmt.Sprintf("store: piece %d has sum %s, should have %s", e.Index, e.Got, e.Want)
}

// Partial is the one handle on an unfinished blob. Its methods are safe for
// concurrent use.
//
// A piece is absent, claimed (by the journal of an earlier handle), being
// written, or visible. Visible pieces stay visible.
type Partial struct {
	s       *Store
	e       *entry
	layout  piece.Layout
	data    file
	journal file

	// ending is held by Commit, Close and Drop, which exclude each other
	// and may take as long as a sync of the disk does.
	ending sync.Mutex

	// journalMu serializes the appending of records; it guards journalEnd.
	journalMu  sync.Mutex
	journalEnd int64

	// hashMu guards inOrder and hashed.
	hashMu  sync.Mutex
	inOrder hash.Hash // state after hashed bytes, from the start of the blob
	hashed  int64

	// rereading is held while a visible piece is hashed again for a reader.
	rereading sync.Mutex

	// verifying holds a token while Verify runs.
	verifying chan struct{}

	// mu guards the fields below. Store.mu may be taken under it.
	mu        sync.Mutex
	sums      []piece.Sum   // valid where have or claimed
	right     []time.Time   // by piece: when its bytes last were what sums says
	ordered   []time.Time   // by piece: when Verify read it
	wrote     int64         // mtime of data after the last own write; valid when all are visible
	rotten    error         // what is on the disk is not what was written
	have      *piece.Set    // visible
	claimed   *piece.Set    // disjoint from have and busy
	busy      *piece.Set    // has a writer or is being rechecked
	charged   *piece.Set    // counts against the quota
	news      chan struct{} // closed and replaced when have or state changes
	state     partialState
	verified  bool   // the whole digest was
	spoilt    error  // a sync failed: what is in memory may never reach the disk
	path      string // where data is; Commit changes it
	committed bool
}

type partialState int

const (
	open partialState = iota
	closed
)

// Partial opens the unfinished blob d of size bytes, or begins it. Room is made by
// eviction as its pieces come. An unfinished blob of another size is discarded. A
// complete blob of the same digest stays until Commit replaces it.
//
// The error is ErrBusy if a handle is open, ErrUnavailable if the store
// cannot take the blob now.
func (s *Store) Partial(d digest.Digest, size int64) (*Partial, error) {
	alg, _, err := split(d)
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("store: blob %s cannot have %d bytes", d, size)
	}
	e, err := s.reserve(d, size)
	if err != nil {
		return nil, err
	}
	l := piece.NewLayout(size)
	p := &Partial{
		s: s, e: e, layout: l, path: s.partialPath(d),
		inOrder:   algorithms[alg].new(),
		verifying: make(chan struct{}, 1),
		sums:      make([]piece.Sum, l.Count()),
		right:     make([]time.Time, l.Count()),
		ordered:   make([]time.Time, l.Count()),
		have:      piece.NewSet(l.Count()),
		claimed:   piece.NewSet(l.Count()),
		busy:      piece.NewSet(l.Count()),
		charged:   piece.NewSet(l.Count()),
		news:      make(chan struct{}),
	}
	switch err := p.resume(); {
	case err == nil:
		p.recount()
		return p, nil
	case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
		_ = s.release(e, false)
		return nil, s.countRefusal(fmt.Errorf("%w: opening unfinished blob %s: %w", ErrUnavailable, d, err))
	}
	err = s.whileFull(p.create)
	if errors.Is(err, os.ErrNotExist) {
		s.mu.Lock()
		err = s.restoreDirsLocked()
		s.mu.Unlock()
		if err == nil {
			err = p.create()
		}
	}
	if err != nil {
		s.release(e, true)
		return nil, s.countRefusal(s.writeFailed("beginning blob "+string(d), err))
	}
	p.recount()
	return p, nil
}

// recount sets what the blob counts for to what its journal claims.
func (p *Partial) recount() {
	var came int64
	for i := range p.layout.Count() {
		if p.claimed.Has(i) {
			_, n := p.layout.Span(i)
			came += n
			p.charged.Add(i)
		}
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.index.grow(p.e, came)
}

// charge makes room for piece i, of which bytes have come. What is discarded of
// it stays on the disk until it is written again, and counts.
func (p *Partial) charge(i int) error {
	p.mu.Lock()
	already := p.charged.Has(i)
	p.mu.Unlock()
	if already {
		return nil
	}
	_, n := p.layout.Span(i)
	s := p.s
	s.mu.Lock()
	err := s.growLocked(p.e, n)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.charged.Add(i)
	return nil
}

// reserve returns the pinned entry of the unfinished blob, with room for it.
func (s *Store) reserve(d digest.Digest, size int64) (e *entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if errors.Is(err, ErrUnavailable) {
			s.stats.Refusals++
		}
	}()
	if err := s.healthLocked(); err != nil {
		return nil, err
	}
	if e := s.index.partials[d]; e != nil {
		if e.pins > 0 {
			return nil, fmt.Errorf("%w: %s", ErrBusy, d)
		}
		if e.size == size {
			if err := s.admitLocked(size - e.came); err != nil {
				return nil, err
			}
			e.pins++
			s.index.use(e)
			return e, nil
		}
		if err := s.evictLocked(e); err != nil {
			return nil, err
		}
	}
	if err := s.admitLocked(size); err != nil {
		return nil, err
	}
	e = &entry{digest: d, size: size, partial: true, pins: 1}
	s.index.add(e)
	return e, nil
}

func (s *Store) countRefusal(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Refusals++
	return err
}

// release gives up the handle on an unfinished blob, and the blob with it if
// remove.
func (s *Store) release(e *entry, remove bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.pins--
	if !remove || s.index.partials[e.digest] != e {
		return nil
	}
	s.index.drop(e)
	return s.removeFilesLocked(e)
}

// resume opens the files of an earlier handle. A failure means to begin anew,
// by which only claims are lost, unless it is for want of descriptors.
func (p *Partial) resume() error {
	data, err := p.s.fs.open(p.path, os.O_RDWR)
	if err != nil {
		return err
	}
	info, err := data.stat()
	if err == nil && (!info.mode.IsRegular() || info.size != p.layout.Size()) {
		err = errJournal
	}
	var journal file
	if err == nil {
		journal, err = p.s.fs.open(p.path+journalSuffix, os.O_RDWR)
	}
	if err != nil {
		data.Close()
		return err
	}
	p.journalEnd, err = readJournal(journal, p.layout, p.sums, p.claimed)
	if err == nil {
		// A torn tail must not stand between old records and new ones.
		err = journal.truncate(p.journalEnd)
	}
	if err != nil {
		data.Close()
		journal.Close()
		p.claimed = piece.NewSet(p.layout.Count())
		return err
	}
	p.data, p.journal = data, journal
	return nil
}

// create begins the blob with an empty file of the full size, which takes no
// space yet. A crash before the journal has its header leaves an orphan.
func (p *Partial) create() (err error) {
	// What stands there may be a directory, or another's half-made file.
	if err := errors.Join(p.s.fs.removeAll(p.path), p.s.fs.removeAll(p.path+journalSuffix)); err != nil {
		return err
	}
	data, err := p.s.fs.open(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	var journal file
	if err = data.truncate(p.layout.Size()); err == nil {
		journal, err = p.s.fs.open(p.path+journalSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	}
	if err != nil {
		data.Close()
		return err
	}
	if _, err = journal.WriteAt(encodeJournalHeader(p.layout), 0); err != nil {
		data.Close()
		journal.Close()
		return err
	}
	p.data, p.journal, p.journalEnd = data, journal, journalHeader
	return nil
}

// Layout returns how the blob is cut into pieces.
func (p *Partial) Layout() piece.Layout { return p.layout }

// Has reports whether piece i is visible: verified since this handle was
// opened, and readable.
func (p *Partial) Has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have.Has(i)
}

// Claimed reports whether an earlier handle wrote piece i, which Recheck has
// not looked at yet.
func (p *Partial) Claimed(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.claimed.Has(i)
}

// Sum returns the BLAKE3 sum of piece i if it is visible.
func (p *Partial) Sum(i int) (piece.Sum, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.have.Has(i) {
		return piece.Sum{}, false
	}
	return p.sums[i], true
}

// Recheck reads and hashes claimed piece i. It reports whether the piece is
// visible now; a piece that does not match the sum that was journalled is
// absent from then on. An error says that it could not be read.
func (p *Partial) Recheck(i int) (bool, error) {
	p.mu.Lock()
	if p.state != open || !p.claimed.Has(i) {
		has := p.have.Has(i)
		p.mu.Unlock()
		return has, nil
	}
	p.claimed.Remove(i)
	p.busy.Add(i)
	want := p.sums[i]
	p.mu.Unlock()

	got, err := sumOf(p.data, p.layout, i)
	p.settle(i, err == nil && got == want, want)
	if err != nil {
		return false, fmt.Errorf("%w: rechecking %s: %w", ErrUnavailable, p.e.digest, err)
	}
	return got == want, nil
}

// settle ends the busy time of piece i, which is visible from now on or
// absent.
func (p *Partial) settle(i int, visible bool, sum piece.Sum) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy.Remove(i)
	if visible {
		p.sums[i], p.right[i] = sum, time.Now()
		p.have.Add(i)
		if p.wholeLocked() {
			// Nobody writes any more. The zero of an error fits no file.
			info, _ := p.data.stat()
			p.wrote = info.mtime
		}
		p.announceLocked()
	}
}

func (p *Partial) announceLocked() {
	close(p.news)
	p.news = make(chan struct{})
}

// moment is how long what was hashed is taken for unchanged. A file changes under
// a daemon if the disk rots or somebody writes there; while the blob comes, its
// times change all the while and tell nothing. Once all of it is there, they tell.
const moment = time.Second

func (p *Partial) wholeLocked() bool { return p.have.Count() == p.layout.Count() }

// touchedLocked reports whether somebody else has written to the file f of the
// blob since all of it came.
func (p *Partial) touchedLocked(f file) bool {
	if !p.wholeLocked() {
		return false
	}
	info, err := f.stat()
	return err != nil || info.mtime != p.wrote
}

// sound hashes piece i, which is visible, again by f, unless that was done a
// moment ago. The error is ErrCorrupt if the piece has changed since.
func (p *Partial) sound(f file, i int) error {
	if p.lately(f, i) {
		return nil
	}
	p.rereading.Lock()
	defer p.rereading.Unlock()
	if p.lately(f, i) { // another reader has done so
		return nil
	}
	got, err := sumOf(f, p.layout, i)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && got == p.sums[i] {
		p.right[i] = time.Now()
		return nil
	}
	if err == nil {
		err = fmt.Errorf("piece %d has sum %s, had %s", i, got, p.sums[i])
	}
	return p.rotLocked(err)
}

// lately reports whether piece i of the file f was right a moment ago, or is not
// visible.
func (p *Partial) lately(f file, i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.have.Has(i) || time.Since(p.right[i]) < moment && !p.touchedLocked(f)
}

// rotLocked notes that the blob has changed on the disk: it is not kept.
func (p *Partial) rotLocked(cause error) error {
	err := fmt.Errorf("%w: unfinished %s: %w", ErrCorrupt, p.e.digest, cause)
	if p.rotten == nil {
		p.s.mu.Lock()
		p.s.stats.Corruptions++
		p.s.mu.Unlock()
		p.s.log.Error("unfinished blob has changed on the disk", "digest", p.e.digest, "cause", cause)
		p.rotten = err
	}
	return err
}
