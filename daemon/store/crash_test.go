package store

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

var crashSeed = flag.Uint64("crashseed", uint64(time.Now().UnixNano()), "seed of what a loss of power leaves")

const testPiece = piece.MinLength

// content is deterministic: parent and child of the kill test must agree.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// Small, because each case has a disk in memory of its own.
var (
	keptBlob    = content(1, 1000) // must survive whatever happens later
	evictedBlob = content(2, 2000) // makes room for newBlob
	newBlob     = content(3, testPiece+500)
	newDigest   = digest.FromBytes(newBlob)
)

// crashQuota has room for keptBlob and one of the others.
const crashQuota = testPiece + 2000

func quiet(dir string) Config {
	return Config{Dir: dir, MaxBytes: crashQuota, Logger: slog.New(slog.DiscardHandler)}
}

// put stores b in scattered order, piece by piece in two writes each, and
// returns which pieces were committed before an error.
func put(s *Store, b []byte) (pieces []int, err error) {
	p, err := s.Partial(digest.FromBytes(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	for _, i := range []int{2, 0, 1} {
		if i >= p.Layout().Count() || p.Has(i) {
			continue
		}
		if p.Claimed(i) {
			if ok, err := p.Recheck(i); err != nil {
				return pieces, err
			} else if ok {
				pieces = append(pieces, i)
				continue
			}
		}
		off, n := p.Layout().Span(i)
		w, err := p.Piece(i)
		if err != nil {
			return pieces, err
		}
		defer w.Discard()
		for _, half := range [][]byte{b[off : off+n/2], b[off+n/2 : off+n]} {
			if _, err := w.Write(half); err != nil {
				return pieces, err
			}
		}
		if _, err := w.Commit(); err != nil {
			return pieces, err
		}
		pieces = append(pieces, i)
	}
	if err := p.Verify(context.Background()); err != nil {
		return pieces, err
	}
	return pieces, p.Commit()
}

// get reads the blob of b and insists that what comes is right.
func get(s *Store, b []byte) error {
	blob, err := s.Blob(digest.FromBytes(b))
	if err != nil {
		return err
	}
	defer blob.Close()
	var got bytes.Buffer
	_, err = blob.CopyRange(&got, 0, blob.Size())
	if !bytes.HasPrefix(b, got.Bytes()) {
		return errors.New("WRONG BYTES SERVED")
	}
	if err == nil && got.Len() != len(b) {
		return errors.New("SHORT BLOB SERVED")
	}
	return err
}

// prepare fills a disk with what was there before the run that crashes.
func prepare(t *testing.T, fsys fileSystem, dir string) {
	t.Helper()
	s := mustOpen(t, fsys, dir)
	for _, b := range [][]byte{evictedBlob, keptBlob} {
		if _, err := put(s, b); err != nil {
			t.Fatal(err)
		}
	}
	// Both were made within one tick of the file system's clock.
	if err := fsys.touch(s.blobPath(digest.FromBytes(evictedBlob))+sidecarSuffix, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func mustOpen(t *testing.T, fsys fileSystem, dir string) *Store {
	t.Helper()
	s, err := openOn(fsys, quiet(dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkAfter opens what a crash left. The blob newBlob must be complete if
// done; the pieces must be there, claimed, unless it is complete.
func checkAfter(t *testing.T, fsys fileSystem, dir string, pieces []int, done bool) {
	t.Helper()
	// A blob never has its name before its sidecar has: it could not be kept.
	path := (&Store{dir: dir}).blobPath(newDigest)
	if _, err := fsys.lstat(path); err == nil {
		if _, err := fsys.lstat(path + sidecarSuffix); err != nil {
			t.Fatal("complete, but without its sums:", err)
		}
	}
	s := mustOpen(t, fsys, dir)
	if err := get(s, evictedBlob); err != nil && (!errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt)) {
		t.Fatal("the blob that makes room:", err)
	}
	if err := get(s, keptBlob); err != nil {
		t.Fatal("a finished blob:", err)
	}
	err := get(s, newBlob)
	if err != nil && (done || !errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt)) {
		t.Fatal("the new blob:", err)
	}
	if err != nil {
		checkPartial(t, s, pieces)
		if _, err := put(s, newBlob); err != nil {
			t.Fatal("finishing it:", err)
		}
	}
	if err := errors.Join(get(s, newBlob), get(s, keptBlob)); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Open != 0 || st.Partials != 0 || st.Corruptions != 0 {
		t.Fatalf("at the end: %+v", st)
	}
	s.Close()

	// One more start, after which nothing stands there but what the index
	// knows.
	s = mustOpen(t, fsys, dir)
	defer s.Close()
	if err := errors.Join(get(s, newBlob), get(s, keptBlob)); err != nil {
		t.Fatal("after another start:", err)
	}
	if files := filesUnder(t, fsys, dir); len(files) != 1+2*s.Stats().Blobs {
		t.Fatalf("files left: %s; %+v", files, s.Stats())
	}
}

// checkPartial looks at the unfinished blob as it was left.
func checkPartial(t *testing.T, s *Store, pieces []int) {
	t.Helper()
	p, err := s.Partial(newDigest, int64(len(newBlob)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range p.Layout().Count() {
		if p.Has(i) {
			t.Fatalf("piece %d is visible unverified", i)
		}
		must := slices.Contains(pieces, i)
		ok, err := p.Recheck(i)
		if err != nil || must && !ok {
			t.Fatalf("piece %d was committed; recheck says %v, %v", i, ok, err)
		}
		if !ok {
			continue
		}
		var got bytes.Buffer
		r, err := p.Reader()
		if err != nil {
			t.Fatal(err)
		}
		off, n := p.Layout().Span(i)
		if _, err := r.CopyRange(&got, off, n); err != nil || !bytes.Equal(got.Bytes(), newBlob[off:off+n]) {
			t.Fatalf("piece %d is wrong (%v)", i, err)
		}
		r.Close()
	}
}

// filesUnder returns the files under dir.
func filesUnder(t *testing.T, fsys fileSystem, dir string) (files []string) {
	t.Helper()
	entries, err := fsys.readDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := filepath.Join(dir, e.Name()); e.IsDir() {
			files = append(files, filesUnder(t, fsys, name)...)
		} else {
			files = append(files, name)
		}
	}
	return files
}

// run is the run that crashes or meets faults: start, download, read, stop.
func run(fsys fileSystem, dir string) (pieces []int, done bool, err error) {
	s, err := openOn(fsys, quiet(dir))
	if err != nil {
		return nil, false, err
	}
	defer s.Close()
	pieces, err = put(s, newBlob)
	if err != nil {
		return pieces, false, err
	}
	return pieces, true, get(s, newBlob)
}

// The process dies, or the power fails, before each call in turn.
func TestCrashAtEveryCall(t *testing.T) {
	t.Logf("-crashseed=%d", *crashSeed)
	losses := 6
	if testing.Short() {
		losses = 1
	}
	calls := 0
	for n := 0; ; n++ {
		var err error
		// Loss 0 is the death of the process: the disk keeps all.
		for loss := range 1 + losses {
			mem := newMemFS()
			prepare(t, mem, "/data")
			h := &hookFS{fileSystem: mem, hook: crashAt(n)}
			var pieces []int
			var done bool
			pieces, done, err = run(h, "/data")
			if err != nil && !errors.Is(err, errCrashed) {
				t.Fatalf("call %d: %v", n, err)
			}
			h.die()
			after := mem
			if loss > 0 {
				after, pieces = mem.powerLoss(rand.New(rand.NewPCG(*crashSeed, uint64(n*100+loss)))), nil
			}
			if ok := t.Run(fmt.Sprintf("%d/%d", n, loss), func(t *testing.T) { checkAfter(t, after, "/data", pieces, done) }); !ok {
				return
			}
		}
		if err == nil {
			calls = n
			break
		}
	}
	t.Logf("%d calls, %d losses of power each", calls, losses)
	if calls < 45 {
		t.Fatalf("only %d calls passed the seam", calls)
	}
}

// Every call fails in turn, once or from then on.
func TestFaultAtEveryCall(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
		for _, forever := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,forever=%v", errno, forever), func(t *testing.T) {
				for n := 0; faultAt(t, n, errno, forever); n++ {
				}
			})
		}
	}
}

// faultAt reports whether there is a call n.
func faultAt(t *testing.T, n int, errno syscall.Errno, forever bool) bool {
	mem := newMemFS()
	prepare(t, mem, "/data")
	once, calls := failNth(n, errno)
	var op string
	h := &hookFS{fileSystem: mem, hook: func(o, name string) error {
		err := once(o, name)
		if forever && calls.Load() > int64(n) && strings.Contains("open mkdir rename remove touch syncdir pwrite ftruncate fsync", o) && !(o == "open" && errno != syscall.EIO) {
			err = &os.PathError{Op: o, Path: name, Err: errno}
		}
		if err != nil && op == "" {
			op = o + " " + name
		}
		return err
	}}
	s, err := openOn(h, quiet("/data"))
	if err == nil {
		_, err = put(s, newBlob)
		// The sentinels of reading are no errors of writing.
		if err != nil && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, errno)) {
			t.Fatalf("call %d (%s): put: %v", n, op, err)
		}
		for _, b := range [][]byte{newBlob, evictedBlob, keptBlob} {
			if err := get(s, b); err != nil && !errors.Is(err, errno) && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("call %d (%s): get: %v", n, op, err)
			}
		}
		if st := s.Stats(); st.Open != 0 {
			t.Fatalf("call %d (%s): pinned: %+v", n, op, st)
		}
		if len(s.index.partials) > 1 || s.index.used > crashQuota || s.index.used < 0 {
			t.Fatalf("call %d (%s): %+v", n, op, s.Stats())
		}
		s.Close()
	} else if !errors.Is(err, errno) {
		t.Fatalf("call %d (%s): open: %v", n, op, err)
	}
	if left := h.handles.Load(); left != 0 {
		t.Fatalf("call %d (%s): %d descriptors leaked", n, op, left)
	}
	if len(mem.locked) != 0 {
		t.Fatalf("call %d (%s): lock leaked", n, op)
	}

	// The disk is well again.
	s = mustOpen(t, mem, "/data")
	defer s.Close()
	if _, err := put(s, newBlob); err != nil {
		t.Fatalf("call %d (%s): afterwards: %v", n, op, err)
	}
	if err := get(s, newBlob); err != nil {
		t.Fatalf("call %d (%s): afterwards: %v", n, op, err)
	}
	return calls.Load() > int64(n)
}
