package fetch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

// Config bounds a Fetcher. Zero fields take the default.
type Config struct {
	Logger *slog.Logger
	// Flights is how many blobs may be in flight at once, and a quarter as many
	// small ones beside them. Each registry has a fair share of them. Each
	// costs a few buffers of 128 KiB and some descriptors. Default 64.
	Flights int
	// PassAfter is how long a request that may pass waits for a place before it
	// is served past the store. Default 250 ms.
	PassAfter time.Duration
	// Queue is how long a request waits for a place, if it may not pass or its
	// source did not open. Then it fails with ErrBusy. Default 10 s: less than
	// runtimes wait for headers.
	Queue time.Duration
	// Workers is how many streams one blob may have from its origin. One
	// fills it in order; the others serve readers that want bytes far ahead
	// of it, as runtimes that fetch ranges in parallel do. Default 4.
	Workers int
	// Linger is how long a download goes on after the last reader left. A
	// runtime that reads ranges leaves and comes back. Default 3 s.
	Linger time.Duration
	// RangeWait is how long a reader of a range waits for a blob that comes from
	// peers to be verified, before it gets the range from its origin.
	// OpenRangeWait is the same where the range is open: then a runtime fetches
	// the blob in parallel, or goes on with it, and would ask for most of it.
	// Default 5 s and 1 min: containerd gives up after 5 min without a byte.
	RangeWait, OpenRangeWait time.Duration
	// BadFor is how long requests for a blob are refused after its origin
	// sent wrong bytes; it doubles each time, up to 32 times. Default 10 s.
	BadFor time.Duration
	// Cluster is the other nodes; nil if there are none.
	Cluster Cluster
	// Name is what the others know this node by.
	Name string
	// Proven says that names of peers are proved, by certificates. Without, no
	// lie is reported: whoever told it may have gone by another's name.
	Proven bool
	// MaxHint is the largest size of a blob, in bytes, that is believed without
	// the origin: a manifest may say anything. 0: any size.
	MaxHint int64
}

// far is how far ahead of a worker, in bytes, a reader may want bytes and
// still wait for it rather than have another stream opened.
const far = 16 << 20

// badBlobs bounds how many bad blobs are remembered.
const badBlobs = 1024

// Fetcher brings blobs onto the node. It is safe for concurrent use.
type Fetcher struct {
	cfg   Config
	store Store
	// large and small are the places of blobs in flight.
	large, small *line
	past         *semaphore.Weighted // readers served past the store
	ctx          context.Context     // of all flights; ends with Close
	stop         context.CancelFunc
	wg           sync.WaitGroup
	stats        counters
	bans         *bans
	solo         *lru.Cache[digest.Digest, time.Time]
	cut          *lru.Cache[digest.Digest, time.Time]

	mu sync.Mutex
	// Guarded by mu:
	flights map[digest.Digest]*flight
	closed  bool
	bad     *lru.Cache[badKey, badBlob]
}

type badKey struct {
	digest digest.Digest
	source string
}

type badBlob struct {
	err     error
	until   time.Time
	strikes int
}

type counters struct {
	hits, joins, starts, originBytes, bad, direct atomic.Int64
	peerBytes, liars, passedOn                    atomic.Int64
}

// Stats are running totals since New, but for Flights.
type Stats struct {
	// Hits counts requests served from a complete blob, Joins those that
	// joined a flight, Starts the flights begun.
	Hits, Joins, Starts int64
	// Flights is the number of blobs in flight now.
	Flights int64
	// OriginBytes counts blob bytes received from sources.
	OriginBytes int64
	// PeerBytes counts blob bytes that came from peers and were right.
	PeerBytes int64
	// Liars counts how often a peer was found to have sent what is wrong by its
	// own word, PassedOn how often by that of another.
	Liars, PassedOn int64
	// BadBlobs counts blobs that failed their digest.
	BadBlobs int64
	// PassedThrough counts blobs that the store could not take, and readers
	// that were served past it for want of a place.
	PassedThrough int64
}

