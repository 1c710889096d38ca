package store

import (
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// putBlob stores a complete blob.
func putBlob(t *testing.T, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	p, err := s.Partial(d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	l := p.Layout()
	for i := range l.Count() {
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		off, n := l.Span(i)
		if _, err := w.Write(b[off : off+n]); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestInventory(t *testing.T) {
	var gone []digest.Digest
	s, err := Open(Config{Dir: t.TempDir() + "/store", MaxBytes: 1 << 30, Removed: func(d digest.Digest) { gone = append(gone, d) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	small, large := []byte("small"), make([]byte, 3*piece.MinLength+1)
	a, b := putBlob(t, s, small), putBlob(t, s, large)
	if _, err := s.Partial(digest.FromString("unfinished"), 10); err != nil {
		t.Fatal(err)
	}
	want := []Held{{Digest: b, Size: int64(len(large))}, {Digest: a, Size: int64(len(small))}}
	if got := s.Inventory(10); !slices.Equal(got, want) {
		t.Errorf("inventory is %v, want %v", got, want)
	}
	if got := s.Inventory(1); !slices.Equal(got, want[:1]) {
		t.Errorf("inventory of one is %v, want %v", got, want[:1])
	}
	blob, err := s.Blob(b)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	l := piece.NewLayout(int64(len(large)))
	sums := blob.Sums()
	if len(sums) != l.Count() {
		t.Fatalf("%d sums for %d pieces", len(sums), l.Count())
	}
	for i, sum := range sums {
		off, n := l.Span(i)
		if want := piece.SumOf(large[off : off+n]); sum != want {
			t.Errorf("sum of piece %d is %s, want %s", i, sum, want)
		}
	}
	if err := s.Evict(a); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(gone, []digest.Digest{a}) {
		t.Errorf("told of %v, want %v", gone, a)
	}
}
