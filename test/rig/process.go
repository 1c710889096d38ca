package rig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// startLimit bounds the time that a process takes until it is ready.
	startLimit = 60 * time.Second
	// stopLimit bounds the time that a process takes to end after SIGTERM. The
	// daemon gives the responses that it is sending 20 s.
	stopLimit = 30 * time.Second
	// pollEvery is the distance between two looks at a condition.
	pollEvery = 20 * time.Millisecond
	// logTail is how much of a process's log a failed test prints, in bytes.
	logTail = 16 << 10
	// portTries bounds the attempts to start a server whose port was taken by
	// another process between choosing and binding it.
	portTries = 5
)

// Process is one running program. Its output goes to a file, and the end of
// that file is printed when the test fails.
type Process struct {
	Name string

	tb     testing.TB
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed once the program has ended
	once   sync.Once     // guards the deliberate end
}

// starts is served by one goroutine that never gives up its thread. The kernel
// sends Pdeathsig when the thread that forked ends, so that thread must live as
// long as the test binary.
var starts = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start runs cmd under a name. The process ends with the test, and by the
// kernel if the test binary dies first.
func Start(tb testing.TB, name string, cmd *exec.Cmd) *Process {
	tb.Helper()
	p := &Process{Name: name, tb: tb, cmd: cmd, exited: make(chan struct{})}
	out, err := os.CreateTemp(tb.TempDir(), filepath.Base(name)+"-*.log")
	if err != nil {
		tb.Fatal(err)
	}
	defer out.Close()
	p.log = out.Name()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		tb.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = cmd.Wait()
		close(p.exited)
	}()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of %s:\n%s", name, p.tail())
		}
	})
	tb.Cleanup(p.Stop)
	return p
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Code waits for the process to end and returns its exit code, -1 if a signal
// ended it.
func (p *Process) Code(limit time.Duration) int {
	p.tb.Helper()
	if !p.waitExit(limit) {
		p.tb.Fatalf("%s did not end within %v", p.Name, limit)
	}
	p.once.Do(func() {}) // it has ended as the test expects
	return p.cmd.ProcessState.ExitCode()
}

// Stop ends the process with SIGTERM. The test fails if the process has ended
// by itself before, or does not end in time. Stopping twice is allowed.
func (p *Process) Stop() {
	p.once.Do(func() {
		if p.Exited() {
			p.tb.Errorf("%s ended by itself: %v", p.Name, p.cmd.ProcessState)
			return
		}
		p.Signal(syscall.SIGTERM)
		p.Signal(syscall.SIGCONT) // a frozen process would not notice
		if !p.waitExit(stopLimit) {
			p.tb.Errorf("%s did not end within %v of SIGTERM", p.Name, stopLimit)
			p.Signal(syscall.SIGKILL)
			<-p.exited
		}
	})
}

// Kill ends the process with SIGKILL, as a crash would.
func (p *Process) Kill() {
	p.once.Do(func() {
		p.Signal(syscall.SIGKILL)
		<-p.exited
	})
}

// Freeze stops the process where it is: its connections stay open, and it
// answers nothing.
func (p *Process) Freeze() { p.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.Signal(syscall.SIGCONT) }

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) {
	// The process may end between the look and the signal; the wait that
	// follows finds out.
	_ = p.cmd.Process.Signal(s)
}

// Log is all that the process has written so far.
func (p *Process) Log() string {
	p.tb.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.tb.Fatal(err)
	}
	return string(b)
}

// LogSize is the number of bytes that the process has written so far.
func (p *Process) LogSize() int64 {
	p.tb.Helper()
	st, err := os.Stat(p.log)
	if err != nil {
		p.tb.Fatal(err)
	}
	return st.Size()
}

// Memory is the resident memory of the process in bytes (VmRSS of proc(5)), 0
// if the process has ended.
func (p *Process) Memory() int64 { return p.memory("VmRSS:") }

// PeakMemory is the largest resident memory that the process has had, in bytes
// (VmHWM of proc(5)), 0 if the process has ended.
func (p *Process) PeakMemory() int64 { return p.memory("VmHWM:") }

func (p *Process) memory(field string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				p.tb.Errorf("reading the memory of %s: %v", p.Name, err)
			}
			return kib << 10
		}
	}
	return 0
}

// Descriptors is the number of files that the process has open, 0 if it has
// ended.
func (p *Process) Descriptors() int {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		return 0
	}
	return len(open)
}

func (p *Process) waitExit(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// tail is the end of the process's log.
func (p *Process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-logTail), io.SeekStart)
	}
	b, err := io.ReadAll(io.LimitReader(f, logTail))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

var errEnded = errors.New("the process ended before it was ready")

// waitReady polls ready until it returns nil. It gives up when the process
// ends.
func (p *Process) waitReady(ready func() error) error {
	deadline := time.Now().Add(startLimit)
	for {
		if p.Exited() {
			return errEnded
		}
		err := ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %v: %w", p.Name, startLimit, err)
		}
		<-time.After(pollEvery)
	}
}

// Eventually polls cond until it returns nil, and fails the test if it does
// not within the limit.
func Eventually(tb testing.TB, what string, limit time.Duration, cond func() error) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		<-time.After(pollEvery)
	}
}

// freePorts returns n ports that were free on host a moment ago.
func freePorts(tb testing.TB, host string, n int) []string {
	tb.Helper()
	ports := make([]string, n)
	for i := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			tb.Fatalf("looking for a free port on %s: %v", host, err)
		}
		// The listeners stay open until all ports are chosen, so that the ports
		// differ.
		defer l.Close()
		ports[i] = net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

// startOnPorts starts a server on n free ports of host, again with others while
// another process has taken one of them.
func startOnPorts(tb testing.TB, host string, n int, start func(ports []string) (*Process, func() error)) *Process {
	tb.Helper()
	for try := 1; ; try++ {
		p, ready := start(freePorts(tb, host, n))
		err := p.waitReady(ready)
		if err == nil {
			return p
		}
		if try < portTries && errors.Is(err, errEnded) && strings.Contains(strings.ToLower(p.tail()), "address already in use") {
			p.once.Do(func() {})
			continue
		}
		tb.Fatalf("starting %s: %v", p.Name, err)
	}
}
