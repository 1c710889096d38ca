package fetch

import (
	"context"
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

// copy writes [off, end) of r's blob to w. If that includes the last byte,
// the whole digest is verified first, for which bytes before off may have to
// be fetched too.
func (d *direct) copy(ctx context.Context, r *Reader, w io.Writer, off, end int64) (int64, error) {
	if end < r.size {
		s, err := r.openDirect(ctx, off, end)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		return copyN(w, s, end-off)
	}
	from, h := int64(0), r.req.Digest.Algorithm().Hash()
	if d.offset <= off {
		var err error
		if from, h, err = d.state(); err != nil {
			return 0, err
		}
	}
	if r.partial != nil && r.flight.has(from, off) {
		// What was sent of the blob so far is what is on disk.
		n, err := r.partial.CopyRange(h, from, off-from)
		if err != nil {
			return 0, err
		}
		from += n
	}
	s, err := r.openDirect(ctx, from, -1)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	in := io.TeeReader(s, h)
	if _, err := copyN(io.Discard, in, off-from); err != nil {
		return 0, err
	}
	tail := make([]byte, min(end-off, chunk))
	n, err := copyN(w, in, end-off-int64(len(tail)))
	if err != nil {
		return n, err
	}
	if _, err := io.ReadFull(in, tail); err != nil {
		return n, short(err)
	}
	if got := digest.NewDigest(r.req.Digest.Algorithm(), h); got != r.req.Digest {
		bad := &BadBlobError{Digest: r.req.Digest, Source: r.req.Source.Key(), Err: fmt.Errorf("%w: the bytes have %s", ErrDigest, got)}
		r.fetcher.remember(bad)
		return n, bad
	}
	m, err := w.Write(tail)
	return n + int64(m), err
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

// openDirect opens a stream of the reader's own that stands at off.
func (r *Reader) openDirect(ctx context.Context, off, end int64) (Stream, error) {
	s := r.flight.takeSpare(r.view.source, off)
	if s == nil {
		var err error
		if s, err = r.view.source.Open(ctx, r.req.Digest, off, end); err != nil {
			return nil, err
		}
	}
	s = &countedStream{Stream: s, n: &r.fetcher.stats.originBytes}
	if s.Size() != r.size || s.Offset() > off {
		s.Close()
		return nil, fmt.Errorf("blob %s: %s sends bytes from %d of %d instead of %d of %d", r.req.Digest, r.req.Source.Key(), s.Offset(), s.Size(), off, r.size)
	}
	if _, err := copyN(io.Discard, s, off-s.Offset()); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
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
