package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// chunk is how much is read from a stream at once, in bytes.
const chunk = 128 << 10

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// hire puts another worker on the piece at off if no worker will be there
// soon. The caller holds mu.
func (fl *flight) hire(off int64) {
	if fl.member != nil || fl.group == nil || off >= fl.size || fl.single || fl.workers >= fl.fetcher.cfg.Workers || fl.plan.soon(off, far) {
		return
	}
	if r := fl.plan.startAt(fl.plan.layout.Index(off)); r != nil {
		fl.spawn(r, nil)
	}
}

// spawn starts a worker on r, with a stream if one is open. The caller holds
// mu.
func (fl *flight) spawn(r *run, s *opened) {
	fl.workers++
	w := &worker{flight: fl, opened: s}
	ctx := fl.groupCtx
	if fl.member == nil {
		fl.group.Go(func() error { return w.work(ctx, r) })
		return
	}
	r.fresh, r.moved = true, time.Now()
	own, cancel := context.WithCancel(ctx)
	r.cancel = cancel
	fl.group.Go(func() error {
		defer cancel()
		return w.serve(ctx, own, r)
	})
}

// opened is an open stream and where it stands.
type opened struct {
	Stream
	source *boarded
	pos    int64 // in the blob
	// whole says that the origin sent more than it was asked for: it cannot
	// start in the middle, so that opening it anew is no short cut.
	whole bool
}

// worker fills runs of pieces from one stream after another.
type worker struct {
	flight  *flight
	*opened             // nil if no stream is open
	out     PieceWriter // of the piece that is being written, or nil
}

// work fills r and then whatever is nobody's, until there is nothing left.
// The error of a worker that is not the last one is not an error of the
// flight: the others do its part.
func (w *worker) work(ctx context.Context, r *run) error {
	defer w.hangUp()
	defer w.discard()
	for {
		var err error
		if r.recheck {
			err = w.recheck(r)
		} else {
			err = w.fetch(ctx, r)
		}
		if r, err = w.next(ctx, r, err); r == nil {
			return err
		}
	}
}

// serve fills r, which the member of a swarm has it do. Only an error of the
// store is one of the flight. The context own ends when r stalls.
func (w *worker) serve(ctx, own context.Context, r *run) (err error) {
	defer w.hangUp()
	defer w.discard()
	if r.recheck {
		err = w.recheck(r)
	} else {
		cluster := w.flight.fetcher.cfg.Cluster
		cluster.Fetching(true)
		err = w.fetch(own, r)
		cluster.Fetching(false)
	}
	if errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if err != nil && own.Err() != nil {
		err = errStalled{}
	}
	w.discard()
	fl := w.flight
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.plan.stop(r)
	fl.workers--
	if !r.recheck {
		fl.member.released(r, err)
	}
	fl.member.schedule()
	return nil
}

// errStalled is the error of a run whose source stopped sending.
type errStalled struct{}

func (errStalled) Error() string { return "origin has stopped sending" }

// Because says it to the scheduler.
func (errStalled) Because() (scheduler.Reason, time.Duration) { return scheduler.ReasonStalled, 0 }

// next ends r, which came to err, and finds the worker something else to do.
// It leaves the flight if there is nothing, or if the error is final.
func (w *worker) next(ctx context.Context, r *run, err error) (*run, error) {
	fl := w.flight
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if errors.Is(err, ErrUnavailable) {
		// What was written of the piece stays readable: nobody will write
		// there again.
		fl.workers--
		return nil, err
	}
	if err != nil && ctx.Err() == nil && fl.workers == 1 && fl.pick() != nil {
		return r, nil // with another source, from the very byte
	}
	if r.written > 0 {
		off, _ := fl.plan.layout.Span(r.next)
		fl.spoiled = append(fl.spoiled, span{off, off + r.written})
		w.discard()
	}
	fl.plan.stop(r)
	if err != nil && ctx.Err() == nil && fl.workers > 1 {
		fl.single = true
		fl.workers--
		return nil, nil
	}
	if err == nil {
		from := r.next
		if w.opened != nil {
			from = fl.plan.layout.Index(w.pos)
		}
		if r := fl.plan.start(from); r != nil {
			return r, nil
		}
	}
	fl.workers--
	return nil, err
}

// discard gives up the piece that is being written.
func (w *worker) discard() {
	if w.out != nil {
		w.out.Discard()
		w.out = nil
	}
}

// pick returns the source to ask next: the first that has not failed, one
// with readers before one without. The caller holds mu.
func (fl *flight) pick() *boarded {
	var gone *boarded
	for _, s := range fl.sources {
		switch {
		case s.err != nil || s.down:
		case s.readers > 0:
			return s
		case gone == nil:
			gone = s
		}
	}
	return gone
}

