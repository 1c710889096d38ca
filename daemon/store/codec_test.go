package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

func someSums(n int) []piece.Sum {
	sums := make([]piece.Sum, n)
	for i := range sums {
		sums[i] = piece.SumOf([]byte{byte(i)})
	}
	return sums
}

func TestSidecarRoundtrip(t *testing.T) {
	d := digest.FromString("x")
	for _, size := range []int64{0, 1, testPiece, testPiece + 1, 1 << 35} {
		l := piece.NewLayout(size)
		sums := someSums(l.Count())
		b := encodeSidecar(d, l, sums)
		got, err := decodeSidecar(d, l, b)
		if err != nil || len(got) != len(sums) {
			t.Fatalf("size %d: %d sums, %v", size, len(got), err)
		}
		for i := range got {
			if got[i] != sums[i] {
				t.Fatalf("size %d: sum %d differs", size, i)
			}
		}
		if _, err := decodeSidecar(digest.FromString("y"), l, b); !errors.Is(err, errSidecar) {
			t.Fatal("another blob's sidecar passes")
		}
		if _, err := decodeSidecar(d, piece.NewLayout(size+1), b); !errors.Is(err, errSidecar) {
			t.Fatal("another size passes")
		}
	}
}

// Nothing that the decoder accepts is anything but what the encoder wrote.
func FuzzSidecar(f *testing.F) {
	d := digest.FromString("x")
	for _, size := range []int64{0, 1, 3 * testPiece} {
		l := piece.NewLayout(size)
		f.Add(size, encodeSidecar(d, l, someSums(l.Count())))
	}
	f.Add(int64(5), []byte(sidecarMagic))
	f.Fuzz(func(t *testing.T, size int64, b []byte) {
		if size < 0 || size > 1<<32 {
			t.Skip("sizes come from the disk's own inode")
		}
		l := piece.NewLayout(size)
		sums, err := decodeSidecar(d, l, b)
		if err != nil {
			if !errors.Is(err, errSidecar) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(encodeSidecar(d, l, sums), b) {
			t.Fatal("accepted what was never written")
		}
	})
}

// What is claimed is within the blob, and encodes to what was read.
func FuzzJournal(f *testing.F) {
	l := piece.NewLayout(3*testPiece + 1)
	whole := encodeJournalHeader(l)
	for i, sum := range someSums(4) {
		whole = append(whole, encodeJournalRecord(3-i, sum)...)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(bytes.Clone(whole), make([]byte, 100)...))
	f.Add(append(bytes.Clone(whole), encodeJournalRecord(4, piece.Sum{})...))
	f.Add(encodeJournalHeader(piece.Layout{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeJournalHeader(b)
		if err != nil {
			return
		}
		again := encodeJournalHeader(got)
		count := min(got.Count(), 1<<20)
		end := decodeJournalRecords(b[journalHeader:], count, func(i int, sum piece.Sum) {
			if i < 0 || i >= count {
				t.Fatalf("claims piece %d of %d", i, count)
			}
			again = append(again, encodeJournalRecord(i, sum)...)
		})
		if !bytes.Equal(again, b[:journalHeader+end]) {
			t.Fatal("claims differ from what was read")
		}
	})
}

// A journal of claims that were given up again and again stays bounded.
func TestJournalIsBounded(t *testing.T) {
	s := memStore(t, newMemFS(), 1<<30)
	b := content(1, 2*testPiece)
	d := digest.FromBytes(b)
	for range 5 * maxJournalShare {
		p, err := s.Partial(d, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if err := writePiece(p, b, i); err != nil {
				t.Fatal(err)
			}
		}
		p.Close()
		info, err := s.fs.lstat(s.partialPath(d) + journalSuffix)
		if limit := int64(journalHeader + (maxJournalShare+1)*2*journalRecord); err != nil || info.size > limit {
			t.Fatalf("journal has %d bytes, limit %d (%v)", info.size, limit, err)
		}
	}
}
