package runtimes

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Tree is what planning sees of a node's file system. Paths are absolute
// within the node. What does not exist is an fs.ErrNotExist.
type Tree interface {
	ReadFile(path string) ([]byte, error)
	// ReadDir returns the names in a directory, in order.
	ReadDir(path string) ([]string, error)
}

// maxFile bounds a configuration file, in bytes. The largest default, that of
// containerd, has 8 KiB.
const maxFile = 1 << 20

// read returns a file's content, and nil if there is none.
func read(tree Tree, file string) ([]byte, error) {
	b, err := tree.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", file, err)
	case b == nil:
		return []byte{}, nil
	}
	return b, nil
}

func isFile(tree Tree, file string) bool {
	b, err := read(tree, file)
	return err == nil && b != nil
}

func isDir(tree Tree, dir string) bool {
	_, err := tree.ReadDir(dir)
	return err == nil
}

// glob matches a pattern of path.Match whose directory has no wildcard, the
// only kind that distributions use, in order.
func glob(tree Tree, pattern string) ([]string, error) {
	dir, base := path.Split(pattern)
	if strings.ContainsAny(dir, "*?[") {
		return nil, fmt.Errorf("import %q: a wildcard in a directory is not followed", pattern)
	}
	names, err := tree.ReadDir(path.Clean(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir, err)
	}
	var found []string
	for _, name := range names {
		ok, err := path.Match(base, name)
		if err != nil {
			return nil, fmt.Errorf("import %q: %w", pattern, err)
		}
		if ok {
			found = append(found, path.Join(dir, name))
		}
	}
	return found, nil
}

// overlay is a tree in which some files are as they were before an install.
type overlay struct {
	Tree
	files map[string][]byte // nil: does not exist
	dirs  []string          // do not exist
}

func (o overlay) ReadFile(file string) ([]byte, error) {
	if b, ok := o.files[file]; ok {
		if b == nil {
			return nil, &fs.PathError{Op: "open", Path: file, Err: fs.ErrNotExist}
		}
		return b, nil
	}
	return o.Tree.ReadFile(file)
}

func (o overlay) ReadDir(dir string) ([]string, error) {
	names, err := o.Tree.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		p := path.Join(dir, name)
		b, ok := o.files[p]
		return ok && b == nil || slices.Contains(o.dirs, p)
	})
	if len(names) == 0 && slices.Contains(o.dirs, dir) {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	return names, nil
}
