package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/shoalproject/shoal/test/bench/netns"
)

const (
	readyLimit = 30 * time.Second
	stopLimit  = 15 * time.Second
	pollEvery  = 10 * time.Millisecond
	logTail    = 4 << 10 // bytes of a log that an error shows
)

// Place is where a process runs: in a namespace, or ("") on the machine's own
// network.
type Place struct {
	Netns string
	Addr  string
}

// Here is the machine's loopback.
var Here = Place{Addr: "127.0.0.1"}

// At is a node of a network.
func At(n *netns.Node) Place { return Place{Netns: n.Netns, Addr: n.Addr} }

// Within is the loopback of a node.
func Within(n *netns.Node) Place { return Place{Netns: n.Netns, Addr: "127.0.0.1"} }

// dial connects to an address from the place.
func (p Place) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.Netns != "" {
		return netns.Dial(ctx, p.Netns, addr)
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

func (p Place) command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	if p.Netns != "" {
		// nsenter becomes the program, so that its process id is the program's.
		args = append([]string{"--net=/run/netns/" + p.Netns, "--", path}, args...)
		path = "nsenter"
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// forks is served by one goroutine that never gives up its thread. The kernel
// sends Pdeathsig when the thread that forked ends, not when its process does,
// and threads that were in a namespace end.
var forks = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func fork(cmd *exec.Cmd) error {
	err := make(chan error, 1)
	forks() <- func() { err <- cmd.Start() }
	return <-err
}

// Process is a running server.
type Process struct {
	name   string
	at     Place
	cmd    *exec.Cmd
	log    string
	exited chan struct{} // closed once err is set
	err    error
}

// start runs a server with its output in a file of the bed. It is stopped with
// the bed, if not before.
func (b *Bed) start(at Place, name string, args ...string) (*Process, error) {
	return b.startWith(at, nil, nil, name, args...)
}

// Launch starts any program, and does not wait for anything.
func (b *Bed) Launch(at Place, name string, args ...string) (*Process, error) {
	return b.start(at, name, args...)
}

// startWith is start for a process whose standard input and output are given,
// unless they are nil.
func (b *Bed) startWith(at Place, stdin, stdout *os.File, name string, args ...string) (*Process, error) {
	cmd, err := at.command(context.Background(), name, args...)
	if err != nil {
		return nil, err
	}
	dir, about := b.Dir, filepath.Base(name)
	if b.Logs != "" {
		dir = b.Logs
	}
	if at.Netns != "" {
		about += "-" + at.Netns
	}
	log, err := os.CreateTemp(dir, fmt.Sprintf("log-%s-*", about))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// An interface that holds a nil *os.File is not nil.
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if err := fork(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &Process{name: about, at: at, cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	b.Defer(p.Stop)
	return p, nil
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Gone reports whether the process has ended.
func (p *Process) Gone() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Kill ends the process without a warning. Killing twice is fine.
func (p *Process) Kill() {
	// It may have gone by itself; then there is nothing to kill.
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// StopAll is Stop for many, at the same time.
func StopAll(list ...*Process) error {
	for _, p := range list {
		if !p.Gone() {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	var errs []error
	for _, p := range list {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}

// Stop ends the process as an operator would. Stopping twice is fine.
func (p *Process) Stop() error {
	if p.Gone() {
		return nil
	}
	// It may go by itself in between; then there is nothing to signal.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, stopLimit)
	}
}

// waitReady polls ready until it returns nil.
func (p *Process) waitReady(ready func() error) error {
	deadline := time.NewTimer(readyLimit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("%s ended: %v: %s", p.name, p.err, p.tail())
		case <-deadline.C:
			return fmt.Errorf("%s is not ready within %v: %w: %s", p.name, readyLimit, err, p.tail())
		}
	}
}

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

// Self runs this program with other arguments at a place, and decodes the JSON
// that it prints.
func Self(ctx context.Context, at Place, into any, args ...string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd, err := at.command(ctx, exe, args...)
	if err != nil {
		return err
	}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("client %v: %w: %s", args, err, exit.Stderr)
		}
		return fmt.Errorf("client %v: %w", args, err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("client %v: %w", args, err)
	}
	return nil
}

// ports returns addresses of a place to listen at: with the given ports in a
// namespace, where nobody else is, else with such as were free a moment ago.
func (p Place) ports(wanted ...int) ([]string, error) {
	out := make([]string, len(wanted))
	for i, port := range wanted {
		if p.Netns != "" {
			out[i] = net.JoinHostPort(p.Addr, strconv.Itoa(port))
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(p.Addr, "0"))
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		// Open until all are chosen, so that they differ.
		defer l.Close()
		out[i] = l.Addr().String()
	}
	return out, nil
}
