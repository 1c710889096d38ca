package bed

import (
	"bufio"
	"fmt"
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

// Clients returns how many connections the process's namespace has at a port
// of its own.
func (p *Process) Clients(port int) (int, error) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", p.Pid()))
	if err != nil {
		return 0, fmt.Errorf("reading the connections of %s: %w: %s", p.name, err, p.tail())
	}
	return established(string(table), port), nil
}

// established counts connections at a local port in /proc/PID/net/tcp, where
// ports are hexadecimal.
func established(table string, port int) int {
	n := 0
	for line := range strings.Lines(table) {
		// 01 is TCP_ESTABLISHED.
		if f := strings.Fields(line); len(f) > 3 && f[3] == "01" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			n++
		}
	}
	return n
}

// CPUs adds up the CPU seconds that the processes have used so far; of those
// that have ended, all that they used. Children are not counted.
func CPUs(list ...*Process) (float64, error) {
	var sum float64
	for _, p := range list {
		if p.Gone() {
			sum += p.spent()
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
		if err != nil {
			<-p.exited // it ended just now
			sum += p.spent()
			continue
		}
		st, err := parseStat(string(b))
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", p.Pid(), err)
		}
		sum += float64(st.ticks) / ticks
	}
	return sum, nil
}

// spent is the CPU time of a process that has ended, in seconds.
func (p *Process) spent() float64 {
	return (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds()
}

// MachineCPU returns for how many CPU seconds the machine has been busy so
// far. What the hypervisor has taken away counts as busy: it was wanted.
func MachineCPU() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachine(string(b))
}

// parseMachine reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal; see proc(5). What follows is in these already.
func parseMachine(s string) (float64, error) {
	var name string
	var v [8]int64
	if _, err := fmt.Sscan(s, &name, &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]); err != nil || name != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %.80q: %v", s, err)
	}
	return float64(v[0]+v[1]+v[2]+v[5]+v[6]+v[7]) / ticks, nil
}
