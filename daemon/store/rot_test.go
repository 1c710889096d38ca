package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// bigStore opens a store on a real disk without a quota to speak of.
func bigStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "data"), MaxBytes: 1 << 30, Logger: quiet("").Logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	s.Close()
	s, err := Open(Config{Dir: s.dir, MaxBytes: 1 << 30, Logger: s.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustPut(t testing.TB, s *Store, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	p, err := s.Partial(d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range p.Layout().Count() {
		off, n := p.Layout().Span(i)
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b[off : off+n]); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
		t.Fatal(err)
	}
	return d
}

func writePiece(p *Partial, b []byte, i int) error {
	w, err := p.Piece(i)
	if err != nil {
		return err
	}
	defer w.Discard()
	off, n := p.Layout().Span(i)
	if _, err := w.Write(b[off : off+n]); err != nil {
		return err
	}
	_, err = w.Commit()
	return err
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// A bit that flips while the blob, verified, is made durable is found as well.
func TestRotWhileCommitting(t *testing.T) {
	b := content(7, 3*testPiece+100)
	h := &hookFS{fileSystem: osFS{}, hook: func(string, string) error { return nil }}
	s, err := openOn(h, Config{Dir: filepath.Join(t.TempDir(), "data"), MaxBytes: 1 << 30, Logger: quiet("").Logger})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	partial := s.partialPath(digest.FromBytes(b))
	flips := 0
	h.hook = func(op, name string) error {
		if op == "fsync" && name == partial && flips == 0 {
			flips++
			flip(t, name, testPiece+50)
			// Where the clock of files ticks slowly, the last write may be as old.
			later := time.Now().Add(time.Second)
			return os.Chtimes(name, later, later)
		}
		return nil
	}
	d := mustPut(t, s, b)
	blob, err := s.Blob(d)
	if err != nil || flips != 1 {
		t.Fatal(err, flips)
	}
	defer blob.Close()
	var got bytes.Buffer
	if n, err := blob.CopyRange(&got, 0, blob.Size()); !errors.Is(err, ErrCorrupt) || !bytes.HasPrefix(b, got.Bytes()) {
		t.Errorf("CopyRange = %d, %v", n, err)
	}
}

// A bit that flips while its blob is coming, after the bytes around it were hashed
// in order, is sent to nobody.
func TestRotWhileComing(t *testing.T) {
	b := content(8, 4*testPiece)
	d := digest.FromBytes(b)
	begin := func(t *testing.T) (*Store, *Partial, <-chan error) {
		s := bigStore(t)
		p, err := s.Partial(d, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		verified := make(chan error, 1)
		go func() { verified <- p.Verify(t.Context()) }()
		for i := range 3 {
			if err := writePiece(p, b, i); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // Verify has read the three
		time.Sleep(2 * moment)
		flip(t, s.partialPath(d), testPiece+9)
		return s, p, verified
	}
	t.Run("to another reader", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, p, verified := begin(t)
			r, err := p.Reader()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var got bytes.Buffer
			if n, err := r.CopyRange(&got, 0, 3*testPiece); !errors.Is(err, ErrCorrupt) || n != testPiece || !bytes.Equal(got.Bytes(), b[:testPiece]) {
				t.Errorf("CopyRange = %d, %v", n, err)
			}
			if err := errors.Join(writePiece(p, b, 3), <-verified); err != nil {
				t.Fatal(err)
			}
			if err := p.Commit(); !errors.Is(err, ErrCorrupt) {
				t.Errorf("what is known to be rotten is kept: %v", err)
			}
			if err := p.Close(); err != nil || s.Stats().Corruptions != 1 {
				t.Fatal(err, s.Stats())
			}
			if p, err = s.Partial(d, int64(len(b))); err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				if right, err := p.Recheck(i); err != nil || right != (i != 1) {
					t.Fatalf("piece %d: right %v, %v", i, right, err)
				}
			}
			if err := errors.Join(writePiece(p, b, 1), p.Verify(t.Context()), p.Commit(), p.Close()); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("from the complete blob", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, p, verified := begin(t)
			if err := errors.Join(writePiece(p, b, 3), <-verified, p.Commit(), p.Close()); err != nil {
				t.Fatal(err)
			}
			blob, err := s.Blob(d)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			var got bytes.Buffer
			if n, err := blob.CopyRange(&got, 0, blob.Size()); !errors.Is(err, ErrCorrupt) || !bytes.HasPrefix(b, got.Bytes()) {
				t.Errorf("CopyRange = %d, %v", n, err)
			}
		})
	})
}

// A bit that flips as soon as all of a blob has come and was verified is found
// too, however short a time ago its piece was hashed: the file's time tells.
func TestRotAfterVerify(t *testing.T) {
	b := content(10, 3*testPiece)
	d := digest.FromBytes(b)
	s := bigStore(t)
	p, err := s.Partial(d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := writePiece(p, b, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := p.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.CopyRange(io.Discard, 0, int64(len(b))); err != nil {
		t.Fatalf("nothing has changed yet: %v", err)
	}
	path := s.partialPath(d)
	flip(t, path, testPiece+9)
	// Where the clock of files ticks slowly, the last write may be as old.
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if n, err := r.CopyRange(&got, 0, int64(len(b))); !errors.Is(err, ErrCorrupt) || n != testPiece || !bytes.Equal(got.Bytes(), b[:testPiece]) {
		t.Errorf("CopyRange = %d, %v", n, err)
	}
	if err := p.Commit(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("what is known to be rotten is kept: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	finish(t, s, b, 1)
}

// Of a blob that rots before it is hashed in order, no sender is to blame: what is
// left of it is kept, and the rest comes again.
func TestRotBeforeVerify(t *testing.T) {
	b := content(9, 3*testPiece)
	d := digest.FromBytes(b)
	s := bigStore(t)
	p, err := s.Partial(d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := writePiece(p, b, i); err != nil {
			t.Fatal(err)
		}
	}
	flip(t, s.partialPath(d), 2*testPiece+9)
	if err := p.Verify(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("Verify = %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	finish(t, s, b, 2)
}

// A flipped bit in any piece is found before the piece is served, with a
// handle open, without one, and by the next process.
func TestRotInEachPiece(t *testing.T) {
	b := content(7, 3*testPiece+100)
	for i := range 4 {
		for _, when := range []string{"handle open", "closed", "restarted"} {
			t.Run(fmt.Sprintf("%d, %s", i, when), func(t *testing.T) {
				s := bigStore(t)
				d := mustPut(t, s, b)
				if err := get(s, b); err != nil {
					t.Fatal(err)
				}
				if when == "restarted" {
					s = reopen(t, s)
				}
				var blob *Blob
				var err error
				if when == "handle open" {
					if blob, err = s.Blob(d); err != nil {
						t.Fatal(err)
					}
				}
				path := s.blobPath(d)
				flip(t, path, int64(i)*testPiece+50)
				if blob == nil {
					if blob, err = s.Blob(d); err != nil {
						t.Fatal(err)
					}
				}
				defer blob.Close()
				other, err := s.Blob(d)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()

				var got bytes.Buffer
				n, err := blob.CopyRange(&got, 10, blob.Size()-10)
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("CopyRange = %d, %v", n, err)
				}
				if want := max(0, int64(i)*testPiece-10); n != want || !bytes.Equal(got.Bytes(), b[10:10+want]) {
					t.Fatalf("%d bytes were served, want the %d before the rot", n, want)
				}
				if _, err := s.Blob(d); !errors.Is(err, ErrNotFound) {
					t.Fatalf("after it: %v", err)
				}
				for _, p := range []string{path, path + sidecarSuffix} {
					if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
						t.Fatalf("%s is still there", p)
					}
				}
				if n, err := other.CopyRange(&got, int64(i)*testPiece, 1); n != 0 || !errors.Is(err, ErrCorrupt) {
					t.Fatalf("another handle: %d, %v", n, err)
				}
				if st := s.Stats(); st.Corruptions != 1 || st.UsedBytes != 0 || st.Blobs != 0 {
					t.Fatalf("%+v", st)
				}
				mustPut(t, s, b)
				if err := get(s, b); err != nil {
					t.Fatal("fetched again:", err)
				}
			})
		}
	}
}

// Rot that changes no time shows when the pages come from the disk again.
func TestRotBehindTheCache(t *testing.T) {
	mem := newMemFS()
	s, err := openOn(mem, Config{Dir: "/data", MaxBytes: 1 << 30, Logger: quiet("").Logger})
	if err != nil {
		t.Fatal(err)
	}
	b := content(8, 2*testPiece)
	d := mustPut(t, s, b)
	blob, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	inode := blob.f.(*memFile).inode
	inode.data[testPiece+3] ^= 1
	mem.notInRAM[inode.ino] = true
	var got bytes.Buffer
	if n, err := blob.CopyRange(&got, 0, 2*testPiece); n != testPiece || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("CopyRange = %d, %v", n, err)
	}
}

// What stands in the place of a blob's files is found out.
func TestReplacedFiles(t *testing.T) {
	b := content(9, testPiece+100)
	for name, damage := range map[string]func(t *testing.T, path string) error{
		"truncated": func(_ *testing.T, path string) error { return os.Truncate(path, 5) },
		"empty":     func(_ *testing.T, path string) error { return os.Truncate(path, 0) },
		"longer":    func(_ *testing.T, path string) error { return os.Truncate(path, testPiece*5) },
		"gone":      func(_ *testing.T, path string) error { return os.Remove(path) },
		"directory": func(_ *testing.T, path string) error {
			return errors.Join(os.Remove(path), os.MkdirAll(path+"/x", 0o700))
		},
		"symlink": func(_ *testing.T, path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
		},
		"sidecar rotten":    func(t *testing.T, path string) error { flip(t, path+sidecarSuffix, 30); return nil },
		"sidecar header":    func(t *testing.T, path string) error { flip(t, path+sidecarSuffix, 9); return nil },
		"sidecar truncated": func(_ *testing.T, path string) error { return os.Truncate(path+sidecarSuffix, 40) },
		"sidecar gone":      func(_ *testing.T, path string) error { return os.Remove(path + sidecarSuffix) },
		"sidecar directory": func(_ *testing.T, path string) error {
			return errors.Join(os.Remove(path+sidecarSuffix), os.Mkdir(path+sidecarSuffix, 0o700))
		},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				s := bigStore(t)
				d := mustPut(t, s, b)
				s = reopen(t, s) // so that the sums are not in memory
				if err := damage(t, s.blobPath(d)); err != nil {
					t.Fatal(err)
				}
				if restart {
					s = reopen(t, s)
				}
				if err := get(s, b); !errors.Is(err, ErrNotFound) {
					t.Fatalf("the blob: %v", err)
				}
				if st := s.Stats(); st.Blobs != 0 || st.UsedBytes != 0 || st.Open != 0 {
					t.Fatalf("%+v", st)
				}
				mustPut(t, s, b)
				if err := errors.Join(get(s, b), get(reopen(t, s), b)); err != nil {
					t.Fatal("fetched again:", err)
				}
			})
		}
	}
}

// A file that is truncated under an open handle ends the read as corrupt.
func TestTruncatedUnderHandle(t *testing.T) {
	s := bigStore(t)
	b := content(10, 2*testPiece)
	d := mustPut(t, s, b)
	blob, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if err := os.Truncate(s.blobPath(d), testPiece+1); err != nil {
		t.Fatal(err)
	}
	if n, err := blob.CopyRange(io.Discard, 0, blob.Size()); n != 0 || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("CopyRange = %d, %v", n, err)
	}
}

// Rot in an unfinished blob or its journal costs the pieces, not more.
func TestRotInPartial(t *testing.T) {
	b := content(11, 3*testPiece)
	d := digest.FromBytes(b)
	for at := range int64(journalHeader + 3*journalRecord) {
		if at%7 != 0 && at > 20 {
			continue // a sample
		}
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			s := bigStore(t)
			p := leavePartial(t, s, b)
			flip(t, p+journalSuffix, at)
			if at%2 == 0 {
				s = reopen(t, s)
			}
			finish(t, s, b, -1)
		})
	}
	for i := range 3 {
		t.Run(fmt.Sprintf("data %d", i), func(t *testing.T) {
			s := bigStore(t)
			flip(t, leavePartial(t, s, b), int64(i)*testPiece+1)
			finish(t, reopen(t, s), b, i)
		})
	}
	for name, damage := range map[string]func(path string) error{
		"data truncated": func(path string) error { return os.Truncate(path, 5) },
		"data gone":      os.Remove,
		"data directory": func(path string) error { return errors.Join(os.Remove(path), os.MkdirAll(path+"/x", 0o700)) },
		"journal torn":   func(path string) error { return os.Truncate(path+journalSuffix, journalHeader+journalRecord+5) },
		"journal empty":  func(path string) error { return os.Truncate(path+journalSuffix, 0) },
		"journal gone":   func(path string) error { return os.Remove(path + journalSuffix) },
		"journal directory": func(path string) error {
			return errors.Join(os.Remove(path+journalSuffix), os.Mkdir(path+journalSuffix, 0o700))
		},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				s := bigStore(t)
				if err := damage(leavePartial(t, s, b)); err != nil {
					t.Fatal(err)
				}
				if restart {
					s = reopen(t, s)
				}
				finish(t, s, b, -1)
				if _, err := s.Blob(d); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// leavePartial writes all three pieces of b, leaves the blob unfinished, and
// returns its path.
func leavePartial(t *testing.T, s *Store, b []byte) string {
	t.Helper()
	p, err := s.Partial(digest.FromBytes(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b[i*testPiece : (i+1)*testPiece])
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	return p.path
}

// finish resumes what is left of b and completes it. If rotten is not
// negative, that piece alone must fail its recheck.
func finish(t *testing.T, s *Store, b []byte, rotten int) {
	t.Helper()
	p, err := s.Partial(digest.FromBytes(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 3 {
		claimed := p.Claimed(i)
		ok, err := p.Recheck(i)
		if err != nil || rotten >= 0 && (!claimed || ok != (i != rotten)) {
			t.Fatalf("piece %d: claimed %v, recheck %v, %v", i, claimed, ok, err)
		}
		if ok {
			continue
		}
		w, err := p.Piece(i)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b[i*testPiece : (i+1)*testPiece])
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
		t.Fatal(err)
	}
	if err := get(s, b); err != nil {
		t.Fatal(err)
	}
}

// fileProbe is a writer that sees what CopyRange hands it.
type fileProbe struct {
	bytes.Buffer
	sources []string
}

func (p *fileProbe) ReadFrom(r io.Reader) (int64, error) {
	lr, ok := r.(*io.LimitedReader)
	if ok {
		p.sources = append(p.sources, fmt.Sprintf("%T over %T", lr, lr.R))
	} else {
		p.sources = append(p.sources, fmt.Sprintf("%T", r))
	}
	return p.Buffer.ReadFrom(r)
}

// A hit goes by sendfile: net.TCPConn.ReadFrom uses it for a LimitedReader
// over an *os.File and nothing else. All pieces in a window go in one.
func TestHitUsesSendfile(t *testing.T) {
	s := bigStore(t)
	b := content(12, 20*testPiece)
	blob, err := s.Blob(mustPut(t, s, b))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	var p fileProbe
	if n, err := blob.CopyRange(&p, 7, blob.Size()-7); err != nil || n != blob.Size()-7 {
		t.Fatalf("CopyRange = %d, %v", n, err)
	}
	if len(p.sources) != 1 || p.sources[0] != "*io.LimitedReader over *os.File" {
		t.Fatalf("the writer was given %q", p.sources)
	}
	if !bytes.Equal(p.Bytes(), b[7:]) {
		t.Fatal("content differs")
	}
}

// The same through net/http, where ResponseWriter passes the file on.
func TestHitOverHTTP(t *testing.T) {
	s := bigStore(t)
	b := content(13, 3*testPiece+9)
	d := mustPut(t, s, b)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		blob, err := s.Blob(d)
		if err != nil {
			t.Error(err)
			return
		}
		defer blob.Close()
		w.Header().Set("Content-Length", fmt.Sprint(blob.Size()))
		w.Header().Set("Content-Type", "application/octet-stream")
		if _, err := blob.CopyRange(w, 0, blob.Size()); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	srv.Client().CloseIdleConnections()
}

// CopyRange to a real connection, whose peer goes away: the error is the
// connection's, and the blob stays.
func TestReaderGoesAway(t *testing.T) {
	s := bigStore(t)
	b := content(15, 40*testPiece)
	d := mustPut(t, s, b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	blob, err := s.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if _, err := blob.CopyRange(server, 0, blob.Size()); err == nil || errors.Is(err, ErrCorrupt) {
		t.Fatalf("CopyRange = %v", err)
	}
	if err := get(s, b); err != nil {
		t.Fatal(err)
	}
}

// Where the system cannot say what is in memory, proof lasts a minute.
func TestProofWithoutResidency(t *testing.T) {
	p := newProof(2 * testPiece)
	all := piece.NewSet(2)
	all.Add(0)
	all.Add(1)
	p.prove(identity{ino: 1}, make([]piece.Sum, 2), all)
	if n := p.trusted(blindFile{}, identity{ino: 1}, 0, 2); n != 2 {
		t.Fatalf("fresh: %d", n)
	}
	p.since = p.since.Add(-proofLasts)
	if n := p.trusted(blindFile{}, identity{ino: 1}, 0, 2); n != 0 {
		t.Fatalf("after a minute: %d", n)
	}
}

type blindFile struct{ file }

func (blindFile) resident(int64, int64) (int64, bool) { return 0, false }
