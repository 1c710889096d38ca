package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// memFS is a disk in memory that knows what a loss of power leaves of it.
//
// Each inode remembers its writes since its last sync, each directory the
// changes of its names since its last syncDir. powerLoss keeps or loses every
// one of them by itself, and may keep the half of a write: more than a real
// file system loses, since ext4 and XFS keep the order of names. A rename
// changes two directories at once, as journals make it; syncing the one that
// the file came to keeps it.
type memFS struct {
	mu       sync.Mutex // guards everything below, inodes too
	root     *memDir
	locked   map[string]bool
	nextIno  uint64
	clock    int64
	total    int64
	avail    int64
	notInRAM map[uint64]bool // inodes whose pages were dropped
}

type memInode struct {
	ino          uint64
	data         []byte
	synced       []byte
	unsynced     []memWrite
	mtime, ctime int64
}

// memWrite is a write, or a truncation if b is nil.
type memWrite struct {
	off int64
	b   []byte
}

func (w memWrite) apply(data []byte, n int) []byte {
	if w.b == nil {
		return resize(data, w.off)
	}
	data = resize(data, max(int64(len(data)), w.off+int64(n)))
	copy(data[w.off:], w.b[:n])
	return data
}

func resize(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n:n]
	}
	return append(b[:len(b):len(b)], make([]byte, n-int64(len(b)))...)
}

// memDir holds *memInode and *memDir by name.
type memDir struct {
	ino     uint64
	now     map[string]any
	durable map[string]any
	// newest is the number of the last change of a name that is durable: an
	// older one that is kept later does not undo it.
	newest  map[string]int64
	changes []*memChange
}

// memChange sets or removes names, all or none. It hangs on every directory
// that it changes.
type memChange struct {
	seq  int64
	done bool
	sets []memSet
}

type memSet struct {
	dir  *memDir
	name string
	node any // nil: removed
}

func newMemFS() *memFS {
	m := &memFS{locked: map[string]bool{}, total: 1 << 40, avail: 1 << 39, notInRAM: map[uint64]bool{}}
	m.root = m.newDir()
	return m
}

func (m *memFS) newDir() *memDir {
	m.nextIno++
	return &memDir{ino: m.nextIno, now: map[string]any{}, durable: map[string]any{}, newest: map[string]int64{}}
}

func (m *memFS) tick() int64 { m.clock++; return m.clock }

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// parent returns the directory that holds name. The caller holds mu.
func (m *memFS) parent(name string) (*memDir, string, error) {
	if filepath.Clean(name) == "/" {
		return &memDir{now: map[string]any{"": m.root}}, "", nil
	}
	parts := strings.Split(strings.Trim(filepath.Clean(name), "/"), "/")
	dir := m.root
	for _, part := range parts[:len(parts)-1] {
		next, ok := dir.now[part].(*memDir)
		if !ok {
			return nil, "", syscall.ENOENT
		}
		dir = next
	}
	return dir, parts[len(parts)-1], nil
}

func (m *memFS) lookup(name string) (any, error) {
	dir, base, err := m.parent(name)
	if err != nil {
		return nil, err
	}
	if node := dir.now[base]; node != nil {
		return node, nil
	}
	return nil, syscall.ENOENT
}

// change applies sets now, and notes them as not yet durable.
func (m *memFS) change(sets ...memSet) {
	c := &memChange{seq: m.tick(), sets: sets}
	for _, s := range sets {
		if s.node == nil {
			delete(s.dir.now, s.name)
		} else {
			s.dir.now[s.name] = s.node
		}
		if n := len(s.dir.changes); n == 0 || s.dir.changes[n-1] != c {
			s.dir.changes = append(s.dir.changes, c)
		}
	}
}

func (c *memChange) keep() {
	if c.done {
		return
	}
	c.done = true
	for _, s := range c.sets {
		if s.dir.newest[s.name] > c.seq {
			continue
		}
		s.dir.newest[s.name] = c.seq
		if s.node == nil {
			delete(s.dir.durable, s.name)
		} else {
			s.dir.durable[s.name] = s.node
		}
	}
}

