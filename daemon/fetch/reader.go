package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Reader reads one blob for one client. Its methods must not be called
// concurrently.
type Reader struct {
	fetcher *Fetcher
	req     Request
	size    int64
	// One of the two is set: the complete blob, or the flight it comes by.
	blob   Blob
	flight *flight

	view    view
	partial PartialReader // of the flight, unless the store took nothing
	through *through      // the reader's own stream, once the store gave up

	// Of a reader of a range:
	waiting  time.Time // since when it waits for the blob to be verified
	refused  bool      // its origin does not serve the range
	aside    Stream    // its own stream of the range
	asideOff int64     // where that stands
}

// nothing is the blob of no bytes, which needs no origin, peer or store.
type nothing struct{}

func (nothing) Size() int64                                      { return 0 }
func (nothing) CopyRange(io.Writer, int64, int64) (int64, error) { return 0, nil }
func (nothing) Close() error                                     { return nil }

// Size returns the size of the blob in bytes.
func (r *Reader) Size() int64 { return r.size }

// Close lets the blob go.
func (r *Reader) Close() error {
	var err error
	r.hangUp()
	r.stepBack()
	if r.blob != nil {
		err = r.blob.Close()
	}
	if r.partial != nil {
		err = errors.Join(err, r.partial.Close())
	}
	if r.flight != nil {
		r.flight.leave(r.view.source)
	}
	r.blob, r.partial, r.flight = nil, nil, nil
	return err
}

// Wait returns nil when the byte at off can be read, or, for the end of the
// blob, when all of it is verified. It returns an error if that will never be
// or ctx is done.
func (r *Reader) Wait(ctx context.Context, off int64) error {
	if r.blob != nil {
		return nil
	}
	_, err := r.available(ctx, off)
	if err != nil && r.view.seen == (span{}) && r.flight.neverAsked(r.view.source) {
		select {
		case <-r.flight.gone:
			if err := r.replace(ctx, off); err != nil {
				return err
			}
			return r.Wait(ctx, off)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch {
	case errors.Is(err, errAside):
		return nil // it comes from the origin
	case !errors.Is(err, errDirect):
		return err
	case r.size == 0 && r.req.Digest.Algorithm().FromBytes(nil) != r.req.Digest:
		return &BadBlobError{Digest: r.req.Digest, Source: r.req.Source.Key(), Err: errors.New("it is empty")}
	default:
		return nil // there is an origin to read it from
	}
}

// CopyRange writes the bytes [off, off+n) of the blob to w, as they come.
// The range must lie within the blob. On an error fewer bytes were written,
// and of these the last byte of the blob was not one.
func (r *Reader) CopyRange(ctx context.Context, w io.Writer, off, n int64) (written int64, err error) {
	if r.blob != nil {
		written, err = r.blob.CopyRange(w, off, n)
		if !errors.Is(err, ErrCorrupt) {
			return written, err
		}
		if err := r.replace(ctx, off+written); err != nil {
			return written, err
		}
	}
	m, err := r.follow(ctx, w, off+written, off+n)
	return written + m, err
}

// replace goes on with a fresh download from the byte at off: the blob rotted
// in the store, or the flight failed before the reader's source was asked.
func (r *Reader) replace(ctx context.Context, off int64) error {
	req := r.req
	req.Offset = off
	next, err := r.fetcher.Open(ctx, req)
	if err != nil {
		return err
	}
	if next.size != r.size {
		return errors.Join(&BadBlobError{Digest: req.Digest, Source: req.Source.Key(), Err: errors.New("it changed its size")}, next.Close())
	}
	closeErr := r.Close()
	*r = *next
	return closeErr
}

// follow copies [off, end) from the flight as it comes.
func (r *Reader) follow(ctx context.Context, w io.Writer, off, end int64) (written int64, err error) {
	for off < end {
		if r.blob != nil { // replaced by a download that was complete at once
			n, err := r.blob.CopyRange(w, off, end-off)
			return written + n, err
		}
		avail, err := r.available(ctx, off)
		if errors.Is(err, errAside) {
			n, err := r.copyAside(ctx, w, off, end)
			written += n
			off += n
			if err != nil {
				return written, err
			}
			continue
		}
		if errors.Is(err, errDirect) {
			n, err := r.copyDirect(ctx, w, off, end)
			return written + n, err
		}
		if err != nil {
			return written, err
		}
		n, err := r.partial.CopyRange(w, off, min(avail, end)-off)
		r.view.copied(off, off+n)
		off += n
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// errAside says that a reader of a range goes on from its origin.
var errAside = errors.New("range comes from the origin")

// available waits until the bytes at off can be read and returns where they
// end. The error is errAside if the reader has waited for long enough for what
// peers bring.
func (r *Reader) available(ctx context.Context, off int64) (int64, error) {
	fl := r.flight
	if r.view.whole || r.refused || !fl.waits(off) {
		return fl.available(ctx, &r.view, off)
	}
	if r.aside != nil && r.asideOff == off {
		return off, errAside
	}
	if r.waiting.IsZero() {
		r.waiting = time.Now()
	}
	patience := r.fetcher.cfg.RangeWait
	if r.req.OpenEnd {
		patience = r.fetcher.cfg.OpenRangeWait
	}
	soon, cancel := context.WithDeadline(ctx, r.waiting.Add(patience))
	defer cancel()
	avail, err := fl.available(soon, &r.view, off)
	if err == nil || soon.Err() == nil || ctx.Err() != nil {
		return avail, err
	}
	return off, errAside
}

// stepAside opens the reader's own stream of [off, end), unless it stands there.
func (r *Reader) stepAside(ctx context.Context, off, end int64) error {
	if r.aside != nil && r.asideOff == off {
		return nil
	}
	r.stepBack()
	if r.req.OpenEnd {
		end = -1
	}
	s, err := r.view.source.Open(ctx, r.req.Digest, off, end)
	if err != nil {
		return err
	}
	s = &countedStream{Stream: s, n: &r.fetcher.stats.originBytes}
	if s.Size() != r.size || s.Offset() > off {
		err = fmt.Errorf("blob %s: %s sends bytes from %d of %d instead of %d of %d", r.req.Digest, r.req.Source.Key(), s.Offset(), s.Size(), off, r.size)
	} else {
		_, err = copyN(io.Discard, s, off-s.Offset())
	}
	if err != nil {
		return errors.Join(err, s.Close())
	}
	r.aside, r.asideOff = s, off
	return nil
}

// asidePortion is how much comes from the reader's own stream before it is seen
// whether the blob is verified, in bytes.
const asidePortion = 1 << 20

// copyAside copies from the reader's own stream, at most to end. If the origin
// does not serve it, nothing is copied: the reader waits for the blob.
func (r *Reader) copyAside(ctx context.Context, w io.Writer, off, end int64) (int64, error) {
	if err := r.stepAside(ctx, off, end); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		r.fetcher.cfg.Logger.Warn("origin does not serve a range; the range waits until the blob is verified", "digest", r.req.Digest, "offset", off, "err", err)
		r.refused = true
		return 0, nil
	}
	n, err := copyN(w, r.aside, min(end-off, asidePortion))
	r.asideOff += n
	if err != nil {
		r.stepBack()
	}
	return n, err
}

// stepBack closes the reader's own stream of a range.
func (r *Reader) stepBack() {
	if r.aside != nil {
		r.aside.Close()
		r.aside = nil
	}
}
