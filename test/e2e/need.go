package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// missing ends the test: as a failure in CI, where everything has to be there,
// as a skip elsewhere.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("with CI=true nothing may be missing: "+format, args...)
	}
	t.Skipf(format, args...)
}

// NeedRoot is for tests that mount or make namespaces.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
}

// NeedProgram returns the path of a program that the machine must have.
func NeedProgram(t testing.TB, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "needs %s (Debian package %s): %v", name, debianPackage, err)
	}
	return path
}

// snapshotterFor chooses containerd's snapshotter for a directory: overlayfs
// where the kernel mounts one there, else native, which copies. Inside a
// container dir itself often is an overlay, on which no other one mounts.
func snapshotterFor(t testing.TB, dir string) string {
	t.Helper()
	if err := tryOverlay(dir); err != nil {
		t.Logf("using the native snapshotter: %v", err)
		return "native"
	}
	return "overlayfs"
}

func tryOverlay(dir string) (err error) {
	probe, err := os.MkdirTemp(dir, "overlay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(probe)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(probe+"/"+sub, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", probe)
	if err := syscall.Mount("overlay", probe+"/merged", "overlay", 0, options); err != nil {
		return fmt.Errorf("mounting an overlay below %s: %w", dir, err)
	}
	return syscall.Unmount(probe+"/merged", 0)
}