// powerLoss returns the disk as it is when power comes back.
func (m *memFS) powerLoss(rnd *rand.Rand) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loseDir(m.root, rnd, map[*memChange]bool{})
	after := newMemFS()
	after.root, after.nextIno, after.clock = m.root, m.nextIno, m.clock
	return after
}

func (m *memFS) loseDir(d *memDir, rnd *rand.Rand, lost map[*memChange]bool) {
	for _, c := range d.changes {
		if c.done || lost[c] {
			continue
		}
		if rnd.IntN(2) == 0 {
			lost[c] = true
		} else {
			c.keep()
		}
	}
	d.changes, d.now = nil, maps.Clone(d.durable)
	for _, name := range slices.Sorted(maps.Keys(d.now)) {
		switch node := d.now[name].(type) {
		case *memDir:
			m.loseDir(node, rnd, lost)
			// A rename out of node, decided there, may have changed d.
			d.now = maps.Clone(d.durable)
		case *memInode:
			node.lose(rnd)
		}
	}
}

func (i *memInode) lose(rnd *rand.Rand) {
	data := slices.Clone(i.synced)
	for _, w := range i.unsynced {
		switch rnd.IntN(3) {
		case 0:
		case 1:
			data = w.apply(data, len(w.b))
		case 2:
			data = w.apply(data, len(w.b)/2)
		}
	}
	i.data, i.synced, i.unsynced = data, slices.Clone(data), nil
}

func (m *memFS) open(name string, flag int) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	node := dir.now[base]
	switch {
	case node == nil && flag&os.O_CREATE == 0:
		return nil, pathError("open", name, syscall.ENOENT)
	case node == nil:
		m.nextIno++
		inode := &memInode{ino: m.nextIno, mtime: m.tick(), ctime: m.clock}
		m.change(memSet{dir, base, inode})
		node = inode
	case flag&os.O_EXCL != 0:
		return nil, pathError("open", name, syscall.EEXIST)
	}
	inode, ok := node.(*memInode)
	if !ok {
		return nil, pathError("open", name, syscall.EISDIR)
	}
	return &memFile{m: m, inode: inode}, nil
}

func (m *memFS) mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err == nil && dir.now[base] != nil {
		err = syscall.EEXIST
	}
	if err != nil {
		return pathError("mkdir", name, err)
	}
	m.change(memSet{dir, base, m.newDir()})
	return nil
}

func (m *memFS) rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fromDir, fromBase, err := m.parent(from)
	toDir, toBase, err2 := m.parent(to)
	if err = errors.Join(err, err2); err != nil {
		return pathError("rename", from, err)
	}
	inode, ok := fromDir.now[fromBase].(*memInode)
	if !ok {
		return pathError("rename", from, syscall.ENOENT)
	}
	if _, ok := toDir.now[toBase].(*memDir); ok {
		return pathError("rename", to, syscall.EISDIR)
	}
	inode.ctime = m.tick()
	m.change(memSet{fromDir, fromBase, nil}, memSet{toDir, toBase, inode})
	return nil
}

func (m *memFS) removeAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dir, base, err := m.parent(name); err == nil && dir.now[base] != nil {
		m.change(memSet{dir, base, nil})
	}
	return nil
}

func (m *memFS) readDir(name string) (list []fs.DirEntry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookup(name)
	dir, ok := node.(*memDir)
	if !ok {
		return nil, pathError("readdir", name, either(err, syscall.ENOTDIR))
	}
	for _, base := range slices.Sorted(maps.Keys(dir.now)) {
		_, isDir := dir.now[base].(*memDir)
		list = append(list, memEntry{base, isDir})
	}
	return list, nil
}

func either(err, fallback error) error {
	if err != nil {
		return err
	}
	return fallback
}

type memEntry struct {
	name string
	dir  bool
}

func (e memEntry) Name() string               { return e.name }
func (e memEntry) IsDir() bool                { return e.dir }
func (e memEntry) Info() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (e memEntry) Type() fs.FileMode {
	if e.dir {
		return fs.ModeDir
	}
	return 0
}

