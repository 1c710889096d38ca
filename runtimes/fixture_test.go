package runtimes

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aymanbagabas/go-udiff"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write what the fixtures show now into them")

// fixture is a node's configuration as it is met out there, and what an
// install makes of it. testdata/NAME.txtar holds both: options in its comment,
// files below before/, then what was found and the diff.
type fixture struct {
	file    string
	archive *txtar.Archive
	runtime string
	options Options
}

func readFixture(t *testing.T, file string) *fixture {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{file: file, archive: a, runtime: Containerd, options: Options{Mirror: "http://127.0.0.1:4400"}}
	for line := range strings.Lines(string(a.Comment)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "release":
			f.options.Release, _ = ParseRelease(value)
		case "runtime":
			f.runtime = value
		case "registry":
			f.options.Registries = append(f.options.Registries, value)
		}
	}
	return f
}

// lay writes the files below a new root, with modes that are not the usual.
func (f *fixture) lay(t *testing.T) Disk {
	t.Helper()
	root := t.TempDir()
	for i, file := range f.archive.Files {
		name, ok := strings.CutPrefix(file.Name, "before/")
		if !ok {
			continue
		}
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, file.Data, []fs.FileMode{0o600, 0o644, 0o640}[i%3]); err != nil {
			t.Fatal(err)
		}
	}
	return Disk{root}
}

// snapshot is every file and directory with its mode and content.
func snapshot(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s", info.Mode(), strings.TrimPrefix(name, root))
		switch {
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		case e.Type().IsRegular():
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "\n%s", content)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// install plans and applies, as the command does.
func install(t testing.TB, d Disk, runtime string, o Options) (*Plan, []Step) {
	t.Helper()
	p, steps, next, err := prepare(d, runtime, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) > 0 {
		if err := d.Apply(steps, next); err != nil {
			t.Fatal(err)
		}
	}
	return p, steps
}

func prepare(d Disk, runtime string, o Options) (*Plan, []Step, *State, error) {
	state, err := d.State(runtime)
	if err != nil {
		return nil, nil, nil, err
	}
	before, err := state.Original(d)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := NewPlan(before, runtime, o)
	if err != nil {
		return nil, nil, nil, err
	}
	steps, next, err := state.Install(d, p)
	return p, steps, next, err
}

func uninstall(t testing.TB, d Disk, runtime string) {
	t.Helper()
	state, err := d.State(runtime)
	if err != nil {
		t.Fatal(err)
	}
	steps, unsure, err := state.Uninstall(d)
	if err != nil || len(unsure) > 0 {
		t.Fatalf("unsure of %v: %v", unsure, err)
	}
	if err := d.Remove(steps, state); err != nil {
		t.Fatal(err)
	}
}

func TestFixtures(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			f := readFixture(t, file)
			d := f.lay(t)
			if f.runtime == "auto" {
				f.runtime = Detect(d.Has)[0]
			}
			before := snapshot(t, d.Root)
			p, steps := install(t, d, f.runtime, f.options)
			f.compare(t, p, steps)
			if _, steps := install(t, d, f.runtime, f.options); len(steps) > 0 {
				t.Errorf("a second install changes %d files, the first: %s", len(steps), steps[0].Path)
			}
			uninstall(t, d, f.runtime)
			if after := snapshot(t, d.Root); after != before {
				t.Errorf("after uninstall the tree is another one:\n%s", udiff.Unified("before", "after", before, after))
			}
		})
	}
}

// compare holds what was found and changed against the fixture.
func (f *fixture) compare(t *testing.T, p *Plan, steps []Step) {
	t.Helper()
	var said, diff bytes.Buffer
	for _, line := range p.Found {
		fmt.Fprintf(&said, "found %s\n", line)
	}
	for _, line := range p.Warnings {
		fmt.Fprintf(&said, "warning %s\n", line)
	}
	for _, s := range steps {
		fmt.Fprintf(&said, "%s: %s\n", s.Path, s.What)
		if s.Restart && !strings.Contains(said.String(), "restart ") {
			fmt.Fprintf(&said, "restart %s\n", strings.Join(p.Restart, " "))
		}
		diff.WriteString(udiff.Unified("a"+s.Path, "b"+s.Path, string(s.Before), string(s.After)))
	}
	got := map[string][]byte{"said": said.Bytes(), "diff": diff.Bytes()}
	var kept []txtar.File
	want := map[string][]byte{}
	for _, file := range f.archive.Files {
		if got[file.Name] != nil {
			want[file.Name] = file.Data
		} else {
			kept = append(kept, file)
		}
	}
	if *update {
		f.archive.Files = append(kept, txtar.File{Name: "said", Data: got["said"]}, txtar.File{Name: "diff", Data: got["diff"]})
		if err := os.WriteFile(f.file, txtar.Format(f.archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name := range got {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s is not as in the fixture (-update writes it):\n%s", name, udiff.Unified("want", "got", string(want[name]), string(got[name])))
		}
	}
}
