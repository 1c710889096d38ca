//go:build unix && !linux

package store

import (
	"io/fs"
	"syscall"
)

func infoOf(fi fs.FileInfo, err error) (fileInfo, error) {
	if err != nil {
		return fileInfo{}, err
	}
	info := fileInfo{identity: identity{size: fi.Size(), mtime: fi.ModTime().UnixNano()}, mode: fi.Mode()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.dev, info.ino, info.uid = uint64(st.Dev), uint64(st.Ino), int(st.Uid)
		info.allocated = int64(st.Blocks) * 512
	}
	return info, nil
}

func (f osFile) resident(int64, int64) (int64, bool) { return 0, false }
func (f osFile) readNothingAhead()                   {}
func (f osFile) prefetch(int64, int64)               {}
