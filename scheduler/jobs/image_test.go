package jobs

import (
	"strings"
	"testing"
)

// UPPER/app is not the image upper/app.
func TestParseImageRefusesCapitals(t *testing.T) {
	for _, name := range []string{"UPPER/app", "UPPER/app:v1", "UPPER/a/b"} {
		if ref, err := ParseImage(name); err == nil || !strings.Contains(err.Error(), "capital") {
			t.Errorf("ParseImage(%q) = %v, %v", name, ref, err)
		}
	}
	for name, want := range map[string]string{
		"app": "docker.io/library/app", "Ghcr.IO/a/b:v1": "ghcr.io/a/b", "HOST:5000/a": "host:5000/a", "localhost/a": "localhost/a",
	} {
		if ref, err := ParseImage(name); err != nil || ref.Repository != want {
			t.Errorf("ParseImage(%q) = %v, %v; want %s", name, ref, err, want)
		}
	}
}
