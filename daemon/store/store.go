// Package store keeps blobs on disk under their digests: complete blobs,
// which are durable and never served unverified, and unfinished ones, whose
// pieces may come in any order and survive a restart.
//
// The package knows digests, pieces, files and bytes of quota. It must not
// know repositories, permissions, peers or origins: who may read a blob and
// where its pieces come from is decided elsewhere.
//
// On disk, under Config.Dir (mode 0700):
//
//	lock                             flock(2) of the one daemon, beside that of the directory
//	blobs/<alg>/<2 hex>/<hex>        a complete blob
//	blobs/<alg>/<2 hex>/<hex>.pieces its piece sums; see sidecar.go
//	blobs/<alg>/<2 hex>/<hex>.public empty: the blob is marked; see mark.go
//	partial/<alg>-<hex>              an unfinished blob, sparse, at final offsets
//	partial/<alg>-<hex>.journal      which pieces it claims to have; see journal.go
//
// What a name promises: a file under blobs/ was verified by its digest and
// synced before it got that name. A file under partial/ promises nothing;
// after a restart every piece is hashed again before it counts. The sidecar's
// modification time is the time of the blob's last use.
//
// The store starts no goroutine.
package store

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

var (
	// ErrNotFound says that the store holds no complete blob of the digest.
	ErrNotFound = errors.New("store: blob not found")
	// ErrCorrupt says that the bytes on disk are not those that were
	// verified. The blob has been evicted; it is to be fetched again.
	ErrCorrupt = errors.New("store: blob is corrupt on disk")
	// ErrUnavailable says that the store cannot do this now: the disk is
	// full, read-only or failing, the blob is larger than the quota, or what
	// fills the quota is in use. The caller passes the bytes through.
	ErrUnavailable = errors.New("store: unavailable")
	// ErrBusy says that a Partial of the digest is open already.
	ErrBusy = errors.New("store: partial blob is open already")
)

// DigestError says that a whole blob does not have its digest.
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("store: blob %s has digest %s", e.Want, e.Got)
}

const (
	// refusal is how long, after a write failed for the disk's sake, new
	// partials are refused. Long enough that a broken disk is not hammered
	// by every request, short enough that a freed one is used soon.
	refusal = 30 * time.Second
	// freeShare is the part of the disk that is left free: one in ten.
	freeShare = 10
	// touchEvery bounds how often a use of a blob is written to disk.
	touchEvery = time.Minute
)

// Config says where the store lives and how much it may hold.
type Config struct {
	// Dir is the data directory. It is created with mode 0700 if absent, and
	// refused if another user owns it or group or others may enter it.
	Dir string
	// MaxBytes is the quota for complete blobs and what has come of
	// unfinished ones. Whatever it is, a tenth of the disk is left free. 0
	// stores nothing.
	MaxBytes int64
	// Logger is told of evictions for corruption and of a failing disk. Nil
	// is slog.Default.
	Logger *slog.Logger
	// Removed, if set, is told of each complete blob that the store no longer
	// has, evicted or rotten. It is called with the store locked: it must not
	// wait, nor call the store.
	Removed func(digest.Digest)
}

// Store is a directory of blobs. Its methods are safe for concurrent use.
type Store struct {
	fs       fileSystem
	dir      string
	maxBytes int64
	log      *slog.Logger
	removed  func(digest.Digest)

	// mu guards the fields below. No other lock of the package is taken
	// under it. Unlinking happens under it, so that a name is never removed
	// from under a blob that was just given it.
	mu      sync.Mutex
	index   index
	lock    io.Closer // of the file
	dirLock io.Closer // of the directory itself
	closed  bool
	trouble error // why the disk takes nothing, until troubleEnd
	// troubleEnd is when new partials are tried again.
	troubleEnd time.Time
	stats      Stats
}

// Open opens the store in cfg.Dir, alone on this machine: a second daemon is
// told so. It removes what a crash left half done and rebuilds the index from
// names, sizes and times; it reads no blob's content.
func Open(cfg Config) (*Store, error) { return openOn(osFS{}, cfg) }

