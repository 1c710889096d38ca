package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/piece"
)

// Memory is a Store in memory, without quota and eviction. The zero value is
// ready; it must not be copied. Claims arise as in the real store, when an
// unfinished blob is closed and opened again.
type Memory struct {
	// mu guards everything that hangs on a Memory, handles included.
	mu       sync.Mutex
	blobs    map[digest.Digest]*memoryContent
	partials map[digest.Digest]*memoryPartial
	writeErr error
	// writesLeft is how many more writes succeed before writeErr is returned.
	writesLeft int
}

// FailWrites makes every write fail after the next n with an error that wraps
// store.ErrUnavailable and err, new partials and commits too, until it is
// called with a nil err.
func (m *Memory) FailWrites(n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writesLeft, m.writeErr = n, err
}

// failLocked accounts for one write.
func (m *Memory) failLocked() error {
	if m.writeErr == nil {
		return nil
	}
	if m.writesLeft > 0 {
		m.writesLeft--
		return nil
	}
	return fmt.Errorf("%w: on order: %w", store.ErrUnavailable, m.writeErr)
}

// Put stores a complete blob and returns its SHA-256 digest.
func (m *Memory) Put(b []byte) digest.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := digest.FromBytes(b)
	m.putLocked(d, bytes.Clone(b))
	return d
}

// memoryContent is a complete blob and which of its bytes are rotten.
type memoryContent struct {
	b      []byte
	rotten map[int64]bool
}

// Corrupt flips a bit of the blob at off, which the next CopyRange over its
// piece finds. It reports whether there is such a byte.
func (m *Memory) Corrupt(d digest.Digest, off int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.blobs[d]
	if !ok || off < 0 || off >= int64(len(c.b)) {
		return false
	}
	if c.rotten == nil {
		c.rotten = map[int64]bool{}
	}
	c.rotten[off] = !c.rotten[off]
	return true
}

func (m *Memory) putLocked(d digest.Digest, b []byte) {
	if m.blobs == nil {
		m.blobs = map[digest.Digest]*memoryContent{}
	}
	m.blobs[d] = &memoryContent{b: b}
}

// Health returns nil, or that writes fail on order.
func (m *Memory) Health() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writeErr != nil && m.writesLeft == 0 {
		return fmt.Errorf("%w: on order: %w", store.ErrUnavailable, m.writeErr)
	}
	return nil
}

// Blob implements Store.
func (m *Memory) Blob(d digest.Digest) (Blob, error) {
	if _, err := newHash(d); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.blobs[d]
	if !ok {
		return nil, fmt.Errorf("%w: %s", store.ErrNotFound, d)
	}
	return &memoryBlob{m: m, d: d, c: c}, nil
}

// Evict implements Store.
func (m *Memory) Evict(d digest.Digest) error {
	if _, err := newHash(d); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.blobs[d]; !ok {
		return fmt.Errorf("%w: %s", store.ErrNotFound, d)
	}
	delete(m.blobs, d)
	return nil
}

func newHash(d digest.Digest) (hash.Hash, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("storetest: %w", err)
	}
	switch d.Algorithm() {
	case digest.SHA256:
		return sha256.New(), nil
	case digest.SHA512:
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("storetest: digest %s is not of sha256 or sha512", d)
}

type memoryBlob struct {
	m *Memory
	d digest.Digest
	c *memoryContent
}

func (b *memoryBlob) Size() int64  { return int64(len(b.c.b)) }
func (b *memoryBlob) Close() error { return nil }

func (b *memoryBlob) CopyRange(w io.Writer, off, n int64) (int64, error) {
	if off < 0 || n < 0 || off > b.Size() || n > b.Size()-off {
		return 0, fmt.Errorf("storetest: range %d+%d is outside of %s", off, n, b.d)
	}
	end, rotten := b.sound(off, off+n)
	sent, err := w.Write(b.c.b[off:end])
	if err == nil && rotten {
		err = fmt.Errorf("%w: %s", store.ErrCorrupt, b.d)
	}
	return int64(sent), err
}

// sound returns how far from off, up to end, the pieces are sound, and evicts
// the blob if that is not all.
func (b *memoryBlob) sound(off, end int64) (upTo int64, rotten bool) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	l := piece.NewLayout(b.Size())
	upTo = end
	for at, is := range b.c.rotten {
		start, n := l.Span(l.Index(at))
		if is && start < upTo && start+n > off && end > off {
			upTo, rotten = max(off, start), true
		}
	}
	if rotten && b.m.blobs[b.d] == b.c {
		delete(b.m.blobs, b.d)
	}
	return upTo, rotten
}

