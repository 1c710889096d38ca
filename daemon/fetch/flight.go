package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/piece"
)

// errGone says that a flight ended before the reader that wanted to join it
// could; the reader starts over.
var errGone = errors.New("flight is over")

// errDirect says that the store has given up: readers go on by themselves.
var errDirect = errors.New("store gave up")

// flight is one blob on its way onto the node. run owns its life; workers
// fill it; readers watch it.
type flight struct {
	fetcher *Fetcher
	digest  digest.Digest
	cancel  context.CancelFunc
	// hint is the size that the first request knew of, or 0. It is only a
	// hint: the origin or the digest has the last word.
	hint int64
	// solo: it is to come from the origin alone. suspects are what peers sent
	// of it before, which was wrong; it is then compared.
	solo     bool
	suspects *suspects
	// follows: another node fetches the blob afresh from the origin. Pieces of
	// suspects are kept that a node which has verified the blob answers for.
	// Readers wait until it is verified, or until the flight after it.
	follows bool
	// gone is closed when the flight is over and off the books.
	gone chan struct{}

	mu sync.Mutex
	// Guarded by mu:
	changed chan struct{} // closed and replaced when a reader may go on
	sources []*boarded    // in order of arrival
	// private: a source has a credential and may bring bytes that are not
	// known to be public, so the flight enters no swarm. Once the flight runs,
	// only a solo one, which is in no swarm either, still becomes private.
	private bool
	readers int
	idle    *time.Timer // cancels the flight when nobody reads
	left    bool        // cancelled because nobody read

	begin    bool // size, plan and partial, or direct, are set
	size     int64
	plan     *plan
	partial  Partial
	group    *errgroup.Group
	groupCtx context.Context
	workers  int
	single   bool // one worker only: the origin does not take more
	spoiled  []span
	verified bool
	kept     bool // the store has it
	member   *Member
	settling bool // the partial is being closed
	over     bool // nothing more will come
	err      error
	direct   *direct
}

// boarded is a source with the readers that brought it.
type boarded struct {
	Source
	readers int
	proven  bool  // some reader said so, or it has opened the blob
	asked   bool  // it was asked for the blob
	opened  bool  // it has opened the blob: the origin lets its caller have it
	err     error // it failed for good, and its readers with it
	down    bool  // it failed, and is not asked for a while
}

// span is a range of bytes that readers could see and that was then fetched
// again: they may have seen other bytes than those that were verified.
type span struct{ off, end int64 }

func newFlight(f *Fetcher, d digest.Digest, cancel context.CancelFunc) *flight {
	return &flight{fetcher: f, digest: d, cancel: cancel, gone: make(chan struct{}), changed: make(chan struct{})}
}

// join takes a reader on board. The error is errGone if the flight has ended:
// how it did is not for those who come later. A source whose bytes must not get
// into a swarm has no place in one: its reader gets errFull and is served past
// the store, or waits for the end.
func (fl *flight) join(req Request) (*boarded, error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	apart := req.Private && !fl.private && !fl.solo
	switch {
	case !fl.over && apart && req.MayPass:
		return nil, errFull
	case fl.over || apart:
		return nil, errGone
	}
	for _, s := range fl.sources {
		if s.Key() == req.Source.Key() && s.err == nil {
			if !req.Proven && !s.opened && s.proven {
				// Another reader's word proves nothing for this one, and the
				// source may never be asked.
				return nil, ErrUnproven
			}
			fl.keepPrivate(req)
			s.proven = s.proven || req.Proven
			fl.enter(s)
			return s, nil
		}
	}
	if !req.Proven {
		return nil, ErrUnproven
	}
	fl.keepPrivate(req)
	s := &boarded{Source: req.Source, proven: true}
	fl.sources = append(fl.sources, s)
	fl.enter(s)
	return s, nil
}

