package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/daemon/store/storetest"
	"github.com/shoalproject/shoal/piece"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is the in-memory store, in the types and errors of this package.
type memory struct{ *storetest.Memory }

func (m memory) Blob(d digest.Digest) (Blob, error) {
	b, err := m.Memory.Blob(d)
	return memoryBlob{b}, translate(err)
}

func (m memory) Partial(d digest.Digest, size int64) (Partial, error) {
	p, err := m.Memory.Partial(d, size)
	return memoryPartial{p}, translate(err)
}

type memoryBlob struct{ storetest.Blob }

func (b memoryBlob) CopyRange(w io.Writer, off, n int64) (int64, error) {
	m, err := b.Blob.CopyRange(w, off, n)
	return m, translate(err)
}

type memoryPartial struct{ storetest.Partial }

func (p memoryPartial) Piece(i int) (PieceWriter, error) {
	w, err := p.Partial.Piece(i)
	return memoryWriter{w}, translate(err)
}

func (p memoryPartial) Verify(ctx context.Context) error { return translate(p.Partial.Verify(ctx)) }
func (p memoryPartial) HashState() (int64, hash.Hash, error) {
	return p.Partial.HashState()
}

func (p memoryPartial) Reader() (PartialReader, error) {
	return p.Partial.Reader()
}

type memoryWriter struct{ storetest.PieceWriter }

func (w memoryWriter) Write(b []byte) (int, error) {
	n, err := w.PieceWriter.Write(b)
	return n, translate(err)
}

func (w memoryWriter) Commit() (piece.Sum, error) {
	s, err := w.PieceWriter.Commit()
	return s, translate(err)
}

func (w memoryWriter) CommitSum(sum piece.Sum) error {
	return translate(w.PieceWriter.CommitSum(sum))
}

func translate(err error) error {
	var wrong *store.DigestError
	var wrongPiece *store.SumError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNotFound):
		return ErrNotFound
	case errors.Is(err, store.ErrCorrupt):
		return ErrCorrupt
	case errors.Is(err, store.ErrUnavailable):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errors.As(err, &wrong):
		return fmt.Errorf("%w: %w", ErrDigest, err)
	case errors.As(err, &wrongPiece):
		return fmt.Errorf("%w: %w", ErrWrongPiece, err)
	}
	return err
}

// origin is a Source whose behaviour is scripted per Open.
type origin struct {
	key  string
	blob []byte
	// script is asked what the n-th Open (from 0) does; nil: all is well.
	script func(n int, off int64) behaviour

	mu sync.Mutex
	// Guarded by mu:
	opens []int64 // offsets asked for
	sent  int64
	sizes int // how often the size alone was asked for
}

type behaviour struct {
	err      error         // of Open
	noRanges bool          // start at 0 whatever was asked
	size     int64         // said, if not 0
	cut      int64         // bytes after which the stream fails; 0: never
	flip     int64         // offset in the blob of a byte to flip, if not 0
	gate     chan struct{} // each receive lets one read of up to 64 KiB through; nil: no gate
}

var errCut = errors.New("connection cut")

func (o *origin) Key() string    { return o.key }
func (o *origin) Origin() string { return "registry.test/app" }

func (o *origin) Size(context.Context, digest.Digest) (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sizes++
	return int64(len(o.blob)), nil
}

func (o *origin) Open(ctx context.Context, _ digest.Digest, off, end int64) (Stream, error) {
	o.mu.Lock()
	n := len(o.opens)
	o.opens = append(o.opens, off)
	o.mu.Unlock()
	var b behaviour
	if o.script != nil {
		b = o.script(n, off)
	}
	if b.err != nil {
		return nil, b.err
	}
	size := int64(len(o.blob))
	if end < 0 {
		end = size
	}
	if b.noRanges {
		off, end = 0, size
	}
	if b.size == 0 {
		b.size = size
	}
	return &originStream{o: o, b: b, ctx: ctx, start: off, pos: off, end: end}, nil
}

func (o *origin) calls() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]int64(nil), o.opens...)
}

func (o *origin) bytes() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sent
}

type originStream struct {
	o               *origin
	b               behaviour
	ctx             context.Context
	start, pos, end int64
}

func (s *originStream) Size() int64   { return s.b.size }
func (s *originStream) Offset() int64 { return s.start }
func (s *originStream) Close() error  { return nil }

func (s *originStream) Read(p []byte) (int, error) {
	if s.pos >= s.end {
		return 0, io.EOF
	}
	if s.b.cut > 0 && s.pos-s.start >= s.b.cut {
		return 0, errCut
	}
	if s.b.gate != nil {
		select {
		case <-s.b.gate:
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n := min(int64(len(p)), s.end-s.pos, 64<<10)
	if s.b.cut > 0 {
		n = min(n, s.b.cut-(s.pos-s.start))
	}
	copy(p, s.o.blob[s.pos:s.pos+n])
	if f := s.b.flip; f != 0 && s.pos <= f && f < s.pos+n {
		p[f-s.pos] ^= 1
	}
	s.pos += n
	s.o.mu.Lock()
	s.o.sent += n
	s.o.mu.Unlock()
	return int(n), nil
}

// fixture is a Fetcher over a memory store, with one blob at one origin.
type fixture struct {
	*Fetcher
	t      *testing.T
	mem    *storetest.Memory
	origin *origin
	blob   []byte
	digest digest.Digest
}

func newFixture(t *testing.T, size int, cfg Config) *fixture {
	t.Helper()
	blob := randomBytes(size)
	mem := &storetest.Memory{}
	f := New(memory{mem}, cfg)
	t.Cleanup(f.Close)
	return &fixture{Fetcher: f, t: t, mem: mem, blob: blob, digest: digest.FromBytes(blob), origin: &origin{key: "origin", blob: blob}}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	rng.Read(b)
	return b
}

func (f *fixture) open(off int64) *Reader {
	f.t.Helper()
	r, err := f.Open(f.t.Context(), Request{Digest: f.digest, Source: f.origin, Offset: off, Whole: off == 0, Proven: true})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// read reads [off, end) and checks every byte.
func (f *fixture) read(r *Reader, off, end int64) {
	f.t.Helper()
	var buf bytes.Buffer
	n, err := r.CopyRange(f.t.Context(), &buf, off, end-off)
	if err != nil || n != end-off {
		f.t.Fatalf("reading [%d, %d): %d bytes, %v", off, end, n, err)
	}
	if !bytes.Equal(buf.Bytes(), f.blob[off:end]) {
		f.t.Fatalf("bytes of [%d, %d) are wrong", off, end)
	}
}

func (f *fixture) readAll() {
	f.t.Helper()
	r := f.open(0)
	defer r.Close()
	if r.Size() != int64(len(f.blob)) {
		f.t.Fatalf("size %d, want %d", r.Size(), len(f.blob))
	}
	f.read(r, 0, r.Size())
}

// tryAll asks for the whole blob and returns how much of it came.
func (f *fixture) tryAll() (int64, error) {
	f.t.Helper()
	r, err := f.Open(f.t.Context(), Request{Digest: f.digest, Source: f.origin, Whole: true, Proven: true})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.CopyRange(f.t.Context(), io.Discard, 0, r.Size())
}

// stored reports whether the store has the complete blob.
func (f *fixture) stored() bool {
	b, err := f.mem.Blob(f.digest)
	if err == nil {
		b.Close()
	}
	return err == nil
}