// Partial implements Store.
func (m *Memory) Partial(d digest.Digest, size int64) (Partial, error) {
	h, err := newHash(d)
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("storetest: blob %s cannot have %d bytes", d, size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.partials[d]
	if old != nil && !old.ended {
		return nil, fmt.Errorf("%w: %s", store.ErrBusy, d)
	}
	if err := m.failLocked(); err != nil {
		return nil, err
	}
	l := piece.NewLayout(size)
	p := &memoryPartial{
		m: m, d: d, layout: l, h: h,
		sums: make([]piece.Sum, l.Count()), state: make([]pieceState, l.Count()),
		news: make(chan struct{}), verifying: make(chan struct{}, 1),
	}
	if old != nil && old.layout == l {
		p.data = old.data
		for i, st := range old.state {
			if st == visible || st == claimed {
				p.state[i], p.sums[i] = claimed, old.sums[i]
			}
		}
	} else {
		p.data = &memoryData{b: make([]byte, size)}
	}
	if m.partials == nil {
		m.partials = map[digest.Digest]*memoryPartial{}
	}
	m.partials[d] = p
	return p, nil
}

type pieceState int

const (
	absent pieceState = iota
	claimed
	busy
	visible
)

// memoryData outlives the handle, for readers.
type memoryData struct{ b []byte }

type memoryPartial struct {
	m      *Memory
	d      digest.Digest
	layout piece.Layout
	data   *memoryData
	// verifying holds a token while Verify runs.
	verifying chan struct{}

	// The fields below are guarded by Memory.mu.
	sums      []piece.Sum
	state     []pieceState
	h         hash.Hash
	hashed    int64
	news      chan struct{}
	verified  bool
	committed bool
	ended     bool
}

func (p *memoryPartial) Layout() piece.Layout { return p.layout }

func (p *memoryPartial) is(i int, st pieceState) bool {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return i >= 0 && i < len(p.state) && p.state[i] == st
}

func (p *memoryPartial) Has(i int) bool     { return p.is(i, visible) }
func (p *memoryPartial) Claimed(i int) bool { return p.is(i, claimed) }

func (p *memoryPartial) Sum(i int) (piece.Sum, bool) {
	if !p.Has(i) {
		return piece.Sum{}, false
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.sums[i], true
}

func (p *memoryPartial) span(i int) []byte {
	off, n := p.layout.Span(i)
	return p.data.b[off : off+n]
}

func (p *memoryPartial) Recheck(i int) (bool, error) {
	if !p.Claimed(i) {
		return p.Has(i), nil
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	ok := piece.SumOf(p.span(i)) == p.sums[i]
	p.settleLocked(i, ok)
	return ok, nil
}

func (p *memoryPartial) settleLocked(i int, ok bool) {
	p.state[i] = absent
	if ok {
		p.state[i] = visible
		close(p.news)
		p.news = make(chan struct{})
	}
}

func (p *memoryPartial) closed(doing string) error {
	return fmt.Errorf("storetest: %s %s: %w", doing, p.d, os.ErrClosed)
}

func (p *memoryPartial) Verify(ctx context.Context) error {
	select {
	case p.verifying <- struct{}{}:
		defer func() { <-p.verifying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		done, news, err := p.advance()
		if done || err != nil {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// advance hashes the visible pieces that are next in order.
func (p *memoryPartial) advance() (done bool, news <-chan struct{}, err error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	for p.hashed < p.layout.Size() {
		if p.ended {
			return false, nil, p.closed("verifying")
		}
		i := p.layout.Index(p.hashed)
		if p.state[i] != visible {
			return false, p.news, nil
		}
		n, _ := p.h.Write(p.span(i))
		p.hashed += int64(n)
	}
	if got := digest.NewDigest(p.d.Algorithm(), p.h); got != p.d {
		return true, nil, &store.DigestError{Want: p.d, Got: got}
	}
	p.verified = true
	return true, nil, nil
}

func (p *memoryPartial) HashState() (int64, hash.Hash, error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	h, err := p.h.(hash.Cloner).Clone()
	return p.hashed, h, err
}

func (p *memoryPartial) Reader() (PartialReader, error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.ended {
		return nil, p.closed("reading")
	}
	return &memoryReader{m: p.m, data: p.data}, nil
}

func (p *memoryPartial) Commit() error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	switch {
	case p.ended:
		return p.closed("committing")
	case p.committed:
		return nil
	case !p.verified:
		return fmt.Errorf("storetest: %s was not verified", p.d)
	}
	if err := p.m.failLocked(); err != nil {
		return err
	}
	p.committed = true
	p.m.putLocked(p.d, bytes.Clone(p.data.b))
	if p.m.partials[p.d] == p {
		delete(p.m.partials, p.d)
	}
	return nil
}

func (p *memoryPartial) Close() error { return p.end(false) }
func (p *memoryPartial) Drop() error  { return p.end(true) }

func (p *memoryPartial) end(drop bool) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.ended {
		return nil
	}
	p.ended = true
	close(p.news)
	p.news = make(chan struct{})
	if drop && p.m.partials[p.d] == p {
		delete(p.m.partials, p.d)
	}
	return nil
}

type memoryReader struct {
	m    *Memory
	data *memoryData
}

func (r *memoryReader) Close() error { return nil }

func (r *memoryReader) CopyRange(w io.Writer, off, n int64) (int64, error) {
	size := int64(len(r.data.b))
	if off < 0 || n < 0 || off > size || n > size-off {
		return 0, fmt.Errorf("storetest: range %d+%d is outside of %d bytes", off, n, size)
	}
	r.m.mu.Lock()
	b := bytes.Clone(r.data.b[off : off+n])
	r.m.mu.Unlock()
	sent, err := w.Write(b)
	return int64(sent), err
}

// Piece implements Partial.
func (p *memoryPartial) Piece(i int) (PieceWriter, error) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	switch {
	case i < 0 || i >= len(p.state):
		return nil, fmt.Errorf("storetest: %s has no piece %d", p.d, i)
	case p.ended:
		return nil, p.closed("writing")
	case p.state[i] == visible || p.state[i] == busy:
		return nil, fmt.Errorf("storetest: piece %d of %s is visible or being written", i, p.d)
	}
	p.state[i] = busy
	return &memoryWriter{p: p, i: i, buf: p.span(i)}, nil
}

type memoryWriter struct {
	p    *memoryPartial
	i    int
	buf  []byte
	n    int
	done bool
}

func (w *memoryWriter) Write(b []byte) (int, error) {
	w.p.m.mu.Lock()
	defer w.p.m.mu.Unlock()
	switch {
	case w.done:
		return 0, fmt.Errorf("storetest: piece writer is finished")
	case w.p.ended:
		return 0, w.p.closed("writing")
	case len(b) > len(w.buf)-w.n:
		return 0, fmt.Errorf("storetest: %d bytes are beyond piece %d", len(b), w.i)
	}
	if err := w.p.m.failLocked(); err != nil {
		return 0, err
	}
	w.n += copy(w.buf[w.n:], b)
	return len(b), nil
}

func (w *memoryWriter) Written() int64 { return int64(w.n) }

func (w *memoryWriter) Commit() (piece.Sum, error) { return w.commit(nil) }

func (w *memoryWriter) CommitSum(want piece.Sum) error {
	_, err := w.commit(&want)
	return err
}

func (w *memoryWriter) commit(want *piece.Sum) (piece.Sum, error) {
	defer w.Discard()
	w.p.m.mu.Lock()
	defer w.p.m.mu.Unlock()
	switch {
	case w.done:
		return piece.Sum{}, fmt.Errorf("storetest: piece writer is finished")
	case w.n != len(w.buf):
		return piece.Sum{}, fmt.Errorf("storetest: piece %d has %d of %d bytes", w.i, w.n, len(w.buf))
	}
	sum := piece.SumOf(w.buf)
	if want != nil && sum != *want {
		return sum, &store.SumError{Index: w.i, Want: *want, Got: sum}
	}
	w.done = true
	w.p.sums[w.i] = sum
	w.p.settleLocked(w.i, true)
	return sum, nil
}

func (w *memoryWriter) Discard() {
	w.p.m.mu.Lock()
	defer w.p.m.mu.Unlock()
	if !w.done {
		w.done = true
		w.p.settleLocked(w.i, false)
	}
}
