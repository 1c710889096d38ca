package bed

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticks is the unit of CPU times in /proc, per second: USER_HZ, 100 on every
// architecture that Go runs on.
const ticks = 100

// CPU returns the CPU seconds, user and system, that the process and its
// children that still run have used so far. It counts in hundredths.
func (p *Process) CPU() (float64, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	var sum int64
	found := false
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone since
		}
		st, err := parseStat(string(b))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if st.pid == p.Pid() {
			found = true
		} else if st.parent != p.Pid() {
			continue
		}
		sum += st.ticks
	}
	if !found {
		return 0, fmt.Errorf("%s (process %d) is gone: %s", p.name, p.Pid(), p.tail())
	}
	return float64(sum) / ticks, nil
}

type stat struct {
	pid, parent int
	ticks       int64
}

// parseStat reads /proc/PID/stat; see proc(5). The name, in parentheses, may
// have spaces and parentheses itself.
func parseStat(s string) (stat, error) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("no process name in %q", s)
	}
	f := strings.Fields(s[end+1:])
	if len(f) < 13 {
		return stat{}, fmt.Errorf("only %d fields", len(f))
	}
	var nums [4]int64
	// The process id; then fields 4, 14 and 15, of which the first here is 3.
	for i, v := range []string{strings.TrimSpace(s[:open]), f[1], f[11], f[12]} {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return stat{}, err
		}
		nums[i] = n
	}
	return stat{pid: int(nums[0]), parent: int(nums[1]), ticks: nums[2] + nums[3]}, nil
}

// PeakMemory returns the most bytes that the process has had in memory so far,
// pages of mapped files included: VmHWM.
func (p *Process) PeakMemory() (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", p.name, err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		rest, ok := strings.CutPrefix(sc.Text(), "VmHWM:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		return kib << 10, err
	}
	return 0, fmt.Errorf("no VmHWM of %s: is it gone? %s", p.name, p.tail())
}

// listening looks for a listening socket in /proc/PID/net/tcp, where addresses
// are hexadecimal in the machine's byte order.
func listening(table string, addr *net.TCPAddr) bool {
	local := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(addr.IP.To4()), addr.Port)
	for line := range strings.Lines(table) {
		// 0A is TCP_LISTEN.
		if f := strings.Fields(line); len(f) > 3 && f[1] == local && f[3] == "0A" {
			return true
		}
	}
	return false
}
