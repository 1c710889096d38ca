package store

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

const (
	killDirEnv = "SHOAL_STORE_TEST_KILL_DIR"
	killAtEnv  = "SHOAL_STORE_TEST_KILL_AT"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDirEnv); dir != "" {
		os.Exit(killChild(dir))
	}
	goleak.VerifyTestMain(m)
}

// killChild runs the scenario of the crash test on a real disk and kills
// itself before the call that the environment names.
func killChild(dir string) int {
	at, err := strconv.Atoi(os.Getenv(killAtEnv))
	if err != nil {
		return 3
	}
	var calls atomic.Int64
	_, _, err = run(&hookFS{fileSystem: osFS{}, hook: func(op, name string) error {
		if calls.Add(1) == int64(at)+1 {
			self, _ := os.FindProcess(os.Getpid())
			_ = self.Kill()
			select {} // the signal is on its way
		}
		return nil
	}}, dir)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 4
	}
	return 0
}

// A real process is killed by SIGKILL before each of its calls in turn. What
// was committed before it, by the count of calls, must be there.
func TestSIGKILLAtEveryCall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts some sixty processes")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n, killed := 0, true
	for ; killed; n++ {
		if ok := t.Run(strconv.Itoa(n), func(t *testing.T) {
			dir := t.TempDir() + "/data"
			prepare(t, osFS{}, dir)
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), killDirEnv+"="+dir, killAtEnv+"="+strconv.Itoa(n))
			var stderr strings.Builder
			cmd.Stderr = &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			killed = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
			if err != nil && !killed {
				t.Fatalf("child: %v: %s", err, stderr.String())
			}
			checkAfter(t, osFS{}, dir, piecesBefore(t, n), !killed)
		}); !ok {
			return
		}
	}
	t.Logf("%d kills", n-1)
	if n < 40 {
		t.Fatalf("only %d calls passed the seam", n-1)
	}
}

// piecesBefore tells which pieces the run has committed when it comes to call
// n, by running it in memory with the same calls.
func piecesBefore(t *testing.T, n int) []int {
	mem := newMemFS()
	prepare(t, mem, "/data")
	pieces, _, err := run(&hookFS{fileSystem: mem, hook: crashAt(n)}, "/data")
	if err != nil && !errors.Is(err, errCrashed) {
		t.Fatal(err)
	}
	return pieces
}
