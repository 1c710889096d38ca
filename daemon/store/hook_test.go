package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errCrashed = errors.New("the process is dead")
	errTorn    = fmt.Errorf("%w in the middle of a call", errCrashed)
)

// hookFS asks hook before each call that the store makes. An error is
// returned in place of the call; a write is then half done, as a torn write
// is.
type hookFS struct {
	fileSystem
	hook func(op, name string) error

	handles atomic.Int64 // descriptors given and not closed
	mu      sync.Mutex
	locks   []io.Closer // guarded by mu
}

// crashAt returns a hook that lets n calls pass and fails all after them.
func crashAt(n int) func(op, name string) error {
	var calls atomic.Int64
	return func(string, string) error {
		switch c := calls.Add(1); {
		case c <= int64(n):
			return nil
		case c == int64(n)+1:
			return errTorn
		}
		return errCrashed
	}
}

// failNth returns a hook that fails call n, counting from 0, alone.
func failNth(n int, err error) (hook func(op, name string) error, calls *atomic.Int64) {
	calls = new(atomic.Int64)
	return func(op, name string) error {
		if calls.Add(1) == int64(n)+1 {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
		return nil
	}, calls
}

// die gives up what a dead process would.
func (h *hookFS) die() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.locks {
		l.Close()
	}
}

func (h *hookFS) open(name string, flag int) (file, error) {
	if err := h.hook("open", name); err != nil {
		return nil, err
	}
	f, err := h.fileSystem.open(name, flag)
	if err != nil {
		return nil, err
	}
	h.handles.Add(1)
	return &hookFile{file: f, h: h, name: name}, nil
}

func (h *hookFS) mkdir(name string) error {
	if err := h.hook("mkdir", name); err != nil {
		return err
	}
	return h.fileSystem.mkdir(name)
}

func (h *hookFS) rename(from, to string) error {
	if err := h.hook("rename", from); err != nil {
		return err
	}
	return h.fileSystem.rename(from, to)
}

func (h *hookFS) removeAll(name string) error {
	if err := h.hook("remove", name); err != nil {
		return err
	}
	return h.fileSystem.removeAll(name)
}

func (h *hookFS) readDir(name string) ([]fs.DirEntry, error) {
	if err := h.hook("readdir", name); err != nil {
		return nil, err
	}
	return h.fileSystem.readDir(name)
}

func (h *hookFS) stat(name string) (fileInfo, error) {
	if err := h.hook("stat", name); err != nil {
		return fileInfo{}, err
	}
	return h.fileSystem.stat(name)
}

func (h *hookFS) lstat(name string) (fileInfo, error) {
	if err := h.hook("lstat", name); err != nil {
		return fileInfo{}, err
	}
	return h.fileSystem.lstat(name)
}

func (h *hookFS) touch(name string, t time.Time) error {
	if err := h.hook("touch", name); err != nil {
		return err
	}
	return h.fileSystem.touch(name, t)
}

func (h *hookFS) syncDir(name string) error {
	if err := h.hook("syncdir", name); err != nil {
		return err
	}
	return h.fileSystem.syncDir(name)
}

func (h *hookFS) space(name string) (diskSpace, error) {
	if err := h.hook("statfs", name); err != nil {
		return diskSpace{}, err
	}
	return h.fileSystem.space(name)
}

func (h *hookFS) lock(name string) (io.Closer, error) {
	if err := h.hook("lock", name); err != nil {
		return nil, err
	}
	l, err := h.fileSystem.lock(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	once := onceCloser{l, new(sync.Once)}
	h.locks = append(h.locks, once)
	return once, nil
}

type onceCloser struct {
	io.Closer
	once *sync.Once
}

func (c onceCloser) Close() (err error) {
	c.once.Do(func() { err = c.Closer.Close() })
	return err
}

type hookFile struct {
	file
	h    *hookFS
	name string
	once sync.Once
}

func (f *hookFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.h.hook("pread", f.name); err != nil {
		return 0, err
	}
	return f.file.ReadAt(b, off)
}

func (f *hookFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.h.hook("pwrite", f.name); err != nil {
		if err != errCrashed {
			n, _ := f.file.WriteAt(b[:len(b)/2], off)
			return n, err
		}
		return 0, err
	}
	return f.file.WriteAt(b, off)
}

func (f *hookFile) stat() (fileInfo, error) {
	if err := f.h.hook("fstat", f.name); err != nil {
		return fileInfo{}, err
	}
	return f.file.stat()
}

func (f *hookFile) truncate(size int64) error {
	if err := f.h.hook("ftruncate", f.name); err != nil {
		return err
	}
	return f.file.truncate(size)
}

func (f *hookFile) sync() error {
	if err := f.h.hook("fsync", f.name); err != nil {
		return err
	}
	return f.file.sync()
}

func (f *hookFile) copyRange(w io.Writer, off, n int64) (int64, error) {
	if err := f.h.hook("sendfile", f.name); err != nil {
		return 0, err
	}
	return f.file.copyRange(w, off, n)
}

// Close is not failed: a descriptor is released whatever close(2) returns.
func (f *hookFile) Close() error {
	f.once.Do(func() { f.h.handles.Add(-1) })
	return f.file.Close()
}
