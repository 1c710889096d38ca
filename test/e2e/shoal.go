package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// program is one running `shoal`, of whichever command.
type program struct {
	// Admin is the address of the admin endpoints, host:port.
	Admin string
	// Binary is what is started; empty is the one under test.
	Binary string

	proc *Process
}

// run starts shoal on a node with the arguments, and returns when it is ready.
func (p *program) run(t testing.TB, n *Node, descriptors int, args ...string) (*Process, error) {
	t.Helper()
	binary := p.Binary
	if binary == "" {
		var err error
		if binary, err = shoalBinary(); err != nil {
			// Not a thing that may be missing: it is what is under test.
			t.Fatal(err)
		}
	}
	name := "shoal-" + args[0]
	if descriptors > 0 {
		// Both limits: Go raises the soft one to the hard one.
		args = append([]string{fmt.Sprintf("--nofile=%[1]d:%[1]d", descriptors), binary}, args...)
		binary = NeedProgram(t, "prlimit", "util-linux")
	}
	proc := n.Start(t, name, n.Command(binary, args...))
	return proc, proc.waitReady(func() error { return getOK("http://" + p.Admin + "/readyz") })
}

// Stop ends the program as an operator would.
func (p *program) Stop(t testing.TB) {
	t.Helper()
	p.proc.Stop(t)
}

// Kill ends the program as a crash would.
func (p *program) Kill() { p.proc.Kill() }

// Freeze stops the program where it is: its connections stay open, and it
// answers nothing.
func (p *program) Freeze() { p.proc.Freeze() }

// Thaw lets a frozen program go on.
func (p *program) Thaw() { p.proc.Thaw() }

// Pid is the program's process id.
func (p *program) Pid() int { return p.proc.Pid() }

// Exited says whether the program has ended, and how.
func (p *program) Exited() (bool, error) { return p.proc.Exited() }

// Metric is the value of one series, named as /metrics prints it with its
// labels, or the sum of all series of a name without labels.
func (p *program) Metric(series string) (float64, error) {
	resp, err := probeClient.Get("http://" + p.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, fmt.Errorf("reading the metrics at %s: %w", p.Admin, err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(body)) {
		name, value, ok := cutSeries(strings.TrimSpace(line))
		if base, _, _ := strings.Cut(name, "{"); !ok || name != series && base != series {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s at %s: %w", name, p.Admin, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s at %s", series, p.Admin)
	}
	return sum, nil
}

// cutSeries parts a line of /metrics into name with labels and value.
func cutSeries(line string) (name, value string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 || strings.HasPrefix(line, "#") {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

// PeakMemory is the most memory that the process has had resident, in bytes
// (VmHWM of proc(5)).
func (p *program) PeakMemory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", p.Pid())
}

var probeClient = &http.Client{
	Timeout:   5 * time.Second,
	Transport: &http.Transport{DisableKeepAlives: true},
}

// getOK is nil when url answers 200.
func getOK(url string) error {
	resp, err := probeClient.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s answers %s: %s", url, resp.Status, body)
	}
	return nil
}