// New returns a Fetcher over store. Close releases it.
func New(store Store, cfg Config) *Fetcher {
	setDefault(&cfg.Flights, 64)
	setDefault(&cfg.PassAfter, 250*time.Millisecond)
	setDefault(&cfg.Queue, 10*time.Second)
	setDefault(&cfg.Workers, 4)
	setDefault(&cfg.Linger, 3*time.Second)
	setDefault(&cfg.RangeWait, 5*time.Second)
	setDefault(&cfg.OpenRangeWait, time.Minute)
	setDefault(&cfg.BadFor, 10*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	bad, err := lru.New[badKey, badBlob](badBlobs)
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	solo, err := lru.New[digest.Digest, time.Time](badBlobs)
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	cut, err := lru.New[digest.Digest, time.Time](badBlobs)
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Fetcher{
		cfg: cfg, store: store, large: newLine(cfg.Flights), small: newLine(max(cfg.Flights/4, 1)), past: semaphore.NewWeighted(maxPast),
		ctx: ctx, stop: stop, flights: make(map[digest.Digest]*flight), bad: bad, bans: newBans(), solo: solo, cut: cut,
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Close ends all flights, keeping what they have for later, and waits for
// them. Readers fail with context.Canceled.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.wg.Wait()
}

// Stats returns what the Fetcher has done so far.
func (f *Fetcher) Stats() Stats {
	f.mu.Lock()
	flights := len(f.flights)
	f.mu.Unlock()
	return Stats{
		Hits: f.stats.hits.Load(), Joins: f.stats.joins.Load(), Starts: f.stats.starts.Load(),
		Flights: int64(flights), OriginBytes: f.stats.originBytes.Load(),
		PeerBytes: f.stats.peerBytes.Load(), Liars: f.stats.liars.Load(), PassedOn: f.stats.passedOn.Load(),
		BadBlobs: f.stats.bad.Load(), PassedThrough: f.stats.direct.Load(),
	}
}

// InFlight reports whether d is on its way now.
func (f *Fetcher) InFlight(d digest.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flights[d] != nil
}

// Request asks for a blob.
type Request struct {
	Digest digest.Digest
	// Source opens the blob in the name of this caller.
	Source Source
	// Size is that of the blob in bytes, as a manifest says it, or 0 if it is
	// not known. It is taken for a hint.
	Size int64
	// AtHand says that Source need not go anywhere for the blob.
	AtHand bool
	// Offset is the byte wanted first.
	Offset int64
	// Whole says that the reader takes the blob from its first byte to its
	// last. Any other gets, of a blob that is not verified yet, only what this
	// node itself brought from an origin.
	Whole bool
	// OpenEnd says that the reader of a range does not say where it will stop.
	OpenEnd bool
	// Small says that the blob is a manifest, or as small as one: it does not
	// wait for those that are not.
	Small bool
	// MayPass says that the reader need not wait for the blob to be kept: it
	// may be served past the store when too many blobs are in flight.
	MayPass bool
	// Proven says that the origin lets this caller have the blob. If it is
	// not set, the caller's own source must open before Open returns.
	Proven bool
	// Private says that Source uses a credential, or that what is here of the
	// blob may have come by one, and that the blob is not known to be public,
	// on a node that gives other nodes public blobs only. The blob then enters
	// no swarm. Public says that the blob may be shared whoever brought it. If
	// neither is set, what Source brings may be shared, but no part that is
	// here from before.
	Private, Public bool
}

// Open returns a reader of a blob, once its size is known: from the store, a
// flight that is under way, or a new one. The error is that of the source if
// nothing can be had, a *BadBlobError for a while after the source sent a
// wrong blob, ErrUnproven, ErrBusy, or that of ctx.
func (f *Fetcher) Open(ctx context.Context, req Request) (*Reader, error) {
	if req.Digest == req.Digest.Algorithm().FromBytes(nil) {
		if !req.Proven {
			return nil, ErrUnproven
		}
		f.stats.hits.Add(1)
		return &Reader{fetcher: f, req: req, blob: nothing{}}, nil
	}
	// Each round ends with a reader, an error, or a change of what there is:
	// a flight that ended between two looks. That cannot go on for long.
	for range 8 {
		if blob, err := f.store.Blob(req.Digest); err == nil {
			if !req.Proven {
				return nil, errors.Join(ErrUnproven, blob.Close())
			}
			if !req.Whole && f.wasCut(req.Digest) {
				// It has been fetched afresh already, but whoever asks for the rest
				// has a wrong beginning.
				return nil, errors.Join(f.refuseRest(req), blob.Close())
			}
			f.stats.hits.Add(1)
			return &Reader{fetcher: f, req: req, size: blob.Size(), blob: blob}, nil
		} else if !errors.Is(err, ErrNotFound) {
			f.cfg.Logger.Warn("store cannot open blob", "digest", req.Digest, "err", err)
		}
		if !req.Whole && f.wasCut(req.Digest) {
			return nil, f.refuseRest(req)
		}
		fl, src, err := f.board(ctx, req)
		if errors.Is(err, errFull) {
			r, err := f.openPast(ctx, req)
			if err == nil || !req.Proven || ctx.Err() != nil {
				return r, err
			}
			// The other nodes may have what the source does not give.
			req.MayPass = false
			continue
		}
		if errors.Is(err, errGone) {
			select {
			case <-fl.gone:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err != nil {
			return nil, err
		}
		r, err := fl.take(ctx, req, src)
		if err == nil {
			return r, nil
		}
		fl.leave(src)
		if !errors.Is(err, errGone) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("blob %s: %w", req.Digest, ErrBusy)
}

// board joins the flight of a blob, or starts one. The error is errFull if there
// is no place for one and the request may pass.
func (f *Fetcher) board(ctx context.Context, req Request) (*flight, *boarded, error) {
	fl, src, err := f.join(req)
	if fl != nil || err != nil {
		return fl, src, err
	}
	places, registry := f.large, registryOf(req.Source)
	if req.Small {
		places = f.small
	}
	limit, full := f.cfg.Queue, ErrBusy
	if req.MayPass {
		limit, full = f.cfg.PassAfter, errFull
	}
	queue, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := places.enter(queue, registry); err != nil {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, fmt.Errorf("blob %s: %w", req.Digest, full)
	}
	fl, src, started, err := f.start(req, func() { places.leave(registry) })
	if !started {
		places.leave(registry)
	}
	return fl, src, err
}

// registryOf is the registry that a source belongs to.
func registryOf(s Source) string {
	host, _, _ := strings.Cut(s.Origin(), "/")
	return host
}

func (f *Fetcher) join(req Request) (*flight, *boarded, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, ok := f.bad.Get(badKey{req.Digest, req.Source.Key()}); ok && time.Now().Before(b.until) {
		return nil, nil, b.err
	}
	fl := f.flights[req.Digest]
	if fl == nil {
		return nil, nil, f.mayStart(req)
	}
	src, err := fl.join(req)
	if err == nil {
		f.stats.joins.Add(1)
	}
	return fl, src, err
}

// mayStart refuses a flight to a request without proof if the store or other
// nodes might have so much of the blob that no source had to be asked. The
// caller holds mu.
func (f *Fetcher) mayStart(req Request) error {
	if req.Proven {
		return nil
	}
	_, pending := f.store.Pending(req.Digest)
	if pending || f.cfg.Cluster != nil && !req.Private {
		return ErrUnproven
	}
	return nil
}

// start starts the flight of a blob, unless another request just did: then
// it joins that one. The flight calls release when it is over.
func (f *Fetcher) start(req Request, release func()) (fl *flight, src *boarded, started bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, false, context.Canceled
	}
	if fl := f.flights[req.Digest]; fl != nil {
		if src, err = fl.join(req); err == nil {
			f.stats.joins.Add(1)
		}
		return fl, src, false, err
	}
	if err := f.mayStart(req); err != nil {
		return nil, nil, false, err
	}
	ctx, cancel := context.WithCancel(f.ctx)
	fl = newFlight(f, req.Digest, cancel)
	_, pending := f.store.Pending(req.Digest)
	fl.hint, fl.solo, fl.private = req.Size, req.AtHand, req.Private || pending && !req.Public
	src = fl.add(req)
	f.flights[req.Digest] = fl
	f.stats.starts.Add(1)
	f.wg.Go(func() {
		defer release()
		for again := fl; again != nil; {
			again.run(ctx, req.Offset)
			again, ctx = f.ended(again)
		}
	})
	return fl, src, true, nil
}

// ended takes a flight off the books. One that peers had sent wrong bytes is
// followed at once by one that finds out which pieces were wrong: that one is
// returned. It takes the blob from the origin alone, or from a node that has done
// so, if another node leads.
func (f *Fetcher) ended(fl *flight) (again *flight, ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer close(fl.gone)
	delete(f.flights, fl.digest)
	if fl.suspects == nil || fl.solo || fl.verified || fl.follows && fl.left || f.closed {
		return nil, nil
	}
	solo := fl.follows || fl.suspects.leads()
	if solo {
		f.shun(fl.digest)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	again = newFlight(f, fl.digest, cancel)
	again.solo, again.follows, again.suspects, again.hint = solo, !solo, fl.suspects, fl.size
	fl.mu.Lock()
	again.private = fl.private
	for _, s := range fl.sources {
		if s.err == nil && s.proven {
			again.sources = append(again.sources, &boarded{Source: s.Source, proven: true})
		}
	}
	fl.mu.Unlock()
	if len(again.sources) == 0 {
		cancel()
		return nil, nil
	}
	f.flights[fl.digest] = again
	return again, ctx
}

// remember makes requests for a bad blob fail for a while, each time longer.
func (f *Fetcher) remember(bad *BadBlobError) {
	f.stats.bad.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	key := badKey{bad.Digest, bad.Source}
	b, _ := f.bad.Get(key)
	b.err = bad
	b.until = time.Now().Add(f.cfg.BadFor << min(b.strikes, 5))
	b.strikes++
	f.bad.Add(key, b)
}

// errCutShort refuses the rest of a blob whose beginning was wrong.
var errCutShort = errors.New("its bodies were just cut short for a wrong digest; ask for the whole")

// cutShort notes that bodies of a blob are cut short. A runtime asks for the
// rest at once, and must not get that: what it has is wrong.
func (f *Fetcher) cutShort(d digest.Digest) { f.cut.Add(d, time.Now().Add(f.cfg.Linger)) }

func (f *Fetcher) refuseRest(req Request) error {
	return &BadBlobError{Digest: req.Digest, Source: req.Source.Key(), Err: errCutShort}
}

func (f *Fetcher) wasCut(d digest.Digest) bool {
	until, ok := f.cut.Get(d)
	return ok && time.Now().Before(until)
}

// forgive forgets that a blob was bad.
func (f *Fetcher) forgive(d digest.Digest, source string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad.Remove(badKey{d, source})
}
