package runtimes

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// Disk is a node's file system below a directory of this one. Symbolic links
// are followed as on the node: never out of Root.
type Disk struct {
	Root string
}

func (d Disk) real(file string) (string, error) {
	return securejoin.SecureJoin(d.Root, file)
}

// ReadFile implements [Tree].
func (d Disk) ReadFile(file string) ([]byte, error) {
	real, err := d.real(file)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return b, err
}

// ReadDir implements [Tree].
func (d Disk) ReadDir(dir string) ([]string, error) {
	real, err := d.real(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(real)
	if errors.Is(err, syscall.ENOTDIR) {
		err = &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Has reports whether a path exists.
func (d Disk) Has(file string) bool {
	real, err := d.real(file)
	if err != nil {
		return false
	}
	_, err = os.Stat(real)
	return err == nil
}

// Changed returns when a file was written last, zero if there is none.
func (d Disk) Changed(file string) time.Time {
	real, err := d.real(file)
	if err != nil {
		return time.Time{}
	}
	info, err := os.Stat(real)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// containerdBinaries are looked at in this order.
var containerdBinaries = []string{
	"/var/lib/rancher/k3s/data/current/bin/containerd", "/var/lib/rancher/rke2/bin/containerd",
	"/usr/local/bin/containerd", "/usr/bin/containerd", "/bin/containerd", "/opt/bin/containerd",
}

// Containerd returns the path of the node's containerd, if one is found, and
// the release that is written into it, as far as that goes.
func (d Disk) Containerd() (file string, r Release) {
	for _, file := range containerdBinaries {
		real, err := d.real(file)
		if err != nil || !d.Has(file) {
			continue
		}
		info, err := buildinfo.ReadFile(real)
		if err != nil {
			return real, Release{} // stripped of it, or a script
		}
		if r, ok := ParseRelease(info.Main.Version); ok {
			return real, r
		}
		for _, s := range info.Settings {
			if _, v, ok := strings.Cut(s.Value, "version.Version="); ok && s.Key == "-ldflags" {
				if r, ok := ParseRelease(v); ok {
					return real, r
				}
			}
		}
		switch {
		case strings.HasPrefix(info.Path, "github.com/containerd/containerd/v2/"):
			r.Major = 2
		case strings.HasPrefix(info.Path, "github.com/containerd/containerd/"):
			r.Major = 1
		}
		return real, r
	}
	return "", Release{}
}

// Apply takes the steps of an install whose state is then next. What uninstalling
// needs is on disk before the first file changes.
func (d Disk) Apply(steps []Step, next *State) error {
	for _, s := range steps {
		if s.After == nil {
			continue
		}
		if err := d.noteMissing(path.Dir(s.Path), next); err != nil {
			return err
		}
	}
	if err := d.noteMissing(stateDir, next); err != nil {
		return err
	}
	if err := d.saveState(next); err != nil {
		return fmt.Errorf("keeping the backup: %w", err)
	}
	for _, s := range steps {
		if err := d.take(s); err != nil {
			return err
		}
		// A directory of a registry that is left empty would hide _default.
		if dir := path.Dir(s.Path); s.After == nil && slices.Contains(next.Dirs, dir) {
			if real, err := d.real(dir); err == nil {
				_ = os.Remove(real) // it stays if others use it
			}
		}
	}
	if len(next.leaving) == 0 {
		return nil
	}
	next.leaving = nil
	if err := d.saveState(next); err != nil {
		return fmt.Errorf("keeping the backup: %w", err)
	}
	return nil
}

// Remove takes the steps of an uninstall, and forgets the state.
func (d Disk) Remove(steps []Step, s *State) error {
	for _, step := range steps {
		if err := d.take(step); err != nil {
			return err
		}
	}
	if err := d.removeState(s); err != nil {
		return fmt.Errorf("removing the backup: %w", err)
	}
	var stay []string
	for _, dir := range slices.Backward(s.Dirs) {
		real, err := d.real(dir)
		if err != nil {
			return err
		}
		err = os.Remove(real)
		if errors.Is(err, syscall.ENOTEMPTY) {
			stay = append(stay, dir)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return d.handOn(stay)
}

// handOn leaves directories that are not empty yet to the next uninstall, if
// there is one to come.
func (d Disk) handOn(dirs []string) error {
	for _, name := range Names() {
		s, err := d.State(name)
		if err != nil || len(s.Files) == 0 || len(dirs) == 0 {
			continue
		}
		s.Dirs = append(s.Dirs, dirs...)
		slices.Sort(s.Dirs) // outermost first
		return d.saveState(s)
	}
	return nil
}

// noteMissing adds dir, and those above it, to the directories that are to be
// made.
func (d Disk) noteMissing(dir string, s *State) error {
	if dir == "/" || d.Has(dir) || slices.Contains(s.Dirs, dir) {
		return nil
	}
	if err := d.noteMissing(path.Dir(dir), s); err != nil {
		return err
	}
	s.Dirs = append(s.Dirs, dir)
	return nil
}

// take brings one file to what it is to be, if it still is what it was when the
// step was worked out.
func (d Disk) take(s Step) error {
	now, err := read(d, s.Path)
	if err != nil {
		return err
	}
	if (now == nil) != (s.Before == nil) || !bytes.Equal(now, s.Before) {
		return fmt.Errorf("%s was changed by somebody else at this moment: run this again", s.Path)
	}
	real, err := d.real(s.Path)
	if err != nil {
		return err
	}
	if s.After != nil {
		return d.write(real, s.After, 0o644)
	}
	if err := os.Remove(real); err != nil {
		return err
	}
	return syncDir(filepath.Dir(real))
}

// write replaces a file as a whole, or not at all, and keeps the mode and owner
// of one that exists.
func (d Disk) write(real string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(real)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".shoal-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if info, err := os.Stat(real); err == nil {
		mode = info.Mode()
		if err := chownLike(f, info); err != nil {
			return err
		}
	}
	// After the owner, since changing that drops some bits.
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), real); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func chownLike(f *os.File, info fs.FileInfo) error {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() && int(s.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(s.Uid), int(s.Gid))
}
