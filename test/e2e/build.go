package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// Environment variables that name binaries built before. Their names do not
// begin with SHOAL_, because the daemon takes those for its configuration.
const (
	envShoal        = "E2E_SHOAL"        // path of a shoal binary
	envContainerd2  = "E2E_CONTAINERD2"  // directory with containerd, ctr and the shim
	envContainerd17 = "E2E_CONTAINERD17" // directory with containerd
	envBuildKit     = "E2E_BUILDKIT"     // directory with buildkitd and buildctl
	envClients      = "E2E_CLIENTS"      // directory with crane, oras, regctl and helm
)

// built keeps what was built once for this run of the test binary; [Main]
// removes it.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func buildDir() (string, error) {
	built.once.Do(func() { built.dir, built.err = os.MkdirTemp("", "e2e-build-") })
	return built.dir, built.err
}

// Main runs the tests of a package, removes what they built, and returns the
// exit code. Goroutines that are left over make it fail.
func Main(m *testing.M) int {
	code := m.Run()
	if code == 0 {
		err := goleak.Find(goleak.IgnoreTopFunction("github.com/shoalproject/shoal/test/e2e.serveStarts"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, "removing what was built:", err)
			code = max(code, 1)
		}
	}
	return code
}

// goBuild builds one package in dir into a file.
func goBuild(dir, out, pkg string) error {
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s in %s: %w\n%s", pkg, dir, err, b)
	}
	return nil
}

var shoalBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(envShoal); path != "" {
		return filepath.Abs(path)
	}
	root, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "shoal")
	return path, goBuild(root, path, "./cmd/shoal")
})

// helloBinary is the program of the test image, static, for this machine.
var helloBinary = sync.OnceValues(func() ([]byte, error) {
	here, err := sourceDir()
	if err != nil {
		return nil, err
	}
	dir, err := buildDir()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "hello")
	if err := goBuild(here, path, "./testdata/hello"); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// sourceDir is the directory of this file, as the compiler saw it: packages
// elsewhere in this module run in a directory of their own.
func sourceDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("the test binary does not know its source directory: build it without -trimpath")
	}
	return filepath.Dir(file), nil
}

func repositoryRoot() (string, error) {
	here, err := sourceDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(here, "..", ".."), nil
}

// module is a Go module of its own, in a directory beside this file, that pins
// programs of others by its tool lines. Building them takes minutes, so they are
// kept in the user's cache directory, keyed by what goes into them.
type module struct {
	name string
	tags string // what to leave out, to save build time
	env  string // environment variable with a directory to use instead
}

// containerd2Binaries is the directory of containerd, ctr and the shim of the 2.x
// line.
var containerd2Binaries = sync.OnceValues(module{
	name: "containerd2", tags: "no_btrfs,no_devmapper,no_zfs,no_aufs,no_tracing", env: envContainerd2,
}.binaries)

// containerd17Binaries is the directory of containerd of the 1.7 line, alone.
var containerd17Binaries = sync.OnceValues(module{
	name: "containerd17", tags: "no_btrfs,no_devmapper,no_zfs,no_aufs,no_tracing", env: envContainerd17,
}.binaries)

// buildkitBinaries is the directory of buildkitd and buildctl.
var buildkitBinaries = sync.OnceValues(module{name: "buildkit", env: envBuildKit}.binaries)

// clientsBinaries is the directory of crane, oras, regctl and helm.
var clientsBinaries = sync.OnceValues(module{name: "clients", env: envClients}.binaries)

func (m module) binaries() (string, error) {
	if dir := os.Getenv(m.env); dir != "" {
		return filepath.Abs(dir)
	}
	here, err := sourceDir()
	if err != nil {
		return "", err
	}
	source := filepath.Join(here, m.name)
	key, err := m.key(source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for a place to keep %s: %w", m.name, err)
	}
	dir := filepath.Join(cache, "shoal-e2e", m.name+"-"+key)
	return dir, m.build(source, dir)
}

func (m module) key(source string) (string, error) {
	hash := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", fmt.Errorf("reading what pins %s: %w", m.name, err)
		}
		hash.Write(b)
	}
	fmt.Fprint(hash, m.tags, runtime.GOARCH, runtime.Version())
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

// build fills dir, once: two test binaries at the same time wait for each other,
// and a build that was cut short leaves no dir behind.
func (m module) build(source, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	partial, err := os.MkdirTemp(filepath.Dir(dir), "partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	cmd := exec.Command("go", "build", "-trimpath", "-tags", m.tags, "-o", partial+"/", "tool")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", m.name, err, b)
	}
	return os.Rename(partial, dir)
}
