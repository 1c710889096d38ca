package store

import (
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func infoOf(fi fs.FileInfo, err error) (fileInfo, error) {
	if err != nil {
		return fileInfo{}, err
	}
	info := fileInfo{identity: identity{size: fi.Size(), mtime: fi.ModTime().UnixNano()}, mode: fi.Mode()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.dev, info.ino, info.uid = uint64(st.Dev), st.Ino, int(st.Uid)
		info.ctime = st.Ctim.Nano()
		info.allocated = int64(st.Blocks) * 512
	}
	return info, nil
}

var pageSize = int64(os.Getpagesize())

// resident asks cachestat(2), since Linux 6.5, whether every page is there: it
// counts whole folios and needs no mapping. Measured for 256 MiB: 0.06 ms,
// mincore(2) 4.4 ms. Where the call is absent mincore answers, and where there
// is a gap it says where.
//
// To those who neither own the file nor may write it, mincore answers "all
// resident" since Linux 5.2. Open has made sure that we own the directory,
// and nothing else makes files in it.
func (f osFile) resident(off, n int64) (int64, bool) {
	if n <= 0 {
		return 0, true
	}
	start := off - off%pageSize
	length := off + n - start
	pages := (length + pageSize - 1) / pageSize
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(start), Len: uint64(length)}, &st, 0); err == nil && st.Cache == uint64(pages) {
		return n, true
	}
	m, err := unix.Mmap(int(f.Fd()), start, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, false
	}
	defer unix.Munmap(m)
	vec := make([]byte, pages)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(length), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		return 0, false
	}
	for i, v := range vec {
		if v&1 == 0 {
			return max(0, start+int64(i)*pageSize-off), true
		}
	}
	return n, true
}

// The advice may be refused (a file system without a page cache); then the
// kernel only reads a little more than was asked.
func (f osFile) readNothingAhead() { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) }

func (f osFile) prefetch(off, n int64) { _ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_WILLNEED) }