// open opens the blob from whichever source lets us.
func (fl *flight) open(ctx context.Context, off, end int64) (*opened, error) {
	last := fmt.Errorf("blob %s: %w", fl.digest, errNoSource)
	for {
		fl.mu.Lock()
		src := fl.pick()
		if src != nil {
			src.asked = true
		}
		fl.mu.Unlock()
		if src == nil {
			return nil, last
		}
		s, err := src.Open(ctx, fl.digest, off, end)
		if err == nil {
			err = fl.admit(src, s, off)
		}
		if err == nil {
			return &opened{Stream: s, source: src, pos: s.Offset(), whole: s.Offset() < off}, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !fl.fail(src, err) {
			return nil, err
		}
		last = err
	}
}

// admit checks what a source says of the blob.
func (fl *flight) admit(src *boarded, s Stream, off int64) error {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	switch {
	case s.Size() < 0 || s.Offset() < 0 || s.Offset() > off:
		s.Close()
		return fmt.Errorf("blob %s: %s sends bytes from %d of %d instead of %d", fl.digest, src.Key(), s.Offset(), s.Size(), off)
	case fl.begin && s.Size() != fl.size:
		s.Close()
		return fmt.Errorf("blob %s: %w: %s says %d bytes, not %d", fl.digest, errSize, src.Key(), s.Size(), fl.size)
	}
	if s.Offset() < off {
		fl.single = true
	}
	src.proven, src.opened = true, true
	fl.notify()
	return nil
}

// fail takes a source out of use, and its readers with it, unless other
// workers still get bytes: then the source may just not want that many. It
// reports whether it did.
func (fl *flight) fail(src *boarded, err error) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.member != nil {
		// The swarm may yet bring the blob: readers are left alone.
		src.down = true
		return true
	}
	if fl.workers > 1 {
		return false
	}
	src.err = err
	fl.notify()
	return true
}

// retrySources puts sources that a member gave up for a while in use again.
// The caller holds mu.
func (fl *flight) retrySources() {
	for _, s := range fl.sources {
		s.down = false
	}
}

func (w *worker) hangUp() {
	if w.opened != nil {
		w.Close()
		w.opened = nil
	}
}

// recheck looks at pieces that an earlier process left.
func (w *worker) recheck(r *run) error {
	fl := w.flight
	for {
		fl.mu.Lock()
		i, more := r.next, r.next < r.end
		fl.mu.Unlock()
		if !more {
			return nil
		}
		right, err := fl.partial.Recheck(i)
		if err != nil {
			fl.fetcher.cfg.Logger.Warn("piece cannot be rechecked", "digest", fl.digest, "piece", i, "err", err)
		}
		fl.mu.Lock()
		if !right {
			fl.plan.refuted(r)
			r.end = r.next
			fl.mu.Unlock()
			return nil
		}
		fl.plan.done(r)
		if fl.member != nil {
			sum, _ := fl.partial.Sum(i)
			fl.member.arrived(i, sum, fl.member.vouched, true)
		}
		fl.notify()
		fl.mu.Unlock()
	}
}

// fetch fills r from the stream at hand if that comes by, else from a new
// one. It may return with r not filled, when the new stream starts before r:
// there may be better use for its first bytes.
func (w *worker) fetch(ctx context.Context, r *run) error {
	fl := w.flight
	fl.mu.Lock()
	from, _ := fl.plan.layout.Span(r.next)
	begun := r.written > 0
	from += r.written
	to := int64(-1)
	if r.end < fl.plan.layout.Count() {
		to, _ = fl.plan.layout.Span(r.end)
	}
	fl.mu.Unlock()
	if w.opened != nil && (w.pos > from || from-w.pos > far && !w.whole) {
		w.hangUp()
	}
	if w.opened == nil {
		var err error
		if w.opened, err = fl.open(ctx, from, to); err != nil || w.whole && !begun && fl.member == nil {
			return err
		}
	}
	err := w.skip(from - w.pos)
	if err == nil {
		err = w.pump(r)
	}
	if err != nil {
		src := w.source
		w.hangUp()
		if !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
			fl.fail(src, err)
		}
	}
	return err
}

func (w *worker) skip(n int64) error {
	m, err := copyN(io.Discard, w, n)
	w.pos += m
	return err
}

// short makes the end of a stream, where it should not end, an error.
func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// pump writes the pieces of r from the stream, which stands at the first.
func (w *worker) pump(r *run) error {
	fl := w.flight
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for {
		fl.mu.Lock()
		i, more := r.next, r.next < r.end // another worker may take the rest
		fl.mu.Unlock()
		if !more {
			return nil
		}
		sum, err := w.piece(r, i, buf[:])
		if err != nil {
			return err
		}
		fl.mu.Lock()
		fl.plan.done(r)
		fl.compare(i, sum)
		if fl.member != nil {
			fl.member.arrived(i, sum, provenance{}, r.rescue)
			fl.member.schedule()
		}
		fl.notify()
		fl.mu.Unlock()
	}
}

// piece writes the rest of piece i. If it fails, what is written stays, and
// the next stream goes on behind it: readers may have seen it.
func (w *worker) piece(r *run, i int, buf []byte) (sum piece.Sum, err error) {
	fl := w.flight
	if w.out == nil {
		if w.out, err = fl.partial.Piece(i); err != nil {
			return sum, err
		}
	}
	fl.mu.Lock()
	_, left := fl.plan.layout.Span(i)
	left -= r.written
	fl.mu.Unlock()
	for left > 0 {
		n, readErr := w.Read(buf[:min(int64(len(buf)), left)])
		w.pos += int64(n)
		left -= int64(n)
		fl.fetcher.stats.originBytes.Add(int64(n))
		if _, err := w.out.Write(buf[:n]); err != nil {
			return sum, err
		}
		fl.mu.Lock()
		r.wrote(int64(n), time.Now())
		if fl.member != nil {
			r.fresh, r.moved = false, time.Now()
			fl.member.lastBytes = r.moved
			fl.member.came += int64(n)
		} else {
			fl.notify()
		}
		fl.mu.Unlock()
		if readErr != nil && left > 0 {
			return sum, short(readErr)
		}
	}
	sum, err = w.out.Commit()
	w.out = nil
	return sum, err
}
