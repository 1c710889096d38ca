package store

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A hit through a TCP connection on loopback, with the copy loop of a peer
// that throws the bytes away.
func BenchmarkCopyRangeWarm(b *testing.B) {
	s := bigStore(b)
	body := content(1, 256<<20)
	d := mustPut(b, s, body)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<20)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		blob, err := s.Blob(d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := blob.CopyRange(conn, 0, blob.Size()); err != nil {
			b.Fatal(err)
		}
		blob.Close()
	}
	b.ReportMetric(float64(s.Stats().RotChecks), "rotchecks")
}

// What looking costs beyond sending: the same with a writer that takes all.
func BenchmarkVouchWarm(b *testing.B) {
	s := bigStore(b)
	blob, err := s.Blob(mustPut(b, s, content(1, 256<<20)))
	if err != nil {
		b.Fatal(err)
	}
	defer blob.Close()
	b.SetBytes(blob.Size())
	for b.Loop() {
		for off := int64(0); off < blob.Size(); {
			if off, err = blob.vouch(off, blob.Size()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// The first read after a start, which hashes every piece.
func BenchmarkCopyRangeUnproven(b *testing.B) {
	s := bigStore(b)
	body := content(1, 64<<20)
	blob, err := s.Blob(mustPut(b, s, body))
	if err != nil {
		b.Fatal(err)
	}
	defer blob.Close()
	b.SetBytes(blob.Size())
	for b.Loop() {
		blob.e.proof.of = identity{}
		if _, err := blob.CopyRange(io.Discard, 0, blob.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

// Pieces of 256 KiB written in chunks of 64 KiB and hashed, without Verify.
func BenchmarkPieceWrite(b *testing.B) {
	s := bigStore(b)
	const size = 64 << 20
	body := content(1, size)
	d := digest.FromBytes(body)
	b.SetBytes(size)
	for b.Loop() {
		p, err := s.Partial(d, size)
		if err != nil {
			b.Fatal(err)
		}
		for i := range p.Layout().Count() {
			off, n := p.Layout().Span(i)
			w, err := p.Piece(i)
			if err != nil {
				b.Fatal(err)
			}
			for at := off; at < off+n; at += 64 << 10 {
				if _, err := w.Write(body[at : at+64<<10]); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := w.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		p.Drop()
	}
}

// A whole small blob, from Partial to a durable Commit.
func BenchmarkSmallBlob(b *testing.B) {
	s := bigStore(b)
	body := content(1, 4096)
	d := digest.FromBytes(body)
	for b.Loop() {
		p, err := s.Partial(d, int64(len(body)))
		if err != nil {
			b.Fatal(err)
		}
		if err := writePiece(p, body, 0); err != nil {
			b.Fatal(err)
		}
		if err := p.Verify(context.Background()); err != nil {
			b.Fatal(err)
		}
		if err := p.Commit(); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}
