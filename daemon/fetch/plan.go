package fetch

import (
	"time"

	"github.com/shoalproject/shoal/piece"
)

// plan divides the missing pieces of one blob into runs. It is pure: the
// flight that owns it calls it under its lock.
//
// Invariant: no piece belongs to two runs, and no run holds a piece that is
// there already.
type plan struct {
	layout piece.Layout
	have   *piece.Set
	// own are those of have that this node itself brought from an origin.
	own *piece.Set
	// claimed are pieces on disk that must be rechecked; never also in have.
	claimed *piece.Set
	// lent are pieces that are coming by another way than a run.
	lent *piece.Set
	runs []*run
	// whole: readers get whole pieces only, since one that is being written
	// may have to come from elsewhere.
	whole bool
}

// run is the duty of one worker: the pieces [next, end), in order. Either all
// of them are claimed or none is.
type run struct {
	next, end int
	// written counts the bytes of piece next that are in the store already.
	written int64
	// stale are those of written that are older than a moment or two. Until the
	// piece has a sum, nobody knows whether they are still what was written.
	stale, mark int64
	marked      time.Time
	recheck     bool

	// In a swarm:
	rescue bool      // nobody assigned it
	fresh  bool      // nothing of it has come yet
	moved  time.Time // when something of it came last, or it began
	cancel func()    // ends the worker's stream
}

func newPlan(l piece.Layout) *plan {
	return &plan{layout: l, have: piece.NewSet(l.Count()), own: piece.NewSet(l.Count()), claimed: piece.NewSet(l.Count()), lent: piece.NewSet(l.Count())}
}

// start begins a run at the first piece at or after i that is missing and
// nobody's, going round at the end, and returns nil if there is none.
func (p *plan) start(i int) *run {
	if r := p.next(i); r != nil {
		return r
	}
	return p.next(0)
}

// next is start without going round.
func (p *plan) next(i int) *run {
	j := p.nextFree(i)
	if j >= p.layout.Count() {
		return nil
	}
	return p.begin(j, p.layout.Count())
}

// missing returns the first piece from the one at off on, going round, that
// must be fetched, or Count if there is none.
func (p *plan) missing(off int64) int {
	n := p.layout.Count()
	from := p.layout.Index(min(off, p.layout.Size()))
	for k := range n {
		if i := (from + k) % n; !p.have.Has(i) && !p.claimed.Has(i) {
			return i
		}
	}
	return n
}

// startAt begins a run at piece i exactly, if it is missing. From a run that
// has i before it, it takes i and what follows. It returns nil if i is there
// or is what a run is working on.
func (p *plan) startAt(i int) *run {
	if p.have.Has(i) {
		return nil
	}
	end := p.layout.Count()
	if r := p.owner(i); r != nil {
		if r.next == i {
			return nil
		}
		end, r.end = r.end, i
	}
	return p.begin(i, end)
}

func (p *plan) begin(i, limit int) *run {
	r := &run{next: i, end: i + 1, recheck: p.claimed.Has(i)}
	for r.end < limit && p.free(r.end) && p.claimed.Has(r.end) == r.recheck {
		r.end++
	}
	p.runs = append(p.runs, r)
	return r
}

// done records that the piece that r works on is there.
func (p *plan) done(r *run) {
	p.have.Add(r.next)
	if !r.recheck {
		p.own.Add(r.next)
	}
	p.claimed.Remove(r.next)
	r.next++
	r.written, r.stale, r.mark, r.marked = 0, 0, 0, time.Time{}
}

// moment is how long bytes on the disk are taken for what was written.
const moment = time.Second

// wrote records that n more bytes of the piece that r works on are in the store.
func (r *run) wrote(n int64, now time.Time) {
	if r.marked.IsZero() {
		r.marked = now
	} else if now.Sub(r.marked) >= moment {
		r.stale, r.mark, r.marked = r.mark, r.written, now
	}
	r.written += n
}

// refuted records that the claimed piece that r works on is not what it was
// said to be, and ends r.
func (p *plan) refuted(r *run) {
	p.claimed.Remove(r.next)
	p.stop(r)
}

// stop ends r; what it has not done is free again.
func (p *plan) stop(r *run) {
	for i, other := range p.runs {
		if other == r {
			p.runs = append(p.runs[:i], p.runs[i+1:]...)
			return
		}
	}
}

func (p *plan) owner(i int) *run {
	for _, r := range p.runs {
		if r.next <= i && i < r.end {
			return r
		}
	}
	return nil
}

func (p *plan) free(i int) bool { return !p.have.Has(i) && !p.lent.Has(i) && p.owner(i) == nil }

func (p *plan) nextFree(i int) int {
	for i = p.have.NextAbsent(i); i < p.layout.Count(); i = p.have.NextAbsent(i) {
		r := p.owner(i)
		switch {
		case r != nil:
			i = r.end
		case p.lent.Has(i):
			i++
		default:
			return i
		}
	}
	return i
}

// revoke takes the pieces [first, end) from the runs that have them, but for
// those that are being written.
func (p *plan) revoke(first, end int) {
	for _, r := range p.runs {
		keep := r.next
		if r.written > 0 {
			keep++
		}
		if from := max(first, keep); !r.recheck && from < min(end, r.end) {
			r.end = from
		}
	}
}

// soon reports whether a run will come to the piece at off within ahead
// bytes from where it is.
func (p *plan) soon(off, ahead int64) bool {
	r := p.owner(p.layout.Index(off))
	return r != nil && off-(int64(r.next)*p.layout.Length()+r.written) <= ahead
}

// readable returns the end of the bytes from off on that can be read now: it
// is at most off if there are none.
func (p *plan) readable(off int64) int64 { return p.readableOf(p.have, off) }

// readableOwn is readable for bytes that this node itself brought from an
// origin.
func (p *plan) readableOwn(off int64) int64 { return p.readableOf(p.own, off) }

func (p *plan) readableOf(set *piece.Set, off int64) int64 {
	if off >= p.layout.Size() {
		return p.layout.Size()
	}
	i := set.NextAbsent(p.layout.Index(off))
	end := min(int64(i)*p.layout.Length(), p.layout.Size())
	for _, r := range p.runs {
		if r.next == i && !r.recheck && !p.whole && (r.stale == 0 || off >= end+r.stale) && time.Since(r.marked) < 2*moment {
			return end + r.written
		}
	}
	return end
}
