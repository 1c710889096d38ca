package deploy

import (
	"bytes"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// program returns the path of a program that the machine must have.
func program(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("with CI=true nothing may be missing: needs %s (Debian package %s)", name, debianPackage)
		}
		t.Skipf("needs %s (Debian package %s)", name, debianPackage)
	}
	return path
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestUnits has systemd read the units: it tells what it would ignore, and how much
// a process is kept from.
func TestUnits(t *testing.T) {
	analyze := program(t, "systemd-analyze", "systemd")
	files, err := filepath.Glob("../../deploy/systemd/*")
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v", files, err)
	}
	// The units of the system that ours name, and the program, so that nothing
	// else than ours is looked at.
	dir := t.TempDir()
	units := filepath.Join(dir, "etc/systemd/system")
	for _, path := range []string{units, filepath.Join(dir, "usr/bin")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "usr/bin/shoal"), "#!/bin/sh\n", 0o755)
	for _, name := range []string{"sysinit.target", "basic.target", "shutdown.target", "sockets.target", "network-online.target"} {
		write(t, filepath.Join(units, name), "[Unit]\nDefaultDependencies=no\n", 0o644)
	}
	var names []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(units, filepath.Base(file)), string(b), 0o644)
		names = append(names, filepath.Base(file))
	}
	out, err := exec.Command(analyze, append([]string{"--root=" + dir, "verify"}, names...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "shoal") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil && !t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".service") {
			// From 0, nothing exposed, to 10; in tenths.
			run(t, ".", analyze, "security", "--offline=yes", "--threshold=15", file)
		}
	}
}

// TestPackage builds the .deb, twice, and looks into it.
func TestPackage(t *testing.T) {
	deb := program(t, "dpkg-deb", "dpkg")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"deploy", "LICENSE"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dist"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "dist/shoal-linux-"+runtime.GOARCH), "the program", 0o755)
	nfpm := filepath.Join(dir, "nfpm")
	run(t, root, "go", "build", "-modfile=tools/release/go.mod", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	t.Setenv("ARCH", runtime.GOARCH)
	t.Setenv("VERSION", "1.2.3")
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var sums [2][sha256.Size]byte
	file := filepath.Join(dir, "shoal.deb")
	for i := range sums {
		run(t, dir, nfpm, "package", "--config", "deploy/nfpm.yaml", "--packager", "deb", "--target", file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b)
	}
	if sums[0] != sums[1] {
		t.Error("the same makes another package each time")
	}
	content := run(t, dir, deb, "--contents", file)
	for _, want := range []string{
		"-rwxr-xr-x root/root .* ./usr/bin/shoal\n", "./lib/systemd/system/shoal.service\n", "./lib/systemd/system/shoal.socket\n",
		"./lib/systemd/system/shoal-scheduler.service\n", "-rw-r--r-- root/root .* ./etc/shoal/daemon.yaml\n",
		"./etc/shoal/scheduler.yaml\n", "./usr/lib/sysusers.d/shoal.conf\n",
	} {
		if !regexp.MustCompile(want).MatchString(content) {
			t.Errorf("it lacks %s:\n%s", want, content)
		}
	}
	if conffiles := run(t, dir, deb, "--info", file, "conffiles"); !strings.Contains(conffiles, "/etc/shoal/daemon.yaml") {
		t.Errorf("an upgrade would overwrite settings: %s", conffiles)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		out := run(t, dir, deb, "--info", file, script)
		write(t, filepath.Join(dir, script), out, 0o755)
		run(t, dir, "sh", "-n", script)
	}
}

// TestDashboard holds the dashboard to metrics that there are.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../../deploy/helm/shoal/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var source bytes.Buffer
	for _, pattern := range []string{"../../daemon/*.go", "../../scheduler/standalone/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(text)
		}
	}
	names := regexp.MustCompile(`\bshoal_[a-z_]+`).FindAllString(string(b), -1)
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range names {
		if !strings.Contains(source.String(), `"`+strings.TrimSuffix(name, "_bucket")+`"`) {
			t.Errorf("there is no metric %s", name)
		}
	}
	if len(names) < 20 {
		t.Errorf("it shows %q", names)
	}
}

func write(t *testing.T, file, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
