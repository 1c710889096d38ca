package store

import (
	"context"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// Verify hashes the blob in order with the algorithm of its digest, each byte
// once, as the pieces become visible in whatever order, and returns when it
// knows: nil if the blob has its digest, *DigestError if not. It ends early
// with the error of ctx, os.ErrClosed if the handle is closed, or
// ErrUnavailable if the disk fails to return what was written; a later call
// goes on from there. A second call at the same time waits for the first.
func (p *Partial) Verify(ctx context.Context) error {
	select {
	case p.verifying <- struct{}{}:
		defer func() { <-p.verifying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	buf := readBuffers.Get().(*[256 << 10]byte)
	defer readBuffers.Put(buf)
	// Only the holder of verifying advances hashed.
	for p.hashed < p.layout.Size() {
		i := p.layout.Index(p.hashed)
		if err := p.await(ctx, i); err != nil {
			return err
		}
		for end := spanEnd(p.layout, i); p.hashed < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(end-p.hashed, int64(len(buf)))]
			if _, err := p.data.ReadAt(b, p.hashed); err != nil {
				return fmt.Errorf("%w: verifying %s at %d: %w", ErrUnavailable, p.e.digest, p.hashed, err)
			}
			p.hashMu.Lock()
			p.inOrder.Write(b)
			p.hashed += int64(len(b))
			p.hashMu.Unlock()
		}
	}
	got := digest.NewDigest(p.e.digest.Algorithm(), p.inOrder)
	if got != p.e.digest {
		return &DigestError{Want: p.e.digest, Got: got}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verified = true
	return nil
}

// await returns when piece i is visible.
func (p *Partial) await(ctx context.Context, i int) error {
	for {
		p.mu.Lock()
		has, state, news := p.have.Has(i), p.state, p.news
		p.mu.Unlock()
		if state != open {
			return fmt.Errorf("store: verifying %s: %w", p.e.digest, os.ErrClosed)
		}
		if has {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// HashState returns a copy of the state that Verify has reached: the hash of
// the first offset bytes of the blob. With it a reader that passes the bytes
// through, because the disk gave up, goes on from there.
func (p *Partial) HashState() (offset int64, h hash.Hash, err error) {
	p.hashMu.Lock()
	defer p.hashMu.Unlock()
	c, ok := p.inOrder.(hash.Cloner)
	if !ok {
		return 0, nil, fmt.Errorf("store: hash of %s cannot be copied", p.e.digest)
	}
	h, err = c.Clone()
	if err != nil {
		return 0, nil, fmt.Errorf("store: copying the hash of %s: %w", p.e.digest, err)
	}
	return p.hashed, h, nil
}

// PartialReader reads an unfinished blob by a descriptor of its own, which
// Commit, Drop, Close and eviction leave readable. Its methods are not safe
// for concurrent use.
type PartialReader struct {
	f    file
	size int64
}

// Reader opens the unfinished blob for reading.
func (p *Partial) Reader() (*PartialReader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != open {
		return nil, fmt.Errorf("store: reading %s: %w", p.e.digest, os.ErrClosed)
	}
	// Under mu, so that Commit does not move the file meanwhile.
	f, err := p.s.fs.open(p.path, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%w: reading %s: %w", ErrUnavailable, p.e.digest, err)
	}
	return &PartialReader{f: f, size: p.layout.Size()}, nil
}

// CopyRange writes n bytes from offset off to w, by sendfile where w can, and
// returns how many it wrote. It verifies nothing: the caller knows which
// pieces are visible or trusted. Bytes that nobody wrote are zero.
func (r *PartialReader) CopyRange(w io.Writer, off, n int64) (int64, error) {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return 0, fmt.Errorf("store: range %d+%d is outside of a blob of %d bytes", off, n, r.size)
	}
	if n == 0 {
		return 0, nil
	}
	sent, err := r.f.copyRange(w, off, n)
	if err == nil && sent < n {
		err = fmt.Errorf("%w: file of an unfinished blob ends at %d of %d", ErrUnavailable, off+sent, r.size)
	}
	return sent, err
}

// Close releases the descriptor.
func (r *PartialReader) Close() error { return r.f.Close() }
