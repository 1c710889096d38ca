package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// window bounds the bytes that are looked at and then sent in one go. It is
// at least the longest piece; pages can leave memory between the look and the
// sending, so more would only widen that gap. Linux sends at most 2 GiB per
// sendfile, Go asks for 4 MiB, so a longer window would save nothing.
const window = piece.MaxLength

// Blob is a handle on a complete blob, which is not evicted to make room
// while the handle is open. A handle has a descriptor of its own. Its methods
// are not safe for concurrent use; open one handle per reader.
type Blob struct {
	s     *Store
	e     *entry
	f     file
	close sync.Once
}

// Blob opens the complete blob d. This counts as a use of it. The error is
// ErrNotFound if there is no such blob (or no longer, if it was found lost or
// damaged; then it is ErrCorrupt too), ErrUnavailable if it cannot be opened
// now.
func (s *Store) Blob(d digest.Digest) (*Blob, error) {
	if _, _, err := split(d); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: closed", ErrUnavailable)
	}
	e := s.index.blobs[d]
	if e == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: %s", ErrNotFound, d)
	}
	e.pins++
	s.index.use(e)
	now := time.Now()
	// The time of a pin that holds stays where it is.
	touch := now.Sub(e.touched) >= touchEvery && !e.keep.After(now)
	if touch {
		e.touched = now
	}
	s.mu.Unlock()

	path := s.blobPath(d)
	f, err := s.openBlob(e, path)
	if err != nil {
		s.unpin(e)
		return nil, err
	}
	if touch {
		// The order of use after a restart suffers if this fails, nothing else.
		_ = s.fs.touch(path+sidecarSuffix, now)
	}
	return &Blob{s: s, e: e, f: f}, nil
}

func (s *Store) unpin(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.pins--
}

// openBlob opens the file of e and sees to it that its sums are in memory.
func (s *Store) openBlob(e *entry, path string) (file, error) {
	lost := func(why string) error {
		s.forget(e, why)
		return fmt.Errorf("%w: %s (%w: %s)", ErrNotFound, e.digest, ErrCorrupt, why)
	}
	f, err := s.fs.open(path, os.O_RDONLY)
	if isReplaced(err) {
		return nil, lost(err.Error())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: opening blob %s: %w", ErrUnavailable, e.digest, err)
	}
	info, err := f.stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: opening blob %s: %w", ErrUnavailable, e.digest, err)
	}
	if !info.mode.IsRegular() || info.size != e.size {
		f.Close()
		return nil, lost(fmt.Sprintf("file is %s of %d bytes, was %d", info.mode, info.size, e.size))
	}
	if !e.proof.loaded() {
		sums, err := s.readSidecar(e, path+sidecarSuffix)
		if isReplaced(err) || errors.Is(err, errSidecar) {
			f.Close()
			return nil, lost(err.Error())
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%w: reading piece sums of %s: %w", ErrUnavailable, e.digest, err)
		}
		e.proof.load(sums)
	}
	f.readNothingAhead()
	return f, nil
}

// isReplaced says that what was our file is gone, or is a symbolic link or
// beneath a file by now.
func isReplaced(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENOTDIR)
}

func (s *Store) readSidecar(e *entry, path string) ([]piece.Sum, error) {
	f, err := s.fs.open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte more than there should be, so that a longer file is noticed.
	b := make([]byte, sidecarSize(e.proof.layout)+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("%w: %w", errSidecar, err)
	}
	return decodeSidecar(e.digest, e.proof.layout, b[:n])
}

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.e.size }

// Close releases the handle. A second call does nothing.
func (b *Blob) Close() (err error) {
	b.close.Do(func() {
		err = b.f.Close()
		b.s.unpin(b.e)
	})
	return err
}

