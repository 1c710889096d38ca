package runtimes

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processNames are what runtimes are called in /proc/PID/comm.
var processNames = map[string]string{
	Containerd: "containerd", K3s: "containerd", RKE2: "containerd", CRIO: "crio", Docker: "dockerd", BuildKit: "buildkitd",
}

// Started returns when this machine's runtime was started, zero if that cannot
// be told or there are several.
func Started(runtime string) time.Time {
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return time.Time{}
	}
	var found time.Time
	for _, file := range files {
		name, err := os.ReadFile(file)
		if err != nil || string(bytes.TrimSpace(name)) != processNames[runtime] {
			continue
		}
		if !found.IsZero() {
			return time.Time{}
		}
		found = startOf(filepath.Dir(file))
	}
	return found
}

// startOf reads proc(5): the 22nd field of stat is the start in ticks of which
// Linux shows 100 a second, counted from btime.
func startOf(dir string) time.Time {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return time.Time{}
	}
	// The name in field 2 may hold anything, and ends at the last bracket.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}
	}
	system, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(system)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			if boot, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				// btime is cut to the second; rather too late than a false alarm.
				return time.Unix(boot+1, 0).Add(time.Duration(ticks) * 10 * time.Millisecond)
			}
		}
	}
	return time.Time{}
}
