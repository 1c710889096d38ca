package main

import (
	"errors"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

// TestScripts runs the scripts of testdata: the command as users meet it.
func TestScripts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() }) // the scripts run in parallel, after this function
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TAKEN", taken.Addr().String())
			env.Setenv("ROOT", "")
			if os.Geteuid() == 0 {
				env.Setenv("ROOT", "yes")
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": exitCode,
			"one-line": func(ts *testscript.TestScript, neg bool, _ []string) {
				if text := ts.ReadFile("stderr"); len(text) == 0 || countLines(text) != 1 {
					ts.Fatalf("stderr is not one line:\n%s", text)
				}
			},
		},
	})
}

func countLines(s string) (n int) {
	for _, c := range s {
		if c == '\n' {
			n++
		}
	}
	return n
}

// exitCode runs shoal with arguments and insists on the exit code that is
// given first.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("shoal", args[1:]...)
	code := "0"
	if err != nil {
		code = codeOf(err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// codeOf returns the exit code in an error of os/exec, as text.
func codeOf(err error) string {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}