// keepPrivate takes note of a source with a credential. The caller holds mu.
func (fl *flight) keepPrivate(req Request) {
	if req.Private && !fl.private { // what has not changed is not written: the flight reads it
		fl.private = true
	}
}

// add takes the first reader on board.
func (fl *flight) add(req Request) *boarded {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	s := &boarded{Source: req.Source, proven: req.Proven}
	fl.sources = append(fl.sources, s)
	fl.enter(s)
	return s
}

func (fl *flight) enter(s *boarded) {
	s.readers++
	fl.readers++
	if fl.idle != nil {
		fl.idle.Stop()
		fl.idle = nil
	}
}

// leave lets a reader off. A flight without readers ends after a while.
func (fl *flight) leave(s *boarded) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	s.readers--
	fl.readers--
	if fl.over {
		fl.release()
		return
	}
	if fl.readers > 0 {
		return
	}
	fl.idle = time.AfterFunc(fl.fetcher.cfg.Linger, func() {
		fl.mu.Lock()
		defer fl.mu.Unlock()
		if fl.readers == 0 && !fl.verified {
			fl.left = true
			fl.cancel()
		}
	})
}

// notify wakes every waiting reader. The caller holds mu.
func (fl *flight) notify() {
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// take returns a reader for one that has boarded, once there is something to
// read from.
func (fl *flight) take(ctx context.Context, req Request, src *boarded) (*Reader, error) {
	size, err := fl.begun(ctx, src, req.Proven)
	if err != nil {
		return nil, err
	}
	partial, err := fl.reader(ctx)
	if err != nil {
		return nil, err
	}
	return &Reader{fetcher: fl.fetcher, req: req, size: size, flight: fl, partial: partial, view: view{source: src, whole: req.Whole}}, nil
}

// begun waits until the size is known and the caller's permission proven: by
// the request, or else by its source opening the blob. It returns the size.
func (fl *flight) begun(ctx context.Context, s *boarded, proven bool) (int64, error) {
	for {
		fl.mu.Lock()
		begin, size, changed := fl.begin && (proven || s.opened), fl.size, fl.changed
		over, left, late, err := fl.over, fl.left, fl.failedUnasked(s), fl.err
		if s.err != nil {
			over, err = true, s.err
		}
		fl.mu.Unlock()
		wait := changed
		switch {
		case left || late || over && errors.Is(err, errGone):
			wait = fl.gone
		case over && err != nil && !errors.Is(err, errDirect):
			return 0, err
		case begin:
			return size, nil
		case over:
			return 0, ErrUnproven // it came without any source being asked
		}
		select {
		case <-wait:
			if wait == (chan struct{})(fl.gone) {
				return 0, errGone
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// neverAsked reports whether the flight has failed without asking a source: its
// reader came too late to be noticed, and the failure is no answer to it.
func (fl *flight) neverAsked(s *boarded) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.failedUnasked(s)
}

// failedUnasked is neverAsked for callers that hold mu.
func (fl *flight) failedUnasked(s *boarded) bool {
	return fl.over && fl.err != nil && !errors.Is(fl.err, errDirect) && !s.asked && s.err == nil
}

// run is the life of the flight.
func (fl *flight) run(ctx context.Context, want int64) {
	err := fl.download(ctx, want)
	if fl.kept && fl.member == nil && fl.fetcher.cfg.Cluster != nil {
		fl.mu.Lock()
		private := fl.private
		fl.mu.Unlock()
		fl.fetcher.cfg.Cluster.Complete(fl.digest, fl.size, !private)
	}
	var bad *BadBlobError
	if errors.As(err, &bad) {
		fl.fetcher.remember(bad)
		fl.fetcher.cfg.Logger.Error("origin sent a wrong blob", "digest", bad.Digest, "source", bad.Source, "err", bad.Err)
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.over = true
	fl.err = err
	if fl.idle != nil {
		fl.idle.Stop()
	}
	fl.release()
	fl.notify()
}

// release lets go of what the flight holds, once it is over: at once, but for
// a spare stream, which waits for a reader. The caller holds mu.
func (fl *flight) release() {
	if fl.direct != nil && fl.direct.spare != nil {
		if fl.readers > 0 {
			return
		}
		fl.direct.spare.Close()
		fl.direct.spare = nil
	}
	// A spare stream that is being read ends with its reader.
	if fl.direct == nil || fl.readers == 0 {
		fl.cancel()
	}
}

func (fl *flight) download(ctx context.Context, want int64) error {
	store := fl.fetcher.store
	if blob, err := store.Blob(fl.digest); err == nil {
		return errors.Join(errGone, blob.Close()) // it came while we were waiting
	}
	if done, err := fl.viaSwarm(ctx, want); done || err != nil {
		return err
	}
	if size, pending := store.Pending(fl.digest); pending {
		done, err := fl.resume(ctx, size, want)
		if done || err != nil {
			return err
		}
	}
	// Without the size the piece length is unknown, but every piece length
	// divides the longest one.
	first, err := fl.open(ctx, want-want%piece.MaxLength, -1)
	if err != nil {
		return err
	}
	partial, err := store.Partial(fl.digest, first.Size())
	if err != nil {
		return fl.goDirect(err, first.Size(), 0, fl.digest.Algorithm().Hash(), first)
	}
	return fl.finish(partial, fl.fill(ctx, partial, planFor(partial, first.Size()), want, first, nil))
}

// resume goes on with what is left from before. It reports false if that is
// of no use: the origin says that the blob has another size.
func (fl *flight) resume(ctx context.Context, size, want int64) (done bool, err error) {
	partial, err := fl.fetcher.store.Partial(fl.digest, size)
	if err != nil {
		return false, nil // to be found out again, with a stream at hand
	}
	p := planFor(partial, size)
	var first *opened
	// Before anybody is told the size, the origin confirms it, or else the
	// digest does.
	if i := p.missing(want); i < p.layout.Count() {
		off, _ := p.layout.Span(i)
		if first, err = fl.open(ctx, off, -1); err != nil {
			return false, errors.Join(err, partial.Close())
		}
		if first.Size() != size {
			first.Close()
			fl.drop(partial)
			return false, nil
		}
	}
	return true, fl.finish(partial, fl.fill(ctx, partial, p, want, first, nil))
}

// planFor returns the plan for what a partial lacks.
func planFor(partial Partial, size int64) *plan {
	p := newPlan(piece.NewLayout(size))
	for i := range p.layout.Count() {
		if partial.Has(i) {
			p.have.Add(i)
		} else if partial.Claimed(i) {
			p.claimed.Add(i)
		}
	}
	return p
}

// fill brings the pieces and verifies the blob. It returns when both are
// done, or one failed.
func (fl *flight) fill(ctx context.Context, partial Partial, p *plan, want int64, first *opened, m *Member) error {
	group, ctx := errgroup.WithContext(ctx)
	fl.mu.Lock()
	fl.size, fl.plan, fl.partial = p.layout.Size(), p, partial
	fl.group, fl.groupCtx = group, ctx
	fl.begin = !fl.follows // else nobody reads before it is verified
	fl.member = m
	if m == nil {
		fl.start(want, first)
	} else {
		m.start()
		m.schedule()
	}
	fl.notify()
	fl.mu.Unlock()
	ctx, verified := context.WithCancel(ctx)
	if m != nil {
		group.Go(func() error { return m.watch(ctx) })
	}
	group.Go(func() error {
		defer verified()
		err := partial.Verify(ctx)
		fl.mu.Lock()
		defer fl.mu.Unlock()
		fl.group = nil // nobody is hired any more
		fl.verified = err == nil
		fl.begin = fl.begin || fl.verified
		fl.notify()
		return err
	})
	return group.Wait()
}

// start sets the first workers on what is missing, with the stream that is
// open, and on what is to be rechecked. The caller holds mu.
func (fl *flight) start(want int64, first *opened) {
	if first != nil {
		if r := fl.plan.start(fl.plan.layout.Index(min(first.pos, fl.size))); r != nil {
			fl.spawn(r, first)
		} else {
			first.Close()
		}
	}
	if fl.plan.claimed.Count() > 0 {
		if r := fl.plan.start(fl.plan.layout.Index(min(want, fl.size))); r != nil {
			fl.spawn(r, nil)
		}
	}
}

// finish settles what becomes of the unfinished blob.
func (fl *flight) finish(partial Partial, err error) error {
	log := fl.fetcher.cfg.Logger
	fl.mu.Lock()
	fl.settling = true
	fl.mu.Unlock()
	switch {
	case err == nil:
		fl.forgive()
		if fl.follows {
			fl.compareAll(partial)
		}
		// Readers have their last bytes by now; the disk may take its time.
		if err := partial.Commit(); err != nil {
			log.Warn("blob is not kept", "digest", fl.digest, "err", err)
			fl.drop(partial)
			return nil
		}
		fl.kept = true
		return partial.Close()
	case errors.Is(err, ErrDigest) && fl.follows:
		// The one that answered for it lied. Nobody has read of it.
		fl.gatherSuspects(partial)
		fl.drop(partial)
		return errors.Join(errGone, err)
	case errors.Is(err, ErrDigest) && fl.gatherSuspects(partial):
		fl.fetcher.cutShort(fl.digest)
		if fl.suspects.leads() {
			fl.drop(partial)
		} else if closeErr := partial.Close(); closeErr != nil {
			log.Warn("unfinished blob is not kept", "digest", fl.digest, "err", closeErr)
		}
		return fmt.Errorf("blob %s: %w: peers sent wrong bytes; it is fetched afresh", fl.digest, err)
	case errors.Is(err, ErrDigest):
		fl.fetcher.cutShort(fl.digest)
		fl.drop(partial)
		return &BadBlobError{Digest: fl.digest, Source: fl.blame(), Err: err}
	case errors.Is(err, ErrUnavailable):
		offset, h, stateErr := partial.HashState()
		if stateErr != nil {
			offset, h = 0, fl.digest.Algorithm().Hash()
		}
		fl.drop(partial)
		return fl.goDirect(err, fl.size, offset, h, nil)
	case errors.Is(err, errSize):
		// Which of them is wrong cannot be told; what is kept must not
		// stand in the way of the next attempt.
		fl.drop(partial)
		fl.fetcher.shun(fl.digest)
		return err
	case fl.follows && !fl.left:
		// One of the pieces is wrong, and nobody has said which.
		fl.drop(partial)
		return errors.Join(errGone, err)
	default:
		if closeErr := partial.Close(); closeErr != nil {
			log.Warn("unfinished blob is not kept", "digest", fl.digest, "err", closeErr)
		}
		return err
	}
}

func (fl *flight) drop(partial Partial) {
	if err := partial.Drop(); err != nil {
		fl.fetcher.cfg.Logger.Warn("unfinished blob cannot be removed", "digest", fl.digest, "err", err)
	}
}

// goDirect tells readers to go on without the store: the bytes before offset
// have the hash state h. It returns errDirect.
func (fl *flight) goDirect(cause error, size, offset int64, h hash.Hash, spare *opened) error {
	fl.fetcher.stats.direct.Add(1)
	fl.fetcher.cfg.Logger.Warn("blob passes through, the store cannot take it", "digest", fl.digest, "size", size, "err", cause)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.begin, fl.size = true, size
	fl.direct = &direct{offset: offset, hash: h, spare: spare}
	return errDirect
}

// blame names the source that the bytes came from, or the first of several.
func (fl *flight) blame() string {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, s := range fl.sources {
		if s.opened {
			return s.Key()
		}
	}
	return fl.sources[0].Key()
}

func (fl *flight) forgive() {
	fl.mu.Lock()
	keys := make([]string, len(fl.sources))
	for i, s := range fl.sources {
		keys[i] = s.Key()
	}
	fl.mu.Unlock()
	for _, k := range keys {
		fl.fetcher.forgive(fl.digest, k)
	}
}

// view is what one reader has seen of a flight.
type view struct {
	source *boarded
	// whole: the reader takes the blob from its first byte to its last, which
	// comes when all of it is verified. Any other reader could end before that:
	// until then it gets only what this node itself brought from an origin.
	whole bool
	// seen is what the reader wrote so far, and spoils how many of the
	// flight's spoiled spans that has been checked against.
	seen   span
	spoils int
}

// copied adds [off, end) to what was seen. Readers read forward, so that the
// span around all they read is close enough.
func (v *view) copied(off, end int64) {
	if v.seen == (span{}) {
		v.seen = span{off, end}
		return
	}
	v.seen = span{min(v.seen.off, off), max(v.seen.end, end)}
}

// available waits until the bytes at off can be read and returns where they
// end. At the end of the blob it waits until all of it is verified.
func (fl *flight) available(ctx context.Context, v *view, off int64) (end int64, err error) {
	for {
		fl.mu.Lock()
		end, err = fl.look(v, off)
		changed, verified := fl.changed, fl.verified
		fl.mu.Unlock()
		if err != nil || end > off || verified {
			return end, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// look is available without waiting: end is at most off if there is nothing
// yet. The caller holds mu.
func (fl *flight) look(v *view, off int64) (end int64, err error) {
	for ; v.spoils < len(fl.spoiled); v.spoils++ {
		if sp := fl.spoiled[v.spoils]; v.seen.off < sp.end && sp.off < v.seen.end {
			return 0, fmt.Errorf("blob %s: bytes %d to %d had to be fetched again after they were sent", fl.digest, sp.off, sp.end)
		}
	}
	if v.source.err != nil {
		return 0, v.source.err
	}
	if fl.verified {
		return fl.size, nil
	}
	if fl.plan != nil {
		end := fl.plan.readableOwn(off)
		if v.whole {
			end = fl.plan.readable(off)
		}
		if end = min(end, fl.heldBack()); end > off {
			return end, nil
		}
	}
	if fl.over {
		return 0, fl.err
	}
	fl.hire(off)
	return off, nil
}

// waits reports whether a reader of a range that wants the byte at off waits for
// the digest: the byte came, or will come, from a peer, or was left from before.
func (fl *flight) waits(off int64) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.plan == nil || fl.verified || fl.over {
		return false
	}
	i := fl.plan.layout.Index(off)
	return fl.member != nil || !fl.plan.own.Has(i) && (fl.plan.have.Has(i) || fl.plan.claimed.Has(i))
}

// heldBack returns where the last piece starts, which nobody gets before the
// whole is verified. The caller holds mu.
func (fl *flight) heldBack() int64 {
	last := fl.plan.layout.Count() - 1
	if last < 0 {
		return 0
	}
	off, _ := fl.plan.layout.Span(last)
	return off
}

// reader opens what came so far, if the store took anything. The error is
// errGone if it is too late for that.
func (fl *flight) reader(ctx context.Context) (PartialReader, error) {
	fl.mu.Lock()
	partial := fl.partial
	fl.mu.Unlock()
	if partial == nil {
		return nil, nil
	}
	p, err := partial.Reader()
	if err == nil {
		return p, nil
	}
	fl.mu.Lock()
	settling := fl.settling
	fl.mu.Unlock()
	if !settling {
		return nil, err
	}
	select {
	case <-fl.gone:
		return nil, errGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// has reports whether all of [off, end) has come.
func (fl *flight) has(off, end int64) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.plan != nil && fl.plan.readable(off) >= end
}
