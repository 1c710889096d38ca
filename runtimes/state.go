package runtimes

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// State is what installs on a node have done so far: what uninstalling needs.
type State struct {
	// Runtime is the one it was done for, Mirror what it was told to ask.
	Runtime, Mirror string
	Files           []StateFile
	// Dirs are the directories that were made, outermost first.
	Dirs []string
	// leaving are files that the steps to this state bring back. They are on
	// record until that is done.
	leaving []StateFile
}

// StateFile is a file as it was and as it was written.
type StateFile struct {
	Path string
	// Before is nil if there was none.
	Before, After []byte
	// Replaced is what After came in the place of, if that was neither nothing
	// nor Before but of an earlier install: one that is cut short leaves it.
	Replaced []byte
	// Restart is that of the change.
	Restart bool
}

// original returns what a file would be had nothing been installed, and
// whether that is certain. What people changed since is kept.
func (f StateFile) original(now []byte, mirror string) (_ []byte, certain bool) {
	switch {
	case now == nil, bytes.Equal(now, f.Before) && f.Before != nil:
		return now, true
	case bytes.Equal(now, f.After), f.Replaced != nil && bytes.Equal(now, f.Replaced):
		return f.Before, true
	}
	// Changed since. What was put in is taken out, if it is still there once.
	from, to := 0, 0
	for from < min(len(f.Before), len(f.After)) && f.Before[from] == f.After[from] {
		from++
	}
	for to < min(len(f.Before), len(f.After))-from && f.Before[len(f.Before)-1-to] == f.After[len(f.After)-1-to] {
		to++
	}
	ours, theirs := f.After[from:len(f.After)-to], f.Before[from:len(f.Before)-to]
	switch bytes.Count(now, ours) {
	case 0: // taken out already, unless the mirror is still named
		_, host, _ := strings.Cut(mirror, "://")
		return now, !bytes.Contains(now, []byte(host))
	case 1:
		rest := bytes.Replace(now, ours, theirs, 1)
		if f.Before == nil && len(bytes.TrimSpace(rest)) == 0 {
			return nil, true
		}
		return rest, true
	}
	return now, false
}

// Step is a change of one file from what it is now.
type Step struct {
	Path string
	// Before is nil if the file does not exist, After if it is to go.
	Before, After []byte
	What          string
	Restart       bool
}

// Install returns the steps that make a plan true, from the tree as it is, and
// the state after them. The plan was made on the tree that [State.Original]
// returned; what was edited since, and stays, is added to its warnings.
func (s *State) Install(tree Tree, p *Plan) (steps []Step, next *State, err error) {
	next = &State{Runtime: p.Runtime, Mirror: p.Mirror, Dirs: s.Dirs}
	wanted := map[string]bool{}
	for _, c := range p.Changes {
		wanted[c.Path] = true
		now, err := read(tree, c.Path)
		if err != nil {
			return nil, nil, err
		}
		if i := s.index(c.Path); i >= 0 {
			if _, certain := s.Files[i].original(now, s.Mirror); !certain {
				return nil, nil, s.Unclear(c.Path)
			}
		}
		f := StateFile{Path: c.Path, Before: c.Before, After: c.After, Restart: c.Restart}
		if now == nil || !bytes.Equal(now, c.After) {
			steps = append(steps, Step{c.Path, now, c.After, c.What, c.Restart})
			if now != nil && !bytes.Equal(now, c.Before) {
				f.Replaced = now
			}
		}
		next.Files = append(next.Files, f)
	}
	undo, unsure, err := s.undo(tree, func(path string) bool { return !wanted[path] })
	for _, f := range s.Files {
		switch {
		case wanted[f.Path]:
		case slices.Contains(unsure, f.Path):
			p.warn("%v", s.Unclear(f.Path))
			next.Files = append(next.Files, f)
		default:
			next.leaving = append(next.leaving, f)
		}
	}
	return append(steps, undo...), next, err
}

func (s *State) index(path string) int {
	return slices.IndexFunc(s.Files, func(f StateFile) bool { return f.Path == path })
}

// Unclear is the error that files were edited in a way that leaves bringing them
// back to people.
func (s *State) Unclear(paths ...string) error {
	return fmt.Errorf("%s: edited since, and what is of the mirror cannot be told from the rest: take %s out by hand, as in %s, and run this again",
		strings.Join(paths, ", "), s.Mirror, Backup(s.Runtime))
}

// Uninstall returns the steps that bring everything back, and the files that
// were changed by others since in a way that leaves that to people.
func (s *State) Uninstall(tree Tree) (steps []Step, unsure []string, err error) {
	return s.undo(tree, func(string) bool { return true })
}

func (s *State) undo(tree Tree, which func(path string) bool) (steps []Step, unsure []string, err error) {
	for _, f := range slices.Backward(s.Files) {
		if !which(f.Path) {
			continue
		}
		now, err := read(tree, f.Path)
		if err != nil {
			return nil, nil, err
		}
		before, certain := f.original(now, s.Mirror)
		if !certain {
			unsure = append(unsure, f.Path)
		}
		if (now == nil) != (before == nil) || !bytes.Equal(now, before) {
			what := "as it was before"
			if before == nil {
				what = "removed"
			}
			steps = append(steps, Step{f.Path, now, before, what, f.Restart})
		}
	}
	return steps, unsure, nil
}

// Original returns the tree as if nothing had been installed.
func (s *State) Original(tree Tree) (Tree, error) {
	files := map[string][]byte{}
	for _, f := range s.Files {
		now, err := read(tree, f.Path)
		if err != nil {
			return nil, fmt.Errorf("undoing what was installed: %w", err)
		}
		files[f.Path], _ = f.original(now, s.Mirror)
	}
	return overlay{tree, files, s.Dirs}, nil
}
