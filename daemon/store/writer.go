package store

import (
	"errors"
	"fmt"
	"hash"
	"os"

	"github.com/shoalproject/shoal/piece"
)

var (
	errPieceTaken = errors.New("store: piece is visible or being written")
	errFinished   = errors.New("store: piece writer is finished")
)

// PieceWriter takes the bytes of one piece in order. It belongs to one
// goroutine. After Commit, CommitSum or Discard, whatever they return, it is
// finished; Discard then does nothing, so that it can be deferred.
type PieceWriter struct {
	p       *Partial
	i       int
	off, n  int64 // span of the piece
	written int64
	h       hash.Hash
	err     error // of a write that failed
	done    bool
}

// Piece returns a writer for piece i, which must be neither visible nor have
// a writer. A claim on the piece is given up.
func (p *Partial) Piece(i int) (*PieceWriter, error) {
	if i < 0 || i >= p.layout.Count() {
		return nil, fmt.Errorf("store: %s has no piece %d", p.e.digest, i)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != open {
		return nil, fmt.Errorf("store: piece %d of %s: %w", i, p.e.digest, os.ErrClosed)
	}
	if p.have.Has(i) || p.busy.Has(i) {
		return nil, fmt.Errorf("%w: %d of %s", errPieceTaken, i, p.e.digest)
	}
	p.claimed.Remove(i)
	p.busy.Add(i)
	w := &PieceWriter{p: p, i: i, h: piece.NewHash()}
	w.off, w.n = p.layout.Span(i)
	return w, nil
}

// Write appends b to the piece, on disk and in the piece's hash. It refuses b
// whole if it reaches beyond the piece. ErrUnavailable means that the disk
// failed; the writer is then good for Discard only.
func (w *PieceWriter) Write(b []byte) (int, error) {
	switch {
	case w.done:
		return 0, errFinished
	case w.err != nil:
		return 0, w.err
	case int64(len(b)) > w.n-w.written:
		return 0, fmt.Errorf("store: %d bytes at %d are beyond piece %d of %d bytes", len(b), w.written, w.i, w.n)
	case len(b) == 0:
		return 0, nil
	}
	if w.written == 0 {
		if w.err = w.p.charge(w.i); w.err != nil {
			return 0, w.err
		}
	}
	err := w.p.s.whileFull(func() error {
		_, err := w.p.data.WriteAt(b, w.off+w.written)
		return err
	})
	if err != nil {
		w.err = w.p.s.writeFailed(fmt.Sprintf("writing piece %d of %s", w.i, w.p.e.digest), err)
		return 0, w.err
	}
	w.h.Write(b)
	w.written += int64(len(b))
	return len(b), nil
}

// Written returns how many bytes of the piece were written.
func (w *PieceWriter) Written() int64 { return w.written }

// Commit makes the piece visible, which must be complete, and returns its
// BLAKE3 sum.
func (w *PieceWriter) Commit() (piece.Sum, error) { return w.commit(nil) }

// CommitSum is Commit for a piece whose sum is known. The error is a
// *SumError if the piece has another; then it stays absent.
func (w *PieceWriter) CommitSum(want piece.Sum) error {
	_, err := w.commit(&want)
	return err
}

func (w *PieceWriter) commit(want *piece.Sum) (sum piece.Sum, err error) {
	if w.done {
		return sum, errFinished
	}
	defer w.Discard() // where it is not settled below
	if w.err != nil {
		return sum, w.err
	}
	if w.written != w.n {
		return sum, fmt.Errorf("store: piece %d of %s has %d of %d bytes", w.i, w.p.e.digest, w.written, w.n)
	}
	sum = piece.Sum(w.h.Sum(nil))
	if want != nil && sum != *want {
		return sum, &SumError{Index: w.i, Want: *want, Got: sum}
	}
	if err := w.p.record(w.i, sum); err != nil {
		return sum, w.p.s.writeFailed(fmt.Sprintf("journalling piece %d of %s", w.i, w.p.e.digest), err)
	}
	w.done = true
	w.p.settle(w.i, true, sum)
	return sum, nil
}

// Discard gives the piece up unless it was committed; it is absent again.
func (w *PieceWriter) Discard() {
	if !w.done {
		w.done = true
		w.p.settle(w.i, false, piece.Sum{})
	}
}

// record appends to the journal. A record that was torn by an error is
// overwritten by the next one.
func (p *Partial) record(i int, sum piece.Sum) error {
	p.journalMu.Lock()
	defer p.journalMu.Unlock()
	rec := encodeJournalRecord(i, sum)
	err := p.s.whileFull(func() error {
		_, err := p.journal.WriteAt(rec, p.journalEnd)
		return err
	})
	if err == nil {
		p.journalEnd += int64(len(rec))
	}
	return err
}
