package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/piece"
)

// Content returns n bytes that depend on seed alone and do not repeat.
func Content(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Fill writes the pieces of content at the indexes into p, in that order.
func Fill(t testing.TB, p Partial, content []byte, indexes ...int) {
	t.Helper()
	for _, i := range indexes {
		off, n := p.Layout().Span(i)
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content[off : off+n]); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// Put stores content as a complete blob and returns its SHA-256 digest.
func Put(t testing.TB, s Store, content []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(content)
	p := mustPartial(t, s, d, len(content))
	defer p.Close()
	Fill(t, p, content, all(p)...)
	if err := p.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	return d
}

func all(p Partial) []int { return rand.Perm(p.Layout().Count()) }

func mustPartial(t testing.TB, s Store, d digest.Digest, size int) Partial {
	t.Helper()
	p, err := s.Partial(d, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// wantBlob reads d whole and compares.
func wantBlob(t *testing.T, s Store, d digest.Digest, content []byte) {
	t.Helper()
	b, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Size() != int64(len(content)) {
		t.Fatalf("size is %d, want %d", b.Size(), len(content))
	}
	var got bytes.Buffer
	if n, err := b.CopyRange(&got, 0, b.Size()); err != nil || n != b.Size() {
		t.Fatalf("CopyRange returned %d, %v", n, err)
	}
	if !bytes.Equal(got.Bytes(), content) {
		t.Fatal("content differs")
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

const (
	pieceLen = piece.MinLength
	size     = 3*pieceLen + 1000 // four pieces, the last one short
)

// Run checks that stores made by open, each empty and with room for 64 MiB,
// keep the contract of package store.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"roundtrip":             testRoundtrip,
		"sizes":                 testSizes,
		"sha512":                testSHA512,
		"bad digests":           testBadDigests,
		"ranges":                testRanges,
		"not found":             testNotFound,
		"busy":                  testBusy,
		"visibility":            testVisibility,
		"piece writer":          testPieceWriter,
		"wrong piece":           testWrongPiece,
		"wrong digest":          testWrongDigest,
		"unverified commit":     testUnverifiedCommit,
		"resume":                testResume,
		"resume, other size":    testResumeOtherSize,
		"readers outlive":       testReadersOutlive,
		"read while evicted":    testReadWhileEvicted,
		"verify beside writers": testVerifyBesideWriters,
		"verify ends":           testVerifyEnds,
		"hash state":            testHashState,
		"closed":                testClosed,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func testRoundtrip(t *testing.T, s Store) {
	content := Content(1, size)
	d := Put(t, s, content)
	wantBlob(t, s, d, content)
	if err := s.Health(); err != nil {
		t.Fatal(err)
	}
}

func testSizes(t *testing.T, s Store) {
	for i, n := range []int{0, 1, pieceLen - 1, pieceLen, pieceLen + 1, 9 * pieceLen} {
		content := Content(uint64(i), n)
		wantBlob(t, s, Put(t, s, content), content)
	}
}

func testSHA512(t *testing.T, s Store) {
	content := Content(2, size)
	d := digest.SHA512.FromBytes(content)
	p := mustPartial(t, s, d, size)
	Fill(t, p, content, 3, 1, 0, 2)
	if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, content)
}

func testBadDigests(t *testing.T, s Store) {
	hex := digest.FromString("x").Encoded()
	for _, d := range []digest.Digest{
		"", ":", "sha256", "sha256:", "sha256:.." + digest.Digest(hex[2:]), digest.Digest("sha256:" + hex[1:]),
		digest.Digest("sha256:" + hex + "0"), digest.Digest("SHA256:" + hex), digest.Digest("sha256:A" + hex[1:]),
		digest.Digest("sha512:" + hex), digest.Digest("sha384:" + hex + hex[:32]), digest.Digest("../../etc:" + hex),
		digest.Digest("sha256:" + hex[:63] + "/"), digest.Digest("sha256:" + hex[:63] + "\x00"), digest.Digest(" sha256:" + hex),
	} {
		if _, err := s.Blob(d); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Blob(%q) = %v", d, err)
		}
		if _, err := s.Partial(d, 1); err == nil {
			t.Errorf("Partial(%q) succeeds", d)
		}
		if err := s.Evict(d); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Evict(%q) = %v", d, err)
		}
	}
	if _, err := s.Partial(digest.Digest("sha256:"+hex), -1); err == nil {
		t.Error("a negative size passes")
	}
}

func testRanges(t *testing.T, s Store) {
	content := Content(3, size)
	b, err := s.Blob(Put(t, s, content))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, r := range [][2]int64{{0, 0}, {0, 1}, {pieceLen - 1, 2}, {pieceLen, pieceLen}, {5, size - 5}, {size - 1, 1}, {size, 0}} {
		var got bytes.Buffer
		if n, err := b.CopyRange(&got, r[0], r[1]); err != nil || n != r[1] {
			t.Fatalf("%v: %d, %v", r, n, err)
		}
		if !bytes.Equal(got.Bytes(), content[r[0]:r[0]+r[1]]) {
			t.Fatalf("%v: content differs", r)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, size + 1}, {size, 1}, {size + 1, 0}, {1, 1<<63 - 1}} {
		if n, err := b.CopyRange(new(bytes.Buffer), r[0], r[1]); err == nil || n != 0 || errors.Is(err, store.ErrCorrupt) {
			t.Fatalf("%v: %d, %v", r, n, err)
		}
	}
}

func testNotFound(t *testing.T, s Store) {
	d := digest.FromString("absent")
	_, err := s.Blob(d)
	wantErr(t, err, store.ErrNotFound)
	wantErr(t, s.Evict(d), store.ErrNotFound)
	p := mustPartial(t, s, d, 6)
	Fill(t, p, []byte("absent"), 0)
	_, err = s.Blob(d) // unfinished is not found
	wantErr(t, err, store.ErrNotFound)
}

func testBusy(t *testing.T, s Store) {
	d := digest.FromString("x")
	p := mustPartial(t, s, d, 1)
	_, err := s.Partial(d, 1)
	wantErr(t, err, store.ErrBusy)
	_, err = s.Partial(d, 2)
	wantErr(t, err, store.ErrBusy)
	if err := errors.Join(p.Close(), p.Close(), p.Drop()); err != nil {
		t.Fatal(err)
	}
	mustPartial(t, s, d, 1)
}

func testVisibility(t *testing.T, s Store) {
	content := Content(4, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	if p.Layout() != piece.NewLayout(size) {
		t.Fatal("layout differs")
	}
	Fill(t, p, content, 2)
	for i := -1; i <= 4; i++ {
		if p.Has(i) != (i == 2) || p.Claimed(i) {
			t.Errorf("Has(%d) = %v, Claimed %v", i, p.Has(i), p.Claimed(i))
		}
		sum, ok := p.Sum(i)
		if ok != (i == 2) || ok && sum != piece.SumOf(content[2*pieceLen:3*pieceLen]) {
			t.Errorf("Sum(%d) = %v, %v", i, sum, ok)
		}
		if has, err := p.Recheck(i); has != (i == 2) || err != nil {
			t.Errorf("Recheck(%d) = %v, %v", i, has, err)
		}
	}
}

func testPieceWriter(t *testing.T, s Store) {
	content := Content(5, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	for _, i := range []int{-1, 4} {
		if _, err := p.Piece(i); err == nil {
			t.Errorf("Piece(%d) succeeds", i)
		}
	}
	w, err := p.Piece(3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Piece(3); err == nil {
		t.Fatal("a second writer of the piece")
	}
	if n, err := w.Write(make([]byte, 1001)); n != 0 || err == nil {
		t.Fatalf("Write beyond the piece: %d, %v", n, err)
	}
	if n, err := w.Write(content[3*pieceLen : 3*pieceLen+10]); n != 10 || err != nil || w.Written() != 10 {
		t.Fatalf("Write: %d, %v; Written %d", n, err, w.Written())
	}
	if _, err := w.Commit(); err == nil || p.Has(3) {
		t.Fatal("Commit of an incomplete piece succeeds")
	}
	w.Discard() // after Commit: nothing
	if _, err := w.Write([]byte{1}); err == nil {
		t.Fatal("Write after Commit succeeds")
	}
	Fill(t, p, content, 3)
	if _, err := p.Piece(3); err == nil {
		t.Fatal("a writer of a visible piece")
	}
	w, err = p.Piece(0)
	if err != nil {
		t.Fatal(err)
	}
	w.Discard()
	w.Discard()
	Fill(t, p, content, 0)
}

func testWrongPiece(t *testing.T, s Store) {
	content := Content(6, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	want := piece.SumOf(content[3*pieceLen:])
	for _, flip := range []byte{1, 0} {
		b := bytes.Clone(content[3*pieceLen:])
		b[7] ^= flip
		w, err := p.Piece(3)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		err = w.CommitSum(want)
		var bad *store.SumError
		if errors.As(err, &bad) != (flip == 1) || p.Has(3) != (flip == 0) {
			t.Fatalf("CommitSum: %v, visible %v", err, p.Has(3))
		}
		if bad != nil && (bad.Index != 3 || bad.Want != want || bad.Got != piece.SumOf(b)) {
			t.Fatalf("error says %+v", bad)
		}
	}
}

func testWrongDigest(t *testing.T, s Store) {
	content := Content(7, size)
	d := digest.FromString("something else")
	p := mustPartial(t, s, d, size)
	Fill(t, p, content, 0, 1, 2, 3)
	var bad *store.DigestError
	if err := p.Verify(t.Context()); !errors.As(err, &bad) || bad.Want != d || bad.Got != digest.FromBytes(content) {
		t.Fatalf("Verify = %v", err)
	}
	if p.Commit() == nil {
		t.Fatal("a wrong blob was committed")
	}
	if err := p.Drop(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Blob(d)
	wantErr(t, err, store.ErrNotFound)
	if p := mustPartial(t, s, d, size); p.Claimed(0) {
		t.Fatal("a dropped piece is claimed")
	}
}

func testUnverifiedCommit(t *testing.T, s Store) {
	content := Content(8, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	Fill(t, p, content, 0, 1, 2, 3)
	if p.Commit() == nil {
		t.Fatal("committed without Verify")
	}
	if err := errors.Join(p.Verify(t.Context()), p.Verify(t.Context()), p.Commit(), p.Commit()); err != nil {
		t.Fatal(err)
	}
}

func testResume(t *testing.T, s Store) {
	content := Content(9, size)
	d := digest.FromBytes(content)
	p := mustPartial(t, s, d, size)
	Fill(t, p, content, 1, 3)
	p.Close()

	p = mustPartial(t, s, d, size)
	for i := range 4 {
		if p.Has(i) || p.Claimed(i) != (i == 1 || i == 3) {
			t.Fatalf("piece %d: visible %v, claimed %v", i, p.Has(i), p.Claimed(i))
		}
	}
	if ok, err := p.Recheck(1); !ok || err != nil || !p.Has(1) || p.Claimed(1) {
		t.Fatalf("Recheck = %v, %v", ok, err)
	}
	Fill(t, p, content, 3) // a claim is given up for a writer
	p.Close()

	p = mustPartial(t, s, d, size)
	Fill(t, p, content, 0, 2)
	for _, i := range []int{1, 3} {
		if ok, err := p.Recheck(i); !ok || err != nil {
			t.Fatalf("Recheck(%d) = %v, %v", i, ok, err)
		}
	}
	if err := errors.Join(p.Verify(t.Context()), p.Commit(), p.Close()); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, content)
}

func testResumeOtherSize(t *testing.T, s Store) {
	content := Content(10, size)
	d := digest.FromBytes(content)
	p := mustPartial(t, s, d, size+1)
	Fill(t, p, append(bytes.Clone(content), 0), 0, 1)
	p.Close()
	p = mustPartial(t, s, d, size)
	if p.Claimed(0) {
		t.Fatal("claims of another size are kept")
	}
	Fill(t, p, content, 0, 1, 2, 3)
	if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, content)
}

func testReadersOutlive(t *testing.T, s Store) {
	content := Content(11, size)
	d := digest.FromBytes(content)
	read := func(r PartialReader) {
		t.Helper()
		var got bytes.Buffer
		if n, err := r.CopyRange(&got, pieceLen-5, 10); err != nil || n != 10 {
			t.Fatalf("CopyRange = %d, %v", n, err)
		}
		if !bytes.Equal(got.Bytes(), content[pieceLen-5:pieceLen+5]) {
			t.Fatal("content differs")
		}
	}
	for _, commit := range []bool{false, true} {
		p := mustPartial(t, s, d, size)
		before, err := p.Reader()
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		Fill(t, p, content, 3, 2, 1, 0)
		read(before)
		if !commit {
			p.Drop()
			read(before)
			continue
		}
		if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
			t.Fatal(err)
		}
		read(before)
		after, err := p.Reader()
		if err != nil {
			t.Fatal(err)
		}
		defer after.Close()
		p.Close()
		if err := s.Evict(d); err != nil {
			t.Fatal(err)
		}
		read(before)
		read(after)
		for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, size + 1}, {size + 1, 0}} {
			if n, err := after.CopyRange(new(bytes.Buffer), r[0], r[1]); err == nil || n != 0 {
				t.Fatalf("%v: %d, %v", r, n, err)
			}
		}
	}
}

func testReadWhileEvicted(t *testing.T, s Store) {
	content := Content(12, size)
	d := Put(t, s, content)
	b, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := s.Evict(d); err != nil {
		t.Fatal(err)
	}
	_, err = s.Blob(d)
	wantErr(t, err, store.ErrNotFound)
	var got bytes.Buffer
	if _, err := b.CopyRange(&got, 0, size); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Fatalf("the read does not finish: %v", err)
	}
	wantBlob(t, s, Put(t, s, content), content)
}

func testVerifyBesideWriters(t *testing.T, s Store) {
	content := Content(13, 20*pieceLen-1)
	d := digest.FromBytes(content)
	p := mustPartial(t, s, d, len(content))
	result := make(chan error, 1)
	go func() { result <- p.Verify(t.Context()) }()
	order := all(p)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for _, i := range order[k*5 : k*5+5] {
				off, n := p.Layout().Span(i)
				w, err := p.Piece(i)
				if err != nil {
					t.Error(err)
					return
				}
				for at := off; at < off+n; at += 100_000 {
					if _, err := w.Write(content[at:min(at+100_000, off+n)]); err != nil {
						t.Error(err)
					}
				}
				if _, err := w.Commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		p.Close()
	}
	if err := errors.Join(<-result, p.Commit(), p.Close()); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, content)
}

func testVerifyEnds(t *testing.T, s Store) {
	content := Content(14, size)
	d := digest.FromBytes(content)
	p := mustPartial(t, s, d, size)
	Fill(t, p, content, 0, 2)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- p.Verify(ctx) }()
	cancel()
	wantErr(t, <-result, context.Canceled)
	go func() { result <- p.Verify(t.Context()) }()
	Fill(t, p, content, 1, 3)
	if err := <-result; err != nil {
		t.Fatal("a second Verify does not go on:", err)
	}
	p.Drop()

	p = mustPartial(t, s, d, size)
	go func() { result <- p.Verify(t.Context()) }()
	p.Close()
	wantErr(t, <-result, os.ErrClosed)
}

func testHashState(t *testing.T, s Store) {
	content := Content(15, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	off, h, err := p.HashState()
	if off != 0 || err != nil || !bytes.Equal(h.Sum(nil), sha256.New().Sum(nil)) {
		t.Fatalf("at the start: %d, %v", off, err)
	}
	Fill(t, p, content, 0, 1, 2, 3)
	if err := p.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Write(content) // the copy is apart from the original
	off, h2, err := p.HashState()
	if off != size || err != nil || !bytes.Equal(h.Sum(nil), h2.Sum(nil)) {
		t.Fatalf("at the end: %d, %v", off, err)
	}
}

func testClosed(t *testing.T, s Store) {
	content := Content(16, size)
	p := mustPartial(t, s, digest.FromBytes(content), size)
	Fill(t, p, content, 0, 1, 2)
	w, err := p.Piece(3)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Discard()
	p.Close()
	_, werr := w.Write(content[3*pieceLen:])
	_, perr := p.Piece(3)
	_, rerr := p.Reader()
	for _, err := range []error{werr, perr, rerr, p.Verify(t.Context()), p.Commit()} {
		wantErr(t, err, os.ErrClosed)
	}
}
