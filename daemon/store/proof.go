package store

import (
	"sync"
	"time"

	"github.com/shoalproject/shoal/piece"
)

// proofLasts is how long a verified piece counts where the system cannot say
// whether its pages stayed in memory.
const proofLasts = time.Minute

// proof is what this process knows about the bytes of one complete blob. It
// is shared by the blob's handles.
//
// A piece in the set needs no second look as long as the file is the same and
// the piece's pages are in memory: what was hashed there is then what will be
// sent. Pages that were dropped must come from the disk again, and may come
// back rotten. One gap is known: pages dropped and read again by somebody
// else (a backup) between two looks of ours appear to have stayed.
type proof struct {
	layout piece.Layout

	// hashing is held while a piece is read and hashed, so that a thousand
	// readers of a cold blob hash it once.
	hashing sync.Mutex

	mu sync.Mutex // guards the fields below
	// sums are read from the sidecar at the first use and kept: 32 bytes for
	// at least 256 KiB of blob, 2.5 MiB in all for 20 GiB.
	sums     []piece.Sum
	of       identity   // the file that verified speaks of
	verified *piece.Set // allocated with sums
	since    time.Time  // when the oldest of verified was verified, or before
}

func newProof(size int64) *proof { return &proof{layout: piece.NewLayout(size)} }

// prove records the sums of file id, and which of its pieces match them.
func (p *proof) prove(id identity, sums []piece.Sum, verified *piece.Set) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sums, p.of, p.since, p.verified = sums, id, time.Now(), verified
}

func (p *proof) loaded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verified != nil
}

// load sets the sums if nobody has.
func (p *proof) load(sums []piece.Sum) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verified == nil {
		p.sums, p.verified = sums, piece.NewSet(len(sums))
	}
}

func (p *proof) sum(i int) piece.Sum {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sums[i]
}

// trusted returns how many pieces from first, of at most n, may be sent
// unread from f, which is file id now. A piece whose pages were dropped
// loses its proof.
func (p *proof) trusted(f file, id identity, first, n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of != id {
		p.of, p.verified = id, piece.NewSet(len(p.sums))
	}
	run := 0
	for run < n && p.verified.Has(first+run) {
		run++
	}
	if run == 0 {
		return 0
	}
	off, _ := p.layout.Span(first)
	last, length := p.layout.Span(first + run - 1)
	bytes, known := f.resident(off, last+length-off)
	if !known {
		if time.Since(p.since) < proofLasts {
			return run
		}
		p.verified = piece.NewSet(len(p.sums))
		return 0
	}
	whole := 0 // pieces before the first gap
	for whole < run && spanEnd(p.layout, first+whole)-off <= bytes {
		whole++
	}
	// Every gap in the run is noted now: by the time the sending comes to a
	// later piece, somebody may have read its pages in again.
	for i := first + whole; i < first+run; i++ {
		start, length := p.layout.Span(i)
		if in, _ := f.resident(start, length); in < length {
			p.verified.Remove(i)
		}
	}
	return whole
}

// add records that piece i of file id matches its sum.
func (p *proof) add(id identity, i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of != id {
		return
	}
	if p.verified.Count() == 0 {
		p.since = time.Now()
	}
	p.verified.Add(i)
}
