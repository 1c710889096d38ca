package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/piece"
)

// benchSize is of the blob that benchmarks move, in bytes: 256 pieces of
// 1 MiB.
const benchSize = 256 << 20

// file is a Content as the store is one: sendfile where the socket can.
type file struct{ path string }

func (f file) Reader() (Reader, error) {
	r, err := os.Open(f.path)
	return fileReader{r}, err
}

type fileReader struct{ *os.File }

func (f fileReader) CopyRange(w io.Writer, off, n int64) (int64, error) {
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, &io.LimitedReader{R: f.File, N: n})
}

func benchFile(b *testing.B) (path string, src *content) {
	b.Helper()
	src = newContent(benchSize)
	path = filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(path, src.b, 0o600); err != nil {
		b.Fatal(err)
	}
	return path, src
}

// cpu returns the processor time of this process, which is both ends.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs f, which moves the blob once, and reports CPU seconds per GiB.
func measure(b *testing.B, f func()) {
	b.Helper()
	f() // connections are warm, files in memory
	b.SetBytes(benchSize)
	before := cpu()
	for b.Loop() {
		f()
	}
	moved := float64(b.N) * benchSize / (1 << 30)
	b.ReportMetric((cpu()-before).Seconds()/moved, "cpu-s/GiB")
}

// hashes is what a receiver does at least: the digest of the whole, the sum
// of each piece.
type hashes struct {
	whole hash.Hash
	piece hash.Hash
}

func (h hashes) Write(p []byte) (int, error) {
	h.whole.Write(p)
	h.piece.Write(p)
	return len(p), nil
}

// BenchmarkFloor is what row 8 of the figures compares with: a server that
// sends a file, a client that hashes it.
func BenchmarkFloor(b *testing.B) {
	path, src := benchFile(b)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			panic(err)
		}
		defer f.Close()
		http.ServeContent(w, r, "", time.Time{}, f)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	buf := make([]byte, chunk)
	measure(b, func() {
		resp, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		h := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{resp.Body}, buf); err != nil {
			b.Fatal(err)
		}
		if digest.NewDigest(digest.SHA256, h) != src.digest {
			b.Fatal("wrong digest")
		}
	})
}

// BenchmarkHashes is the receiver's hashing alone.
func BenchmarkHashes(b *testing.B) {
	buf := make([]byte, chunk)
	for _, kind := range []struct {
		name string
		new  func() hash.Hash
	}{{"sha256", sha256.New}, {"blake3", piece.NewHash}} {
		b.Run(kind.name, func(b *testing.B) {
			measure(b, func() {
				h := kind.new()
				for range benchSize / chunk {
					h.Write(buf)
				}
			})
		})
	}
}

// BenchmarkExchange moves a blob from peer to peer and hashes it twice, with
// the given number of pieces asked for at once, for blocks of each size.
func BenchmarkExchange(b *testing.B) {
	path, src := benchFile(b)
	run := func(name string, depth int, cfg Config, both bool) {
		b.Run(name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			seed := newEndpoint(b, Config{TLS: cfg.TLS})
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go seed.Serve(ctx, l)
			blob := src.blob(nil, src.all()...)
			blob.Content = file{path}
			open(b, seed, blob)
			c := dial(b, open(b, newEndpoint(b, cfg), src.blob(nil)), l.Addr().String(), "")
			sums := make([]hash.Hash, src.layout.Count())
			measure(b, func() {
				whole := sha256.New()
				fetchAll(b, c, src.layout.Count(), depth, func(i int) io.Writer {
					if !both {
						return whole
					}
					sums[i] = piece.NewHash()
					return hashes{whole, sums[i]}
				}, func(i int) error {
					if both && piece.Sum(sums[i].Sum(nil)) != blob.Pieces[i].Sum {
						return errors.New("wrong sum")
					}
					return nil
				})
				if digest.NewDigest(digest.SHA256, whole) != src.digest {
					b.Fatal("wrong digest")
				}
			})
		})
	}
	for _, block := range []int{16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 8 << 20} {
		run(fmt.Sprintf("block=%dKiB", block>>10), 4, Config{Block: block}, true)
	}
	for _, depth := range []int{1, 2, 8, 16} {
		run(fmt.Sprintf("pieces=%d", depth), depth, Config{}, true)
	}
	// What is left of the difference to the floor without BLAKE3.
	run("sha256-only", 4, Config{}, false)
}

// fetchAll gets pieces in order, depth of them asked for at once.
func fetchAll(b *testing.B, c *Conn, n, depth int, sink func(i int) io.Writer, done func(i int) error) {
	b.Helper()
	var flying []*Transfer
	for i := 0; i < n || len(flying) > 0; {
		if i < n && len(flying) < depth {
			t, err := c.Request(i, sink(i))
			if err != nil {
				b.Fatal(err)
			}
			flying = append(flying, t)
			i++
			continue
		}
		t := flying[0]
		flying = flying[1:]
		<-t.Done()
		if err := t.Err(); err != nil {
			b.Fatal(err)
		}
		if err := done(t.Index()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStores is the whole way: from a store into another, with the
// pieces written and journalled and the digest verified.
func BenchmarkStores(b *testing.B) {
	_, src := benchFile(b)
	from, to := openStore(b), openStore(b)
	fill(b, from, src)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	seed, leech := newEndpoint(b, Config{}), newEndpoint(b, Config{})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go seed.Serve(ctx, l)
	blob := src.blob(nil, src.all()...)
	blob.Content = storeContent{from, src.digest}
	open(b, seed, blob)
	c := dial(b, open(b, leech, src.blob(nil)), l.Addr().String(), "")
	measure(b, func() {
		p, err := to.Partial(src.digest, benchSize)
		if err != nil {
			b.Fatal(err)
		}
		verified := make(chan error, 1)
		go func() { verified <- p.Verify(b.Context()) }()
		writers := make(map[int]*store.PieceWriter)
		fetchAll(b, c, src.layout.Count(), 4, func(i int) io.Writer {
			writers[i] = must(p.Piece(i))
			return writers[i]
		}, func(i int) error { return writers[i].CommitSum(blob.Pieces[i].Sum) })
		if err := <-verified; err != nil {
			b.Fatal(err)
		}
		if err := p.Drop(); err != nil {
			b.Fatal(err)
		}
	})
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Dir: filepath.Join(t.TempDir(), "store"), MaxBytes: 4 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fill puts a blob into a store.
func fill(t testing.TB, s *store.Store, src *content) {
	t.Helper()
	p, err := s.Partial(src.digest, int64(len(src.b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range src.layout.Count() {
		w := must(p.Piece(i))
		must(io.Copy(struct{ io.Writer }{w}, bytes.NewReader(src.piece(i))))
		must(w.Commit())
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
}

// storeContent reads a complete blob of a store.
type storeContent struct {
	s *store.Store
	d digest.Digest
}

func (c storeContent) Reader() (Reader, error) { return c.s.Blob(c.d) }