func openOn(fsys fileSystem, cfg Config) (*Store, error) {
	if cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("store: quota of %d bytes is negative", cfg.MaxBytes)
	}
	if cfg.Dir == "" {
		return nil, errors.New("store: no data directory given")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Store{fs: fsys, dir: filepath.Clean(cfg.Dir), maxBytes: cfg.MaxBytes, log: cfg.Logger, removed: cfg.Removed}
	s.index.init()
	if err := s.openDir(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.scanLocked(); err != nil {
		s.dropLocks()
		return nil, err
	}
	// The quota may have shrunk since the last run. What cannot be evicted
	// now is evicted when bytes come the next time.
	if err := s.shrinkLocked(); err != nil {
		s.log.Warn("store is over its quota", "dir", s.dir, "err", err)
	}
	return s, nil
}

// openDir creates, checks and locks the data directory.
func (s *Store) openDir() error {
	if err := s.mkdirAll(s.dir); err != nil {
		return fmt.Errorf("store: creating data directory: %w", err)
	}
	info, err := s.fs.stat(s.dir)
	if err != nil {
		return fmt.Errorf("store: data directory: %w", err)
	}
	switch {
	case !info.mode.IsDir():
		return fmt.Errorf("store: data directory %s is not a directory", s.dir)
	case info.uid != os.Geteuid():
		return fmt.Errorf("store: data directory %s belongs to user %d, not to %d who runs this: chown it, or choose another directory", s.dir, info.uid, os.Geteuid())
	case info.mode.Perm()&0o077 != 0:
		return fmt.Errorf("store: data directory %s has mode %#o and is open to other users: chmod 700 %s", s.dir, info.mode.Perm(), s.dir)
	}
	if err = s.takeLocks(); err != nil {
		if errors.Is(err, errLocked) {
			return fmt.Errorf("store: data directory %s is in use by another daemon: stop it, or choose another directory", s.dir)
		}
		return fmt.Errorf("store: data directory: %w", err)
	}
	if err := s.makeDirs(); err != nil {
		// A full or read-only disk still serves what it holds.
		if !isDiskTrouble(err) {
			s.dropLocks()
			return fmt.Errorf("store: data directory: %w", err)
		}
		s.noteTrouble(err)
	}
	return nil
}

// mkdirAll makes dir and its absent parents, durably.
func (s *Store) mkdirAll(dir string) error {
	parent := filepath.Dir(dir)
	err := s.fs.mkdir(dir)
	if errors.Is(err, os.ErrNotExist) && parent != dir {
		if err := s.mkdirAll(parent); err != nil {
			return err
		}
		err = s.fs.mkdir(dir)
	}
	if err == nil {
		// A parent that we may enter but not read cannot be synced.
		if err = s.fs.syncDir(parent); errors.Is(err, os.ErrPermission) {
			err = nil
		}
		return err
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	// On a read-only disk mkdir may say so before it looks.
	if _, serr := s.fs.stat(dir); serr == nil {
		return nil
	}
	return err
}

// makeDirs makes the fixed directories and the names that lead to them
// durable, once.
func (s *Store) makeDirs() error {
	made := false
	for _, dir := range s.fixedDirs() {
		if _, err := s.fs.lstat(dir); err == nil {
			continue
		}
		if err := s.fs.mkdir(dir); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		made = true
	}
	if !made {
		return nil
	}
	return errors.Join(s.fs.syncDir(s.dir), s.fs.syncDir(s.blobsDir()))
}

// restoreDirsLocked makes anew what somebody removed while the store runs,
// the lock included.
func (s *Store) restoreDirsLocked() error {
	if err := s.mkdirAll(s.dir); err != nil {
		return err
	}
	if _, err := s.fs.lstat(s.lockPath()); errors.Is(err, os.ErrNotExist) {
		lock, err := s.fs.lock(s.lockPath())
		if err != nil {
			return err
		}
		s.lock.Close()
		s.lock = lock
		// The directory is locked still, unless it is another one now.
		if dir, err := s.fs.lock(s.dir); err == nil {
			s.dirLock.Close()
			s.dirLock = dir
		} else if !errors.Is(err, errLocked) {
			return err
		}
		s.log.Warn("data directory was removed while in use; made anew", "dir", s.dir)
	}
	return s.makeDirs()
}

// takeLocks locks the data directory for this process. The directory itself is
// locked, so that removing a file from it lets no second daemon in; the file
// keeps out daemons of earlier versions, which lock nothing else.
func (s *Store) takeLocks() (err error) {
	if s.dirLock, err = s.fs.lock(s.dir); err != nil {
		return err
	}
	if s.lock, err = s.fs.lock(s.lockPath()); err != nil {
		s.dirLock.Close()
	}
	return err
}

func (s *Store) dropLocks() error { return errors.Join(s.lock.Close(), s.dirLock.Close()) }

// Close gives the directory up. Open handles stay usable until each is
// closed, but no new ones are given.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.dropLocks()
}

// Stats are the figures of a store. Counters start at zero with Open.
type Stats struct {
	UsedBytes   int64 // complete blobs, and what has come of unfinished ones
	MaxBytes    int64 // the configured quota
	LimitBytes  int64 // the quota as the disk allowed when room was last made
	Blobs       int   // complete blobs
	Partials    int   // unfinished blobs, open or not
	Open        int   // blobs and partials with an open handle
	Evictions   int64 // blobs and partials removed to make room
	Corruptions int64 // blobs found rotten and removed
	Refusals    int64 // Partial calls answered by ErrUnavailable
	WriteErrors int64 // writes that the disk failed
	RotChecks   int64 // pieces read and hashed before they were served
}

// Stats returns the figures of this moment.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.UsedBytes, st.MaxBytes = s.index.used, s.maxBytes
	st.Blobs, st.Partials, st.Open = len(s.index.blobs), len(s.index.partials), s.index.pinned()
	return st
}

// Health returns nil, or why the store takes no new blob now. What it holds
// it may serve nevertheless.
func (s *Store) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthLocked()
}

func (s *Store) healthLocked() error {
	if s.closed {
		return fmt.Errorf("%w: closed", ErrUnavailable)
	}
	if s.trouble != nil && time.Now().Before(s.troubleEnd) {
		return fmt.Errorf("%w: the disk failed a write: %w", ErrUnavailable, s.trouble)
	}
	return nil
}

// isDiskTrouble tells failures of the disk from those of one call.
func isDiskTrouble(err error) bool {
	return isFull(err) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// writeFailed wraps the error of a write, and refuses new partials for a
// while if the disk is to blame. The caller does not hold s.mu.
func (s *Store) writeFailed(doing string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeFailedLocked(doing, err)
}

func (s *Store) writeFailedLocked(doing string, err error) error {
	if isDiskTrouble(err) {
		s.noteTrouble(err)
		s.stats.WriteErrors++
		s.log.Error("disk failed a write; passing through for a while", "doing", doing, "err", err, "for", refusal)
	}
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, doing, err)
}

func (s *Store) noteTrouble(err error) {
	s.trouble, s.troubleEnd = err, time.Now().Add(refusal)
}

// whileFull runs write, and again after each eviction as long as the disk is
// full and something can be evicted. It ends: each round removes an entry of
// the index. The caller does not hold s.mu.
func (s *Store) whileFull(write func() error) error {
	for {
		err := write()
		if err == nil || !isFull(err) || !s.evictOne() {
			return err
		}
	}
}