// CopyRange writes n bytes from offset off to w and returns how many it
// wrote. No byte leaves before its piece is known to match its sum; see
// proof. Where w can read from a file (a *net.TCPConn, an
// http.ResponseWriter) the bytes go by sendfile.
//
// The error is ErrCorrupt if a piece does not match or cannot be read: what
// was written before it is right, and the blob has been evicted. Errors of w
// are returned as they are.
func (b *Blob) CopyRange(w io.Writer, off, n int64) (sent int64, err error) {
	if off < 0 || n < 0 || off > b.e.size || n > b.e.size-off {
		return 0, fmt.Errorf("store: range %d+%d is outside of blob %s of %d bytes", off, n, b.e.digest, b.e.size)
	}
	for end := off + n; off < end; {
		sure, err := b.vouch(off, end)
		if errors.Is(err, os.ErrClosed) {
			return sent, err
		}
		if err != nil {
			b.s.forget(b.e, err.Error())
			return sent, fmt.Errorf("%w: %s: %w", ErrCorrupt, b.e.digest, err)
		}
		m, err := b.f.copyRange(w, off, sure-off)
		sent += m
		if err != nil {
			return sent, err
		}
		if off += m; off < sure {
			b.s.forget(b.e, "file was truncated")
			return sent, fmt.Errorf("%w: %s: file ends at %d of %d", ErrCorrupt, b.e.digest, off, b.e.size)
		}
	}
	return sent, nil
}

// vouch verifies what has to be, and returns up to which offset, after off
// and up to end, the bytes may be sent.
func (b *Blob) vouch(off, end int64) (int64, error) {
	p := b.e.proof
	info, err := b.f.stat()
	if err != nil {
		return 0, err
	}
	if info.size != b.e.size {
		return 0, fmt.Errorf("file has %d bytes, was %d", info.size, b.e.size)
	}
	first := p.layout.Index(off)
	most := p.layout.Index(min(end, off+window)-1) - first + 1
	if run := p.trusted(b.f, info.identity, first, most); run > 0 {
		return min(end, spanEnd(p.layout, first+run-1)), nil
	}
	p.hashing.Lock()
	defer p.hashing.Unlock()
	// Another handle may have hashed it meanwhile.
	if p.trusted(b.f, info.identity, first, 1) == 0 {
		if err := b.hashPiece(first); err != nil {
			return 0, err
		}
		p.add(info.identity, first)
	}
	// The disk brings the next piece while this one is sent. Trusted takes
	// the proof of a dropped piece away first, so that bringing it into
	// memory does not make it look as if it had stayed there.
	if next := first + 1; next < p.layout.Count() && p.trusted(b.f, info.identity, next, 1) == 0 {
		if start, length := p.layout.Span(next); start < end {
			b.f.prefetch(start, length)
		}
	}
	return min(end, spanEnd(p.layout, first)), nil
}

func spanEnd(l piece.Layout, i int) int64 {
	off, n := l.Span(i)
	return off + n
}

// hashPiece reads piece i and compares it with its sum.
func (b *Blob) hashPiece(i int) error {
	b.s.mu.Lock()
	b.s.stats.RotChecks++
	b.s.mu.Unlock()
	got, err := sumOf(b.f, b.e.proof.layout, i)
	if err != nil {
		return err
	}
	if want := b.e.proof.sum(i); got != want {
		return fmt.Errorf("piece %d has sum %s, had %s", i, got, want)
	}
	return nil
}

// readBuffers hold what is read to be hashed. 256 KiB is the shortest piece,
// and enough for BLAKE3 and the disk to run at full speed.
var readBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// sumOf reads and hashes piece i of f.
func sumOf(f file, l piece.Layout, i int) (piece.Sum, error) {
	buf := readBuffers.Get().(*[256 << 10]byte)
	defer readBuffers.Put(buf)
	h := piece.NewHash()
	off, n := l.Span(i)
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if _, err := f.ReadAt(b, off); err != nil {
			return piece.Sum{}, fmt.Errorf("reading piece %d: %w", i, err)
		}
		h.Write(b)
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return piece.Sum(h.Sum(nil)), nil
}
