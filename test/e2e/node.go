package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Node is one machine of the test: a directory, an address, and the processes
// that run there. By default it is this machine on loopback. With NetNS set its
// processes run inside that network namespace, so that many nodes with links of
// their own fit on one machine.
type Node struct {
	// Name is short and unique within the test; logs are named by it.
	Name string
	// Addr is the IP address that servers of this node listen on. The test
	// itself must be able to reach it.
	Addr string
	// Dir holds everything that the node writes. Its path is short: a unix
	// socket below it must fit into 108 bytes.
	Dir string
	// NetNS is the name of an existing network namespace, or empty.
	NetNS string

	link   string // this machine's end of the node's link, if it has one
	starts int    // of processes; numbers their logs
}

// NewNode makes a node on loopback. Its directory goes with the test, after
// what its processes left mounted there.
func NewNode(t testing.TB, name string) *Node {
	t.Helper()
	return NewNodeAt(t, name, "127.0.0.1", "")
}

// NewNodeAt makes a node with an address of its own inside the network
// namespace netns.
func NewNodeAt(t testing.TB, name, addr, netns string) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatalf("making the directory of node %s: %v", name, err)
	}
	n := &Node{Name: name, Addr: addr, Dir: dir, NetNS: netns}
	t.Cleanup(func() {
		if err := unmountBelow(dir); err != nil {
			t.Errorf("cleaning up node %s: %v", name, err)
			return // never remove files through a mount that is still there
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cleaning up node %s: %v", name, err)
		}
	})
	return n
}

// Path is a path below the node's directory.
func (n *Node) Path(elem ...string) string {
	return filepath.Join(append([]string{n.Dir}, elem...)...)
}

// Command prepares a program to run on this node.
func (n *Node) Command(program string, args ...string) *exec.Cmd {
	if n.NetNS != "" {
		// nsenter changes the network namespace only. `ip netns exec` would
		// give each process a mount namespace too, and containerd's mounts
		// would be hidden from its shims.
		args = append([]string{"--net=/var/run/netns/" + n.NetNS, program}, args...)
		program = "nsenter"
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = n.Dir
	cmd.Env = cleanEnviron()
	return cmd
}

// Start runs a program on this node until the end of the test. Each start has a
// log of its own.
func (n *Node) Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	n.starts++
	log := n.Path(fmt.Sprintf("%d-%s.log", n.starts, name))
	return startProcess(t, n.Name+"/"+name, log, cmd)
}

// Write puts a file below the node's directory and returns its path.
func (n *Node) Write(t testing.TB, content string, elem ...string) string {
	t.Helper()
	path := n.Path(elem...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// cleanEnviron is the environment without what would configure the programs
// under test from outside: the daemon reads SHOAL_*, and a proxy setting would
// send loopback requests elsewhere.
func cleanEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		switch name {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NOTIFY_SOCKET",
			"CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER":
			return true
		}
		return strings.HasPrefix(name, "SHOAL_")
	})
}

// unmountBelow unmounts everything that is mounted below dir, the innermost
// first.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		if err := syscall.Unmount(point, 0); err != nil {
			if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmounting %s: %w", point, err)
			}
		}
	}
	return nil
}

// mountsBelow lists the mount points below dir, outermost first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// proc(5): the fifth field is the mount point, blanks escaped. Paths
		// made by MkdirTemp have none to escape.
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, lines.Err()
}

// killByArgument ends the processes that carry arg on their command line, a
// path of this test: containerd's shims are no children of ours, and outlive
// the containerd that started them.
func killByArgument(arg string) error {
	return poll(stopLimit, func() (bool, error) {
		pids, err := pidsByArgument(arg)
		if err != nil || len(pids) == 0 {
			return true, err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return false, fmt.Errorf("processes %v with %s still run", pids, arg)
	})
}

func pidsByArgument(arg string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		if slices.Contains(strings.Split(string(b), "\x00"), arg) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// runLimit bounds one run of a client program such as ctr or skopeo.
const runLimit = 2 * time.Minute

// Run runs a program on this node to its end and returns what it wrote on
// standard output. The error has its standard error with it.
func (n *Node) Run(program string, args ...string) (string, error) {
	return runToEnd(n.Command(program, args...))
}

func runToEnd(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A grandchild that keeps our pipe must not keep us: after this long Wait
	// closes it.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	overdue := time.AfterFunc(runLimit, func() { _ = cmd.Process.Kill() })
	defer overdue.Stop()
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}
