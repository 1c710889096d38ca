package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fileSystem is every call by which the store reaches the disk. The tests put
// crashes and faults behind it; in production it is osFS.
type fileSystem interface {
	open(name string, flag int) (file, error)
	mkdir(name string) error
	rename(from, to string) error
	// removeAll removes a file, or a tree that stands in its place. What is
	// absent is no error.
	removeAll(name string) error
	readDir(name string) ([]fs.DirEntry, error)
	// stat follows symbolic links, lstat does not.
	stat(name string) (fileInfo, error)
	lstat(name string) (fileInfo, error)
	// touch sets the modification time.
	touch(name string, t time.Time) error
	syncDir(name string) error
	space(name string) (diskSpace, error)
	// lock takes an exclusive advisory lock without waiting; errLocked if
	// another process has it.
	lock(name string) (io.Closer, error)
}

// file is one open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	stat() (fileInfo, error)
	truncate(size int64) error
	sync() error
	// copyRange writes n bytes from off to w, by sendfile where w can. It
	// moves the descriptor's offset: calls on one file are not concurrent.
	copyRange(w io.Writer, off, n int64) (int64, error)
	// resident returns how many bytes from off, of n, lie in the page cache
	// without a gap. known is false where the system cannot say.
	resident(off, n int64) (bytes int64, known bool)
	// readNothingAhead keeps reads from pulling more than was asked for into
	// the page cache.
	readNothingAhead()
	// prefetch begins to bring a range into the page cache.
	prefetch(off, n int64)
}

// fileInfo is what the store asks of a file's inode.
type fileInfo struct {
	identity
	mode      fs.FileMode
	uid       int
	allocated int64 // bytes of disk, less than size for a sparse file
}

// identity changes whenever a file is replaced or written by anyone.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds since 1970
}

// diskSpace is of a whole file system, in bytes. avail is what an ordinary
// process may still use.
type diskSpace struct{ total, avail int64 }

var errLocked = errors.New("locked by another process")

type osFS struct{}

func (osFS) open(name string, flag int) (file, error) {
	f, err := os.OpenFile(name, flag|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) mkdir(name string) error                    { return os.Mkdir(name, 0o700) }
func (osFS) rename(from, to string) error               { return os.Rename(from, to) }
func (osFS) removeAll(name string) error                { return os.RemoveAll(name) }
func (osFS) readDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) touch(name string, t time.Time) error       { return os.Chtimes(name, time.Time{}, t) }

func (osFS) stat(name string) (fileInfo, error)  { return infoOf(os.Stat(name)) }
func (osFS) lstat(name string) (fileInfo, error) { return infoOf(os.Lstat(name)) }

func (osFS) syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (osFS) space(name string) (diskSpace, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return diskSpace{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	unit := int64(st.Bsize)
	return diskSpace{total: int64(st.Blocks) * unit, avail: int64(st.Bavail) * unit}, nil
}

func (osFS) lock(name string) (io.Closer, error) {
	// Opened for reading, so that the lock keeps nobody from remounting the
	// disk read-only, and can be taken on a disk that is.
	f, err := os.OpenFile(name, os.O_RDONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EISDIR) {
		f, err = os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", filepath.Clean(name), err)
	}
	return f, nil
}

// osFile holds the *os.File bare: any other type on the way to w.ReadFrom
// would turn sendfile into a copy through memory.
type osFile struct{ *os.File }

func (f osFile) truncate(size int64) error { return f.Truncate(size) }
func (f osFile) sync() error               { return f.Sync() }
func (f osFile) stat() (fileInfo, error)   { return infoOf(f.File.Stat()) }

// copyBuffers serve writers that cannot take a file themselves, such as TLS.
// 128 KiB holds eight TLS records.
var copyBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func (f osFile) copyRange(w io.Writer, off, n int64) (int64, error) {
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	r := &io.LimitedReader{R: f.File, N: n}
	if rf, ok := w.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	buf := copyBuffers.Get().(*[128 << 10]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(w, r, buf[:])
}
