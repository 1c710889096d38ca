package demo

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// memory is a directory in memory, where a system has one.
const memory = "/dev/shm"

// place makes a directory with room for so many bytes: the one for temporary
// files if TMPDIR names it, else in memory if there is plenty. In a real
// cluster each node has a disk of its own; one disk for all shows the disk.
func place(need int64) (string, error) {
	parent := os.TempDir()
	if os.Getenv("TMPDIR") == "" && room(memory) > need && memoryAvailable() > 2*need {
		parent = memory
	}
	if free := room(parent); free < need {
		return "", fmt.Errorf("the nodes need %s in %s, which has room for %s: give a smaller --size, or another directory by TMPDIR",
			size(need), parent, size(max(free, 0)))
	}
	return os.MkdirTemp(parent, "shoal-demo-")
}

// room is how many bytes nodes may store in a directory: they leave a tenth
// of the disk free.
func room(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return (int64(st.Bavail) - int64(st.Blocks)/10) * int64(st.Bsize)
}

// memoryAvailable is how many bytes may be taken without swapping, 0 where
// nothing says so.
func memoryAvailable() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(kib, "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}
