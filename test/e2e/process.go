package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// startLimit bounds how long a process may take until it is ready. A cold
	// containerd on two busy cores needs a few seconds.
	startLimit = 60 * time.Second
	// stopLimit bounds how long a process may take to go after SIGTERM. The daemon
	// gives what it is serving 20 s.
	stopLimit = 30 * time.Second
	// pollEvery is the distance between two looks at a condition.
	pollEvery = 20 * time.Millisecond
	// logTail is how much of a process's log a failed test prints, in bytes.
	logTail = 32 << 10
	// portTries bounds the attempts to start a server whose port was taken by
	// somebody else between choosing and binding it.
	portTries = 5
)

// Process is one running program. Its output goes to a file, of which the end
// is printed when the test fails.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string

	exited  chan struct{} // closed once err is set
	err     error
	stopped sync.Once
}

// starts is served by one goroutine that never gives up its thread. Pdeathsig
// is delivered when the thread that forked ends, not when the process does, so
// only a thread as old as the process may fork children that carry it.
var starts = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go serveStarts(work)
	return work
})

func serveStarts(work <-chan func()) {
	runtime.LockOSThread()
	for f := range work {
		f()
	}
}

// startProcess runs cmd with its output in the file log. The process is ended
// with the test, and by the kernel if the test binary dies first.
func startProcess(t testing.TB, name, log string, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := launch(name, log, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.tail())
		}
	})
	t.Cleanup(func() { p.Stop(t) })
	return p
}

func launch(name, log string, cmd *exec.Cmd) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	p, err := begin(name, cmd)
	if err == nil {
		p.log = log
	}
	return p, err
}

// begin starts cmd, which the kernel ends if the test binary dies first.
func begin(name string, cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error, 1)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &Process{name: name, cmd: cmd, exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Code waits for the process to end and returns its exit code, -1 if a signal
// ended it.
func (p *Process) Code(t testing.TB) int {
	t.Helper()
	if !p.waitExit(runLimit) {
		t.Fatalf("%s did not end within %v", p.name, runLimit)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Log is all that the process has written so far.
func (p *Process) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Exited says whether the process has ended, and how.
func (p *Process) Exited() (bool, error) {
	select {
	case <-p.exited:
		return true, p.err
	default:
		return false, nil
	}
}

// Stop ends the process with SIGTERM. One that is still there after the limit
// is killed, and the test fails: every program here is expected to go when
// told. Stopping twice is fine.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	p.stopped.Do(func() {
		if gone, err := p.Exited(); gone {
			t.Errorf("%s ended by itself: %v", p.name, err)
			return
		}
		p.signal(syscall.SIGTERM)
		p.signal(syscall.SIGCONT) // one that is frozen would not hear
		if !p.waitExit(stopLimit) {
			t.Errorf("%s did not end within %v of SIGTERM", p.name, stopLimit)
			p.signal(syscall.SIGKILL)
			<-p.exited
		}
	})
}

// Kill ends the process with SIGKILL, as a crash would.
func (p *Process) Kill() {
	p.stopped.Do(func() {
		p.signal(syscall.SIGKILL)
		<-p.exited
	})
}

// Freeze stops the process where it is, with SIGSTOP: its connections stay open,
// and it answers nothing.
func (p *Process) Freeze() { p.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.signal(syscall.SIGCONT) }

func (p *Process) signal(s syscall.Signal) {
	// The process may be gone between the look and the signal; the wait that
	// follows tells.
	_ = p.cmd.Process.Signal(s)
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

// errEndedEarly is what waitReady returns for a process that ended early.
var errEndedEarly = errors.New("ended before it was ready")

// waitReady polls ready until it returns nil. It gives up at once when the
// process ends.
func (p *Process) waitReady(ready func() error) error {
	err := poll(startLimit, func() (bool, error) {
		if gone, err := p.Exited(); gone {
			return true, fmt.Errorf("%s %w: %v", p.name, errEndedEarly, err)
		}
		err := ready()
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", p.name, err)
	}
	return nil
}

// poll calls cond until it is done or the limit has passed, and returns the
// last error that cond returned.
func poll(limit time.Duration, cond func() (done bool, err error)) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := cond()
		if done {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}

// Eventually fails the test unless cond returns nil before the limit.
func Eventually(t testing.TB, what string, limit time.Duration, cond func() error) {
	t.Helper()
	err := poll(limit, func() (bool, error) {
		err := cond()
		return err == nil, err
	})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// freePorts returns n ports that were free on loopback a moment ago. They may
// be taken again before they are used: who starts a server on one retries, see
// [portConflict].
func freePorts(n int) ([]string, error) {
	ports := make([]string, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		// Kept open until all are chosen, so that they differ.
		defer l.Close()
		ports[i] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// portConflict says whether the process ended because its port was taken.
func portConflict(p *Process, err error) bool {
	return errors.Is(err, errEndedEarly) && strings.Contains(strings.ToLower(p.tail()), "address already in use")
}

// startOnPorts starts a server on n free ports, again with others as long as
// they turn out to be taken.
func startOnPorts(t testing.TB, n int, start func(ports []string) (*Process, error)) *Process {
	t.Helper()
	var p *Process
	for range portTries {
		ports, err := freePorts(n)
		if err != nil {
			t.Fatal(err)
		}
		p, err = start(ports)
		if err == nil {
			return p
		}
		if p == nil || !portConflict(p, err) {
			t.Fatal(err)
		}
		p.stopped.Do(func() {}) // it has ended, and that is no fault
	}
	t.Fatalf("%s found its port taken %d times", p.name, portTries)
	return nil
}
