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

// resident asks mincore(2) about a mapping that is made for the question and
// never touched. Since Linux 5.2 the kernel answers "all resident" to those
// who neither own the file nor may write it; Open has made sure that we own
// the directory, and nothing else makes files in it.
func (f osFile) resident(off, n int64) (int64, bool) {
	if n <= 0 {
		return 0, true
	}
	start := off - off%pageSize
	length := off + n - start
	m, err := unix.Mmap(int(f.Fd()), start, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, false
	}
	defer unix.Munmap(m)
	vec := make([]byte, (length+pageSize-1)/pageSize)
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
