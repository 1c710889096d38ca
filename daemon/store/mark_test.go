package store

import (
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A mark outlives a restart, and goes with its blob.
func TestMarks(t *testing.T) {
	dir := t.TempDir() + "/data"
	reopen := func(s *Store) *Store {
		s.Close()
		return openSmall(t, dir)
	}
	s := openSmall(t, dir)
	d := keepBlob(t, s, 1)
	if s.Marked(d) {
		t.Error("marked from the start")
	}
	if err := s.Mark(digest.FromString("not here")); !errors.Is(err, ErrNotFound) {
		t.Errorf("marking what is not here: %v", err)
	}
	for range 2 {
		if err := s.Mark(d); err != nil || !s.Marked(d) {
			t.Fatalf("marked: %v, %v", s.Marked(d), err)
		}
	}
	other := keepBlob(t, s, 2)
	again := reopen(s)
	if held := again.Inventory(10); len(held) != 2 || !again.Marked(d) || again.Marked(other) {
		t.Errorf("after a restart: %+v", held)
	}
	mark := again.blobPath(d) + markSuffix
	if err := again.Evict(d); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark outlives its blob: %v", err)
	}
	// One that a crash left is no mark of what is stored later.
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	last := reopen(again)
	keepBlob(t, last, 1)
	if last.Marked(d) || reopen(last).Marked(d) {
		t.Error("marked by what was left of another")
	}
}
