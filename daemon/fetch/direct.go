package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// direct is how readers go on when the store has given up on a blob: each
// with a stream of its own, verified on the way.
type direct struct {
	offset int64     // the bytes before it are hashed already
	hash   hash.Hash // over the bytes [0, offset)

	// Guarded by the flight's mu:
	spare *opened // a stream nobody reads yet
}

// state returns a copy of the hash state to go on from.
func (d *direct) state() (int64, hash.Hash, error) {
	c, ok := d.hash.(hash.Cloner)
	if !ok {
		return 0, nil, fmt.Errorf("state of %T cannot be copied", d.hash)
	}
	h, err := c.Clone()
	return d.offset, h, err
}

// takeSpare returns the spare stream if it is src's and starts at off.
func (fl *flight) takeSpare(src *boarded, off int64) Stream {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	s := fl.direct.spare
	if s == nil || s.source != src || s.pos != off {
		return nil
	}
	fl.direct.spare = nil
	return s.Stream
}

// through is one reader's own stream of a blob that passes through.
type through struct {
	Stream
	in  io.Reader // the stream, by way of the hash if there is one
	pos int64
	// hash is over the bytes [0, pos), or nil if the stream began where the
	// bytes before it are not known.
	hash hash.Hash
}

// copyDirect writes [off, end) of the blob to w from the reader's own stream.
// The last bytes of the blob go out once its digest is verified; a reader
// that began in the middle does not get them.
func (r *Reader) copyDirect(ctx context.Context, w io.Writer, off, end int64) (int64, error) {
	if r.through != nil && r.through.pos != off {
		r.hangUp()
	}
	if r.through == nil {
		var err error
		if r.through, err = r.openThrough(ctx, off); err != nil {
			return 0, err
		}
	}
	t := r.through
	held := int64(0)
	if end == r.size {
		if t.hash == nil {
			return 0, fmt.Errorf("blob %s: its end cannot be verified for a reader that began in the middle, and the store does not take it", r.req.Digest)
		}
		held = min(end-off, chunk)
	}
	n, err := copyN(w, t.in, end-off-held)
	t.pos += n
	if err != nil || held == 0 {
		return n, err
	}
	tail := make([]byte, held)
	m, err := io.ReadFull(t.in, tail)
	t.pos += int64(m)
	if err != nil {
		return n, short(err)
	}
	if got := digest.NewDigest(r.req.Digest.Algorithm(), t.hash); got != r.req.Digest {
		bad := &BadBlobError{Digest: r.req.Digest, Source: r.req.Source.Key(), Err: fmt.Errorf("%w: the bytes have %s", ErrDigest, got)}
		r.fetcher.remember(bad)
		return n, bad
	}
	m, err = w.Write(tail)
	return n + int64(m), err
}

// openThrough opens a stream that stands at off, with the hash of what is
// before it if that takes no more than far bytes that are not here.
func (r *Reader) openThrough(ctx context.Context, off int64) (*through, error) {
	from, h, err := r.hashed(off)
	if err != nil {
		return nil, err
	}
	if off-from > far {
		from, h = off, nil
	}
	s := r.flight.takeSpare(r.view.source, from)
	if s == nil {
		if s, err = r.view.source.Open(ctx, r.req.Digest, from, -1); err != nil {
			return nil, err
		}
	}
	s = &countedStream{Stream: s, n: &r.fetcher.stats.originBytes}
	t := &through{Stream: s, in: s, pos: off, hash: h}
	if h != nil {
		t.in = io.TeeReader(s, h)
	}
	switch {
	case s.Size() != r.size || s.Offset() > from:
		err = fmt.Errorf("blob %s: %s sends bytes from %d of %d instead of %d of %d", r.req.Digest, r.req.Source.Key(), s.Offset(), s.Size(), from, r.size)
	default:
		_, err = copyN(io.Discard, s, from-s.Offset())
		if err == nil {
			_, err = copyN(io.Discard, t.in, off-from)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return t, nil
}

// hashed returns the hash of the blob as far as it can be had without an
// origin, but not beyond off.
func (r *Reader) hashed(off int64) (from int64, h hash.Hash, err error) {
	d := r.flight.direct
	if d.offset > off {
		return 0, r.req.Digest.Algorithm().Hash(), nil
	}
	if from, h, err = d.state(); err != nil {
		return 0, nil, err
	}
	if r.partial != nil && r.flight.has(from, off) {
		// What was sent of the blob so far is what is on disk.
		n, err := r.partial.CopyRange(h, from, off-from)
		return from + n, h, err
	}
	return from, h, nil
}

// hangUp closes the reader's own stream.
func (r *Reader) hangUp() {
	if r.through != nil {
		r.through.Close()
		r.through = nil
	}
}

// copyN is io.CopyN, to which an early end is an error.
func copyN(w io.Writer, r io.Reader, n int64) (int64, error) {
	m, err := io.CopyN(w, r, n)
	return m, short(err)
}

type countedStream struct {
	Stream
	n *atomic.Int64
}

func (s *countedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.n.Add(int64(n))
	return n, err
}
