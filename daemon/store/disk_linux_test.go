package store

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// asRoot skips a test that cannot do without root, but not in CI.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, which CI has to give")
	}
	t.Skip("needs root to mount, chown or remount")
}

// tmpfs mounts a file system of size bytes and returns its mount point.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	asRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounting a tmpfs:", err)
		}
		t.Skip("mounting a tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openAt(t *testing.T, dir string, max int64) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, MaxBytes: max, Logger: quiet("").Logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A tenth of the disk stays free: blobs are evicted for it, and what is
// larger is refused.
func TestSmallDisk(t *testing.T) {
	s := openAt(t, filepath.Join(tmpfs(t, "8m"), "data"), 1<<30)
	if _, err := s.Partial(digest.FromString("large"), 15<<19); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("7.5 MiB of 8: %v", err)
	}
	if err := s.Health(); err != nil {
		t.Fatal("one large blob is no trouble:", err)
	}
	var blobs [][]byte
	for i := range 8 {
		blobs = append(blobs, content(byte(20+i), 2<<20))
		mustPut(t, s, blobs[i])
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Bavail*freeShare < st.Blocks {
			t.Fatalf("after %d blobs %d of %d blocks are free", i+1, st.Bavail, st.Blocks)
		}
	}
	if st := s.Stats(); st.Blobs != 3 || st.Evictions != 5 {
		t.Fatalf("%+v", st)
	}
	for _, b := range blobs[5:] {
		if err := get(s, b); err != nil {
			t.Fatal(err)
		}
	}
}

