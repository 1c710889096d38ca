package systemd_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalproject/shoal/systemd"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// manager is the socket of a service manager, that returns what it is told.
func manager(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		b := make([]byte, 100)
		conn.SetReadDeadline(time.Now().Add(patience))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestAttend(t *testing.T) {
	told := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	os.Unsetenv("WATCHDOG_PID")
	var stuck atomic.Bool
	asked := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		systemd.Attend(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
			if stuck.Load() {
				select {
				case asked <- struct{}{}:
				default:
				}
				return errors.New("stuck")
			}
			return nil
		})
	}()
	if s := told(); s != "READY=1" {
		t.Fatalf("first told %q", s)
	}
	for range 3 {
		if s := told(); s != "WATCHDOG=1" {
			t.Fatalf("then told %q", s)
		}
	}
	stuck.Store(true)
	for range 5 { // rounds without an answer
		<-asked
	}
	cancel()
	<-done
	// What was said before it was stuck may still lie there: one round under
	// way, and one that this test had not read.
	for n := 0; ; n++ {
		switch s := told(); {
		case s == "STOPPING=1":
			return
		case s != "WATCHDOG=1" || n > 3:
			t.Fatalf("at the end told %q", s)
		}
	}
}

// Without a manager there is nothing to do but wait.
func TestAttendNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	systemd.Attend(ctx, slog.New(slog.DiscardHandler), nil)
}

// TestSockets hands sockets to another process of this test, as systemd does.
func TestSockets(t *testing.T) {
	if os.Getenv("SOCKETS_CHILD") != "" {
		child()
		return
	}
	for _, c := range []struct {
		names string // of the sockets
		want  string // what the process says
	}{
		{"listen", "listen"},
		{"admin-listen:listen", "admin-listen listen"},
		{"listen:listen", `two sockets from systemd are called "listen"`},
		{"shoal.socket", `socket "shoal.socket" from systemd: its unit needs FileDescriptorName=, one of listen, admin-listen`},
		{"", ""},
	} {
		t.Run(c.names, func(t *testing.T) {
			// The shell has the process ID that its program will have.
			cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestSockets$'`, os.Args[0])
			cmd.Env = append(os.Environ(), "SOCKETS_CHILD=yes", "LISTEN_FDNAMES="+c.names)
			names := strings.FieldsFunc(c.names, func(r rune) bool { return r == ':' })
			cmd.Env = append(cmd.Env, "LISTEN_FDS="+[]string{"0", "1", "2"}[len(names)])
			for range names {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				f, err := l.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := ""
			for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
				if s, ok := strings.CutPrefix(lines.Text(), "child: "); ok {
					got = s
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func child() {
	sockets, err := systemd.Sockets("listen", "admin-listen")
	if err != nil {
		os.Stdout.WriteString("child: " + err.Error() + "\n")
		return
	}
	var names []string
	for name, l := range sockets {
		if l.Addr().Network() == "tcp" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if again, err := systemd.Sockets("listen"); len(again) > 0 || err != nil {
		names = append(names, "given twice")
	}
	os.Stdout.WriteString("child: " + strings.Join(names, " ") + "\n")
}
