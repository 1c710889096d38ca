package store

import (
	"context"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// Verify hashes the blob in order with the algorithm of its digest, each byte
// once, as the pieces become visible in whatever order, and returns when it
// knows: nil if the blob has its digest, *DigestError if not. It ends early
// with the error of ctx, os.ErrClosed if the handle is closed, or
// ErrUnavailable if the disk fails to return what was written; a later call
// goes on from there. ErrCorrupt says that the disk returns something else: what
// is right of it a later handle finds. A second call at the same time waits for the first.
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
		p.mu.Lock()
		p.ordered[i] = time.Now()
		p.mu.Unlock()
	}
	got := digest.NewDigest(p.e.digest.Algorithm(), p.inOrder)
	if got != p.e.digest {
		if err := p.findRot(); err != nil {
			return err
		}
		return &DigestError{Want: p.e.digest, Got: got}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verified = true
	return nil
}

// findRot looks whether a blob of the wrong digest has changed since it was
// written: then nobody who sent it is to blame.
func (p *Partial) findRot() error {
	for i := range p.layout.Count() {
		p.mu.Lock()
		p.right[i] = time.Time{}
		p.mu.Unlock()
		if err := p.sound(p.data, i); err != nil {
			return err
		}
	}
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
	p *Partial
	f file
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
	return &PartialReader{p: p, f: f}, nil
}

// CopyRange writes n bytes from offset off to w, by sendfile where w can, and
// returns how many it wrote. A visible piece is hashed again before, unless that
// was done a moment ago; the error is ErrCorrupt if it has changed since. Of pieces
// that are not visible nothing is verified: bytes that nobody wrote are zero.
func (r *PartialReader) CopyRange(w io.Writer, off, n int64) (sent int64, err error) {
	l := r.p.layout
	if off < 0 || n < 0 || off > l.Size() || n > l.Size()-off {
		return 0, fmt.Errorf("store: range %d+%d is outside of a blob of %d bytes", off, n, l.Size())
	}
	for end := off + n; off < end; {
		i := l.Index(off)
		if err := r.p.sound(r.f, i); err != nil {
			return sent, err
		}
		upTo := spanEnd(l, i)
		for upTo < end && r.p.lately(r.f, l.Index(upTo)) {
			upTo = spanEnd(l, l.Index(upTo))
		}
		part := min(upTo, end) - off
		m, err := r.f.copyRange(w, off, part)
		sent, off = sent+m, off+m
		if err == nil && m < part {
			err = fmt.Errorf("%w: file of an unfinished blob ends at %d of %d", ErrUnavailable, off, l.Size())
		}
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// Close releases the descriptor.
func (r *PartialReader) Close() error { return r.f.Close() }
