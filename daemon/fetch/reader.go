package fetch

import (
	"context"
	"errors"
	"io"
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
}

// Size returns the size of the blob in bytes.
func (r *Reader) Size() int64 { return r.size }

// Close lets the blob go.
func (r *Reader) Close() error {
	var err error
	r.hangUp()
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
	_, err := r.flight.available(ctx, &r.view, off)
	switch {
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

// replace goes on with a fresh download, from the byte at off, of a blob
// that rotted in the store.
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
	closeErr := r.blob.Close()
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
		avail, err := r.flight.available(ctx, &r.view, off)
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