func (m *memFS) stat(name string) (fileInfo, error) { return m.lstat(name) }

func (m *memFS) lstat(name string) (fileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookup(name)
	if err != nil {
		return fileInfo{}, pathError("lstat", name, err)
	}
	if inode, ok := node.(*memInode); ok {
		return inode.info(), nil
	}
	return fileInfo{identity: identity{ino: node.(*memDir).ino}, mode: fs.ModeDir | 0o700, uid: os.Geteuid()}, nil
}

func (i *memInode) info() fileInfo {
	size := int64(len(i.data))
	return fileInfo{identity: identity{ino: i.ino, size: size, mtime: i.mtime, ctime: i.ctime}, mode: 0o600, uid: os.Geteuid(), allocated: size}
}

func (m *memFS) touch(name string, t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookup(name)
	if inode, ok := node.(*memInode); ok {
		inode.mtime, inode.ctime = t.UnixNano(), m.tick()
	}
	return err
}

func (m *memFS) syncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.lookup(name)
	dir, ok := node.(*memDir)
	if !ok {
		return pathError("sync", name, either(err, syscall.ENOTDIR))
	}
	var pending []*memChange
	for _, c := range dir.changes {
		if target := c.sets[len(c.sets)-1].dir; target == dir {
			c.keep()
		} else if !c.done {
			pending = append(pending, c)
		}
	}
	dir.changes = pending
	return nil
}

func (m *memFS) space(name string) (diskSpace, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.lookup(name); err != nil {
		return diskSpace{}, pathError("statfs", name, err)
	}
	return diskSpace{m.total, m.avail}, nil
}

func (m *memFS) lock(name string) (io.Closer, error) {
	if info, err := m.lstat(name); err != nil || !info.mode.IsDir() {
		f, err := m.open(name, os.O_CREATE)
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locked[name] {
		return nil, fmt.Errorf("lock %s: %w", name, errLocked)
	}
	m.locked[name] = true
	return memLock{m, name}, nil
}

type memLock struct {
	m    *memFS
	name string
}

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locked, l.name)
	return nil
}

type memFile struct {
	m      *memFS
	inode  *memInode
	closed bool
}

// use runs do under the file system's lock, unless f is closed.
func (f *memFile) use(do func(*memInode) error) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	return do(f.inode)
}

func (f *memFile) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.use(func(i *memInode) error {
		delete(f.m.notInRAM, i.ino)
		n = copy(b, i.data[min(off, int64(len(i.data))):])
		if n < len(b) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	err := f.use(func(i *memInode) error {
		w := memWrite{off, append([]byte{}, b...)}
		i.data = w.apply(i.data, len(b))
		i.unsynced = append(i.unsynced, w)
		i.mtime = f.m.tick()
		i.ctime = i.mtime
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *memFile) truncate(size int64) error {
	return f.use(func(i *memInode) error {
		w := memWrite{off: size}
		i.data = w.apply(i.data, 0)
		i.unsynced = append(i.unsynced, w)
		i.mtime = f.m.tick()
		i.ctime = i.mtime
		return nil
	})
}

func (f *memFile) sync() error {
	return f.use(func(i *memInode) error {
		i.synced, i.unsynced = slices.Clone(i.data), nil
		return nil
	})
}

func (f *memFile) stat() (info fileInfo, err error) {
	err = f.use(func(i *memInode) error { info = i.info(); return nil })
	return info, err
}

func (f *memFile) copyRange(w io.Writer, off, n int64) (int64, error) {
	return io.Copy(w, io.NewSectionReader(f, off, n))
}

func (f *memFile) resident(off, n int64) (int64, bool) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.notInRAM[f.inode.ino] {
		return 0, true
	}
	return n, true
}

func (f *memFile) readNothingAhead()     {}
func (f *memFile) prefetch(int64, int64) {}

func (f *memFile) Close() error {
	return f.use(func(*memInode) error { f.closed = true; return nil })
}
