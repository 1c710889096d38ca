package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// binary builds shoal once for all tests of a test binary.
var binary = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("SHOAL_BINARY"); given != "" {
		return filepath.Abs(given)
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/shoalproject/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the source of shoal: %w", err)
	}
	dir, err := os.MkdirTemp("", "shoal-rig-")
	if err != nil {
		return "", err
	}
	built = dir
	file := filepath.Join(dir, "shoal")
	cmd := exec.Command("go", "build", "-o", file, "./cmd/shoal")
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building shoal: %w\n%s", err, out)
	}
	return file, nil
})

// built is the directory of the binary that was built, empty if none was.
var built string

// Main runs the tests and removes the binary that they built. Each package that
// uses the rig calls it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// Shoal is the path of the shoal binary under test.
func Shoal(tb testing.TB) string {
	tb.Helper()
	file, err := binary()
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

// Has reports whether a command of the binary under test knows a flag, such as
// Has(tb, "daemon", "--zone").
func Has(tb testing.TB, command, flag string) bool {
	tb.Helper()
	help, err := exec.Command(Shoal(tb), command, "--help").CombinedOutput()
	if err != nil {
		tb.Fatalf("shoal %s --help: %v", command, err)
	}
	return strings.Contains(string(help), flag+" ")
}

// Command is a run of shoal with the arguments, in an environment that holds
// nothing of the tester's: HOME is home, or an empty directory.
func Command(tb testing.TB, home string, args ...string) *exec.Cmd {
	tb.Helper()
	if home == "" {
		home = tb.TempDir()
	}
	cmd := exec.Command(Shoal(tb), args...)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	return cmd
}
