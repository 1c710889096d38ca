package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// DaemonConfig is how a shoal daemon is started.
type DaemonConfig struct {
	// Registries are the values of --registry: HOST or HOST=URL.
	Registries []string
	// DefaultRegistry is the value of --default-registry, left out if empty.
	DefaultRegistry string
	// Auth is the value of --auth; empty means open.
	Auth string
	// Descriptors is how many file descriptors the process may have; 0 leaves
	// the limit of the test.
	Descriptors int
	// Extra flags come last.
	Extra []string
}

// Daemon is a running `shoal daemon`.
type Daemon struct {
	// Addr is where runtimes reach the mirror, host:port. It stays the same
	// through [Daemon.Restart].
	Addr string
	// Admin is the address of the admin endpoints, host:port.
	Admin string
	// DataDir is the daemon's --data-dir.
	DataDir string

	node   *Node
	config DaemonConfig
	peer   string
	proc   *Process
}

// StartDaemon runs a daemon on the node until the end of the test, and returns
// when it is ready.
func (n *Node) StartDaemon(t testing.TB, config DaemonConfig) *Daemon {
	t.Helper()
	if config.Auth == "" {
		config.Auth = "open"
	}
	d := &Daemon{DataDir: n.Path("shoal"), node: n, config: config}
	d.proc = startOnPorts(t, 3, func(ports []string) (*Process, error) {
		d.Addr = net.JoinHostPort(n.Addr, ports[0])
		d.Admin = net.JoinHostPort(n.Addr, ports[1])
		d.peer = net.JoinHostPort(n.Addr, ports[2])
		return d.start(t)
	})
	return d
}

func (d *Daemon) start(t testing.TB) (*Process, error) {
	t.Helper()
	binary, err := shoalBinary()
	if err != nil {
		// Not a thing that may be missing: it is what is under test.
		t.Fatal(err)
	}
	args := []string{"daemon", "--listen", d.Addr, "--admin-listen", d.Admin, "--data-dir", d.DataDir, "--auth", d.config.Auth}
	if daemonKnows("--peer-listen") {
		args = append(args, "--peer-listen", d.peer)
	}
	for _, r := range d.config.Registries {
		args = append(args, "--registry", r)
	}
	if d.config.DefaultRegistry != "" {
		args = append(args, "--default-registry", d.config.DefaultRegistry)
	}
	args = append(args, d.config.Extra...)
	if n := d.config.Descriptors; n > 0 {
		// Both limits: Go raises the soft one to the hard one.
		args = append([]string{fmt.Sprintf("--nofile=%[1]d:%[1]d", n), binary}, args...)
		binary = NeedProgram(t, "prlimit", "util-linux")
	}
	proc := d.node.Start(t, "shoal", d.node.Command(binary, args...))
	return proc, proc.waitReady(func() error { return getOK("http://" + d.Admin + "/readyz") })
}

// URL is the mirror's base URL.
func (d *Daemon) URL() string { return "http://" + d.Addr }

// Stop ends the daemon as an operator would.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.proc.Stop(t)
}

// Kill ends the daemon as a crash would.
func (d *Daemon) Kill() { d.proc.Kill() }

// Restart starts a daemon that has ended again, on the same addresses and data.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	proc, err := d.start(t)
	if err != nil {
		t.Fatal(err)
	}
	d.proc = proc
}

// Pid is the daemon's process id.
func (d *Daemon) Pid() int { return d.proc.Pid() }

// Exited says whether the daemon has ended, and how.
func (d *Daemon) Exited() (bool, error) { return d.proc.Exited() }

// Metric is the value of one series of the daemon, named as /metrics prints it,
// with its labels.
func (d *Daemon) Metric(series string) (float64, error) {
	resp, err := probeClient.Get("http://" + d.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, fmt.Errorf("reading the daemon's metrics: %w", err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the daemon has no metric %s", series)
}

// PeakMemory is the most memory that the process has had resident, in bytes
// (VmHWM of proc(5)).
func (d *Daemon) PeakMemory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmHWM", d.Pid())
}

// daemonKnows says whether the daemon has a flag. The peer endpoint came later
// than the mirror, and its default port is a fixed one.
func daemonKnows(flag string) bool {
	return strings.Contains(daemonHelp(), flag)
}

var daemonHelp = sync.OnceValue(func() string {
	binary, err := shoalBinary()
	if err != nil {
		return ""
	}
	n := Node{Dir: "/"}
	help, err := n.Run(binary, "daemon", "--help")
	if err != nil {
		return ""
	}
	return help
})

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
