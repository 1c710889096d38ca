// Package bed runs the real processes that are measured: shoal, Debian's
// docker-registry and nginx, and this program itself as a client. It knows
// nothing of figures.
//
// Processes must be started by the main goroutine, locked to the main thread:
// they are killed by the kernel when the thread that started them ends.
package bed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shoalproject/shoal/test/bench/netns"
)

// Bed is a directory, and what was started with it. Its methods must not be
// called concurrently.
type Bed struct {
	// Dir is on the disk that is measured.
	Dir string
	// Shoal is the path of the binary under test.
	Shoal string
	// Logs is a directory that keeps what processes log; "" is one that goes
	// with the bed.
	Logs string

	undo []func() error
	made int // names of directories differ by it
}

// New makes a bed in a new directory below parent; "" is the system's
// directory for temporary files.
func New(parent, shoal string) (*Bed, error) {
	dir, err := os.MkdirTemp(parent, "shoal-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory to work in: %w", err)
	}
	b := &Bed{Dir: dir, Shoal: shoal}
	b.Defer(func() error { return os.RemoveAll(dir) })
	return b, nil
}

// Defer does something before what was deferred earlier is done, when the bed
// is closed.
func (b *Bed) Defer(f func() error) { b.undo = append(b.undo, f) }

// Close stops and removes everything.
func (b *Bed) Close() error {
	var errs []error
	for _, f := range slices.Backward(b.undo) {
		errs = append(errs, f())
	}
	b.undo = nil
	return errors.Join(errs...)
}

// NewDir makes an empty directory.
func (b *Bed) NewDir(name string) (string, error) {
	b.made++
	dir := filepath.Join(b.Dir, fmt.Sprintf("%s-%d", name, b.made))
	return dir, os.Mkdir(dir, 0o700)
}

// UseMemory puts what the bed's directory will hold into memory, so that no
// disk is measured. It comes before anything else.
func (b *Bed) UseMemory() error {
	// Its size is what it may hold at most, not what it takes.
	if err := unix.Mount("shoal-bench", b.Dir, "tmpfs", 0, "size=90%,mode=0700"); err != nil {
		return fmt.Errorf("mounting a tmpfs on %s: %w", b.Dir, err)
	}
	b.Defer(func() error {
		if err := unix.Unmount(b.Dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", b.Dir, err)
		}
		return nil
	})
	return nil
}

// Network makes a network that goes with the bed.
func (b *Bed) Network() (*netns.Network, error) {
	nw, err := netns.New()
	if err != nil {
		return nil, err
	}
	b.Defer(nw.Close)
	return nw, nil
}

// Build compiles a package of the repository, by its path from the root, into
// dir, and returns the path of the binary.
func Build(dir, pkg string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/shoalproject/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the repository (run in test/bench, or name binaries): %w", err)
	}
	path := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, "./"+pkg)
	cmd.Dir = strings.TrimSpace(string(out))
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, b)
	}
	return path, nil
}

// Need is something that the machine must have.
type Need struct {
	// Program is looked for in PATH.
	Program string
	// Package is Debian's that has it.
	Package string
}

// What the rows need.
var (
	DockerRegistry = Need{"docker-registry", "docker-registry"}
	Nginx          = Need{"nginx", "nginx-light"}
	// Namespaces are what package netns runs.
	Namespaces = []Need{{"ip", "iproute2"}, {"tc", "iproute2"}, {"nsenter", "util-linux"}}
)

// ExtendPath adds the directories of the system's administrator to PATH, where
// Debian has most of these programs, and other users have not.
func ExtendPath() error {
	return os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

// Missing says what of it is not there, naming the packages; nil if nothing.
func Missing(root bool, needs ...Need) error {
	var lack, packages []string
	for _, n := range needs {
		if _, err := exec.LookPath(n.Program); err != nil {
			lack = append(lack, n.Program)
			if !slices.Contains(packages, n.Package) {
				packages = append(packages, n.Package)
			}
		}
	}
	var errs []error
	if lack != nil {
		errs = append(errs, fmt.Errorf("needs %s: apt-get install %s", strings.Join(lack, ", "), strings.Join(packages, " ")))
	}
	if root && os.Geteuid() != 0 {
		errs = append(errs, errors.New("needs root, for network namespaces"))
	}
	return errors.Join(errs...)
}
