package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Terminal is a program that runs in a pseudo-terminal of its own, of 80
// columns, as its foreground process.
type Terminal struct {
	*Process
	screen *os.File

	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

// CtrlC is the key that interrupts.
const CtrlC = "\x03"

// StartTerminal runs a program of this node in a terminal. It ends with the
// test.
func (n *Node) StartTerminal(t testing.TB, cmd *exec.Cmd) *Terminal {
	t.Helper()
	screen, tty, err := pty.Open()
	if err != nil {
		t.Fatalf("opening a terminal: %v", err)
	}
	defer tty.Close() // the program has it
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatalf("the size of a terminal: %v", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	term := &Terminal{screen: screen}
	if term.Process, err = begin(cmd.Path, cmd); err != nil {
		screen.Close()
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(term, screen) // ends with EIO when the program has
	}()
	t.Cleanup(func() {
		term.Process.Kill()
		<-read
		screen.Close()
		if t.Failed() {
			t.Logf("on the terminal:\n%s", term.Text())
		}
	})
	return term
}

// Write takes in what the program shows.
func (term *Terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.Write(p)
}

// Text is all that was shown so far, control sequences included.
func (term *Terminal) Text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

// Type presses keys.
func (term *Terminal) Type(t testing.TB, keys string) {
	t.Helper()
	if _, err := io.WriteString(term.screen, keys); err != nil {
		t.Fatalf("typing: %v", err)
	}
}

// Shows waits for a text.
func (term *Terminal) Shows(t testing.TB, text string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("the terminal shows %q", text), time.Minute, func() error {
		if !strings.Contains(term.Text(), text) {
			return errors.New("not yet")
		}
		return nil
	})
}
