package test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The scorecard names tests that exist, and every attack test. docs/security.md
// names tests that exist.
func TestScorecard(t *testing.T) {
	named, proof := namedIn(t, "../docs/faults.md"), namedIn(t, "../docs/security.md")
	declared := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(t \*testing\.T\)`)
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range function.FindAllSubmatch(source, -1) {
			name := string(m[1])
			declared[name] = true
			if filepath.Base(filepath.Dir(path)) == "attack" && !named[name] {
				t.Errorf("docs/faults.md lacks %s of %s", name, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range named {
		if !declared[name] {
			t.Errorf("docs/faults.md names %s, which does not exist", name)
		}
	}
	for name := range proof {
		if !declared[name] {
			t.Errorf("docs/security.md names %s, which does not exist", name)
		}
	}
}

// namedIn returns the tests that a document names.
func namedIn(t *testing.T, path string) map[string]bool {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllSubmatch(page, -1) {
		names[string(m[1])] = true
	}
	return names
}