// Somebody else fills the disk: blobs give way first; when nothing is left to
// give, the write fails, Health says so, reads go on, and half a minute after
// room appeared all is well.
func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "8m")
	synctest.Test(t, func(t *testing.T) {
		s := openAt(t, filepath.Join(dir, "data"), 1<<30)
		gives, kept, b := content(1, 1<<20), content(2, 1<<20), content(3, 2<<20)
		mustPut(t, s, gives)
		mustPut(t, s, kept)
		reader, err := s.Blob(digest.FromBytes(kept))
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		p, err := s.Partial(digest.FromBytes(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		hog := filepath.Join(dir, "hog")
		fill(t, hog)

		n := 0
		for err == nil && n < p.Layout().Count() {
			err = writePiece(p, b, n)
			n++
		}
		// One MiB was given up for four pieces of 256 KiB, the journal took
		// a page of it.
		if n < 3 || n > 5 || !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("after %d pieces: %v", n, err)
		}
		if err := get(s, gives); !errors.Is(err, ErrNotFound) {
			t.Fatal("the idle blob did not give way:", err)
		}
		if err := s.Health(); !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal("Health:", err)
		}
		if _, err := s.Partial(digest.FromString("x"), 1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatal("Partial:", err)
		}
		if _, err := reader.CopyRange(io.Discard, 0, reader.Size()); err != nil {
			t.Fatal("a read:", err)
		}
		// The pieces that were written stay; the failed one can be tried again.
		if !p.Has(0) || p.Has(n-1) {
			t.Fatal("visible pieces are wrong")
		}

		if err := os.Remove(hog); err != nil {
			t.Fatal(err)
		}
		time.Sleep(refusal)
		if err := s.Health(); err != nil {
			t.Fatal("after half a minute:", err)
		}
		for i := n - 1; i < p.Layout().Count(); i++ {
			if err := writePiece(p, b, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(p.Verify(t.Context()), p.Commit(), p.Close(), get(s, b)); err != nil {
			t.Fatal(err)
		}
	})
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		b := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(b)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// A read-only disk serves what it holds, at once and after a restart.
func TestReadOnlyDisk(t *testing.T) {
	dir := tmpfs(t, "16m")
	s := openAt(t, filepath.Join(dir, "data"), 1<<30)
	b := content(1, testPiece+1)
	mustPut(t, s, b)
	remount := func(flags uintptr) error {
		return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	if err := remount(unix.MS_RDONLY); err != nil {
		t.Fatal(err)
	}
	defer remount(0)
	for range 2 {
		if err := get(s, b); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Partial(digest.FromString("x"), 1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EROFS) {
			t.Fatal("Partial:", err)
		}
		if err := s.Health(); !errors.Is(err, syscall.EROFS) {
			t.Fatal("Health:", err)
		}
		s = reopen(t, s)
	}
	if err := remount(0); err != nil {
		t.Fatal(err)
	}
	mustPut(t, reopen(t, s), content(2, testPiece))
}

// The directory is removed while the store runs, the lock with it.
func TestRemovedWhileRunning(t *testing.T) {
	for _, all := range []bool{true, false} {
		s := bigStore(t)
		b, b2 := content(1, testPiece+1), content(2, testPiece+2)
		d := mustPut(t, s, b)
		reader, err := s.Blob(d)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Partial(digest.FromBytes(b2), int64(len(b2)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(s.dir); err != nil {
			t.Fatal(err)
		}
		if !all {
			if err := os.Mkdir(s.dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := reader.CopyRange(io.Discard, 0, reader.Size()); err != nil {
			t.Fatal("a read that was under way:", err)
		}
		for i := range 2 {
			if err := writePiece(p, b2, i); err != nil {
				t.Fatal("a download that was under way:", err)
			}
		}
		if err := p.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(); !errors.Is(err, ErrUnavailable) {
			t.Fatal("Commit of a file that is gone:", err)
		}
		if err := errors.Join(p.Close(), reader.Close()); err != nil {
			t.Fatal(err)
		}
		if err := get(s, b); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if err := s.Health(); err != nil {
			t.Fatal(err)
		}
		mustPut(t, s, b)
		mustPut(t, s, b2)
		if err := errors.Join(get(s, b), get(s, b2)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Dir: s.dir, MaxBytes: 1}); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
			t.Fatal("a second daemon:", err)
		}
		if err := errors.Join(get(reopen(t, s), b)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondDaemon(t *testing.T) {
	s := bigStore(t)
	_, err := Open(Config{Dir: s.dir, MaxBytes: 1 << 20})
	if err == nil || !strings.Contains(err.Error(), s.dir) || !strings.Contains(err.Error(), "in use by another daemon") {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Blob(digest.FromString("x")); !errors.Is(err, ErrUnavailable) {
		t.Fatal("Blob of a closed store:", err)
	}
	if _, err := s.Partial(digest.FromString("x"), 1); !errors.Is(err, ErrUnavailable) {
		t.Fatal("Partial of a closed store:", err)
	}
	openAt(t, s.dir, 1<<20)
}

func TestDataDirectory(t *testing.T) {
	fresh := filepath.Join(t.TempDir(), "a", "b")
	openAt(t, fresh, 1)
	err := filepath.Walk(fresh, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	refused := func(dir string, words ...string) {
		t.Helper()
		_, err := Open(Config{Dir: dir, MaxBytes: 1})
		if err == nil {
			t.Fatalf("%s is taken", dir)
		}
		for _, w := range append(words, dir) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error does not say %q: %v", w, err)
			}
		}
	}
	for _, mode := range []os.FileMode{0o755, 0o720, 0o701} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		refused(dir, "chmod 700")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(file, "not a directory")
	if _, err := Open(Config{}); err == nil {
		t.Error("no directory passes")
	}
	if _, err := Open(Config{Dir: fresh + "2", MaxBytes: -1}); err == nil {
		t.Error("a negative quota passes")
	}

	t.Run("foreign owner", func(t *testing.T) {
		asRoot(t)
		dir := filepath.Join(t.TempDir(), "foreign")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		refused(dir, "65534", "chown")
	})
}

// What the store did not put into its directory stays there.
func TestForeignFilesStay(t *testing.T) {
	s := bigStore(t)
	mustPut(t, s, content(1, 10))
	files := []string{"notes", "blobs/readme", "blobs/sha256/zz", "blobs/sha256/ab/short", "partial/sha256-xyz", "blobs/md5/ab/abcd"}
	for _, f := range files {
		path := filepath.Join(s.dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	for _, f := range files {
		if _, err := os.Stat(filepath.Join(s.dir, f)); err != nil {
			t.Error(err)
		}
	}
	if st := s.Stats(); st.Blobs != 1 || st.UsedBytes != 10 {
		t.Fatalf("%+v", st)
	}
}

// Descriptors run out: nothing is evicted or discarded for it, and all is
// well when they are back. In a process of its own, whose limit it is.
func TestNoDescriptors(t *testing.T) {
	if os.Getenv("SHOAL_STORE_TEST_NOFILE") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestNoDescriptors$")
		cmd.Env = append(os.Environ(), "SHOAL_STORE_TEST_NOFILE=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s := bigStore(t)
	b, half := content(1, testPiece+1), content(2, 2*testPiece)
	d := mustPut(t, s, b)
	p, err := s.Partial(digest.FromBytes(half), int64(len(half)))
	if err == nil {
		err = writePiece(p, half, 1)
	}
	if err := errors.Join(err, p.Close()); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, berr := s.Blob(d)
	_, perr := s.Partial(digest.FromBytes(half), int64(len(half)))
	_, nerr := s.Partial(digest.FromString("new"), 1)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{berr, perr, nerr} {
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EMFILE) {
			t.Error(err)
		}
	}
	if err := errors.Join(get(s, b), s.Health()); err != nil {
		t.Fatal(err)
	}
	if p, err = s.Partial(digest.FromBytes(half), int64(len(half))); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if ok, err := p.Recheck(1); !ok || err != nil {
		t.Fatalf("the unfinished blob was discarded: %v", err)
	}
	mustPut(t, s, content(3, 9))
}

// A warm hit reads nothing to verify; a dropped page costs its piece alone,
// once; many readers of a cold blob hash it once.
func TestWarmHitReadsNothing(t *testing.T) {
	s := bigStore(t)
	b := content(14, 8*testPiece)
	d := mustPut(t, s, b)
	checks := func(want int64) {
		t.Helper()
		if got := s.Stats().RotChecks; got != want {
			t.Fatalf("%d pieces were hashed, want %d", got, want)
		}
	}
	for range 3 {
		if err := get(s, b); err != nil {
			t.Fatal(err)
		}
	}
	checks(0) // fresh from Commit

	s = reopen(t, s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := get(s, b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checks(8)
	if err := get(s, b); err != nil {
		t.Fatal(err)
	}
	checks(8)

	f, err := os.Open(s.blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 2*testPiece, testPiece, unix.FADV_DONTNEED); err != nil {
		t.Skip("no fadvise here:", err)
	}
	if got, known := (osFile{f}).resident(0, 8*testPiece); !known || got != 2*testPiece {
		t.Skipf("this file system keeps pages that it is told to drop: %d, %v", got, known)
	}
	if err := get(s, b); err != nil {
		t.Fatal(err)
	}
	checks(9)
	if err := get(s, b); err != nil {
		t.Fatal(err)
	}
	checks(9)
}

// A second daemon is kept out too when the lock file was removed, and a store
// that has made its lock file anew goes on.
func TestLockFileRemoved(t *testing.T) {
	s := bigStore(t)
	second := func() error {
		other, err := Open(Config{Dir: s.dir, MaxBytes: 1 << 20})
		if err == nil {
			other.Close()
		}
		return err
	}
	if err := os.Remove(s.lockPath()); err != nil {
		t.Fatal(err)
	}
	if err := second(); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
		t.Fatalf("a second daemon: %v", err)
	}
	s.mu.Lock()
	err := s.restoreDirsLocked()
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := second(); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
		t.Fatalf("a second daemon, after the lock was made anew: %v", err)
	}
	b := content(1, testPiece)
	mustPut(t, s, b)
	if err := get(reopen(t, s), b); err != nil {
		t.Fatal(err)
	}
}
