package store

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

func openSmall(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, MaxBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// keepBlob puts a blob of one MiB into the store.
func keepBlob(t *testing.T, s *Store, fill byte) digest.Digest {
	t.Helper()
	data := bytes.Repeat([]byte{fill}, 1<<20)
	d := digest.FromBytes(data)
	p, err := s.Partial(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l := piece.NewLayout(int64(len(data)))
	for i := range l.Count() {
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		off, n := l.Span(i)
		if _, err := w.Write(data[off : off+n]); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Verify(context.Background()), p.Commit()); err != nil {
		t.Fatal(err)
	}
	return d
}

func has(s *Store, d digest.Digest) bool { _, ok := s.Stat(d); return ok }

// What is pinned outlives what was used later, also after a restart and a use,
// and no longer than it was pinned for.
func TestPin(t *testing.T) {
	dir := t.TempDir() + "/data"
	s := openSmall(t, dir)
	pinned, plain := keepBlob(t, s, 1), keepBlob(t, s, 2)
	if err := s.Pin(pinned, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openSmall(t, dir)
	b, err := s.Blob(pinned) // a use must not take the pin away
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	s.Close()
	s = openSmall(t, dir)
	for fill := byte(3); fill < 9; fill++ {
		keepBlob(t, s, fill)
	}
	if !has(s, pinned) || has(s, plain) {
		t.Errorf("pinned is here: %v; plain: %v", has(s, pinned), has(s, plain))
	}
	if err := s.Pin("sha256:"+digest.Digest(bytes.Repeat([]byte("0"), 64)), time.Now().Add(time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}

	s = openSmall(t, t.TempDir()+"/data")
	short := keepBlob(t, s, 1)
	if err := s.Pin(short, time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for fill := byte(2); has(s, short); fill++ {
		if fill > 200 {
			t.Fatal("a pin that is over keeps the blob")
		}
		keepBlob(t, s, fill)
	}
}

// Not all of the quota can be pinned.
func TestPinsAreBounded(t *testing.T) {
	s := openSmall(t, t.TempDir()+"/data")
	for fill := byte(1); fill <= 3; fill++ {
		if err := s.Pin(keepBlob(t, s, fill), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Pin(keepBlob(t, s, 4), time.Now().Add(time.Hour)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a fourth of four: %v", err)
	}
}
