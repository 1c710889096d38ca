package storetest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) Store { return new(Memory) })
}

func TestMemoryFailsWrites(t *testing.T) {
	m, cause := new(Memory), errors.New("cause")
	content := Content(1, size)
	p := mustPartial(t, m, digest.FromBytes(content), size)
	m.FailWrites(1, cause)
	Fill(t, p, content, 0)
	w, err := p.Piece(1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(content[pieceLen : 2*pieceLen])
	wantErr(t, err, cause)
	wantErr(t, err, store.ErrUnavailable)
	wantErr(t, m.Health(), store.ErrUnavailable)
	w.Discard()
	m.FailWrites(0, nil)
	Fill(t, p, content, 1, 2, 3)
}

func TestMemoryRots(t *testing.T) {
	m := new(Memory)
	content := Content(2, size)
	d := m.Put(content)
	b, err := m.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Corrupt(d, 2*pieceLen+9) {
		t.Fatal("nothing to corrupt")
	}
	var got bytes.Buffer
	n, err := b.CopyRange(&got, 10, 2*pieceLen-10)
	if err != nil || n != 2*pieceLen-10 {
		t.Fatalf("sound pieces: %d, %v", n, err)
	}
	got.Reset()
	n, err = b.CopyRange(&got, 10, size-10)
	wantErr(t, err, store.ErrCorrupt)
	if n != 2*pieceLen-10 || !bytes.Equal(got.Bytes(), content[10:2*pieceLen]) {
		t.Fatalf("%d bytes were sent", n)
	}
	_, err = m.Blob(d)
	wantErr(t, err, store.ErrNotFound)
}
