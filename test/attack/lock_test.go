package attack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/test/rig"
)

// A data directory belongs to one daemon, also after its lock file was removed.
func TestDirectoryIsOneDaemonsWithoutItsLockFile(t *testing.T) {
	first := rig.StartDaemon(t, rig.DaemonConfig{})
	if err := os.Remove(filepath.Join(first.DataDir, "lock")); err != nil {
		t.Fatal(err)
	}
	second := rig.Start(t, "second", rig.Command(t, "", "daemon", "--data-dir", first.DataDir,
		"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"))
	if code := second.Code(10 * time.Second); code != 1 {
		t.Errorf("a second daemon ends with code %d, want 1", code)
	}
	if log := second.Log(); !strings.Contains(log, "in use by another daemon") {
		t.Errorf("a second daemon on one directory says:\n%s", log)
	}
}
