package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
)

// stateDir holds, for each runtime, NAME.json and the files as they were and
// as they were written, each under its own path, so that a person can put them
// back too. It is not the daemon's data directory, which belongs to whoever the
// daemon runs as: what lies here is written to /etc one day.
const stateDir = "/var/lib/shoal-install"

// Backup returns where the files as they were before are kept.
func Backup(runtime string) string { return path.Join(stateDir, runtime, "before") }

// stateRecord is NAME.json.
type stateRecord struct {
	Version int          `json:"version"`
	Runtime string       `json:"runtime"`
	Mirror  string       `json:"mirror"`
	Files   []recordFile `json:"files"`
	Dirs    []string     `json:"createdDirectories"`
}

type recordFile struct {
	Path    string `json:"path"`
	Created bool   `json:"created,omitempty"`
	Restart bool   `json:"restart,omitempty"`
}

const stateVersion = 1

// State returns what was installed for a runtime, empty if nothing was.
func (d Disk) State(runtime string) (*State, error) {
	s := &State{Runtime: runtime}
	file := path.Join(stateDir, runtime+".json")
	raw, err := read(d, file)
	if raw == nil || err != nil {
		return s, err
	}
	var r stateRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.Version != stateVersion {
		return nil, fmt.Errorf("%s: version %d is of another shoal, this one knows %d", file, r.Version, stateVersion)
	}
	s.Mirror, s.Dirs = r.Mirror, r.Dirs
	for _, f := range r.Files {
		one := StateFile{Path: f.Path, Restart: f.Restart}
		if !f.Created {
			if one.Before, err = d.kept(runtime, "before", f.Path); err != nil {
				return nil, err
			}
		}
		if one.After, err = d.kept(runtime, "after", f.Path); err != nil {
			return nil, err
		}
		// There whether or not it is the record's: it is written before that.
		if one.Replaced, err = read(d, path.Join(stateDir, runtime, "replaced", f.Path)); err != nil {
			return nil, err
		}
		s.Files = append(s.Files, one)
	}
	return s, nil
}

// kept reads a copy, which must be there.
func (d Disk) kept(runtime, which, file string) ([]byte, error) {
	b, err := read(d, path.Join(stateDir, runtime, which, file))
	if err == nil && b == nil {
		err = fmt.Errorf("%s of %s is missing in %s", which, file, path.Join(stateDir, runtime))
	}
	return b, err
}

// saveState writes the copies, and then the record that names them. They may
// hold credentials, and are for root alone. What an earlier record says of the
// same files stays true while they are written: those that are replaced come
// first.
func (d Disk) saveState(s *State) error {
	r := stateRecord{Version: stateVersion, Runtime: s.Runtime, Mirror: s.Mirror, Dirs: s.Dirs}
	if err := d.mkdir(stateDir, 0o700); err != nil {
		return err
	}
	for _, f := range slices.Concat(s.Files, s.leaving) {
		r.Files = append(r.Files, recordFile{f.Path, f.Before == nil, f.Restart})
		for _, c := range []struct {
			which   string
			content []byte
		}{{"replaced", f.Replaced}, {"before", f.Before}, {"after", f.After}} {
			if c.content == nil {
				continue
			}
			real, err := d.real(path.Join(stateDir, s.Runtime, c.which, f.Path))
			if err != nil {
				return err
			}
			if err := d.write(real, c.content, 0o600); err != nil {
				return err
			}
		}
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	real, err := d.real(path.Join(stateDir, s.Runtime+".json"))
	if err != nil {
		return err
	}
	return d.write(real, append(raw, '\n'), 0o600)
}

// mkdir makes a directory with a mode, if there is none, and those above it as
// usual.
func (d Disk) mkdir(dir string, mode fs.FileMode) error {
	real, err := d.real(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(real), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(real, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// removeState forgets a state: the record first, so that what it names is
// there as long as it is.
func (d Disk) removeState(s *State) error {
	for _, name := range []string{s.Runtime + ".json", s.Runtime} {
		real, err := d.real(path.Join(stateDir, name))
		if err != nil {
			return err
		}
		if err := os.RemoveAll(real); err != nil {
			return err
		}
	}
	return nil
}
