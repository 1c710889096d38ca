package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// before is a commit whose swarm this one must still work with. It moves on when
// a release gives up older ones.
const before = "1f7c6db"

// TestUpgrade has two builds in one cluster, as there are while it is upgraded a
// process at a time: the one under test, and one that speaks a later protocol, with
// fields and messages that this one does not know. Where the repository has its
// history, which a shallow clone lacks, an earlier commit takes part as well.
func TestUpgrade(t *testing.T) {
	t.Run("later", func(t *testing.T) { upgrade(t, buildLater(t)) })
	t.Run("earlier", func(t *testing.T) { upgrade(t, buildEarlier(t)) })
}

// upgrade runs daemons of both builds, with a scheduler of the one and then of the
// other: whatever one daemon has, the other gets from it, with the origin gone.
// Then the daemon of the other build is replaced by one of this, with its cache.
func upgrade(t *testing.T, other string) {
	registry := NewNode(t, "origin").StartRegistry(t)
	for i, binary := range []string{"", other} {
		t.Run("scheduler of "+[]string{"this", "the other"}[i], func(t *testing.T) {
			scheduler := NewNode(t, "scheduler").StartScheduler(t, SchedulerConfig{Binary: binary})
			start := func(name, binary string) (*Daemon, Client) {
				d := NewNode(t, name).StartDaemon(t, DaemonConfig{
					Registries: []string{upstream + "=" + registry.Origin.URL()},
					Schedulers: []string{scheduler.Addr}, Binary: binary,
				})
				return d, Client{Base: d.URL(), Namespace: upstream, Repository: repository}
			}
			_, ours := start("ours", "")
			theirDaemon, theirs := start("theirs", other)
			Eventually(t, "both are connected", time.Minute, func() error {
				n, err := scheduler.Metric("shoal_scheduler_peers")
				if err == nil && n != 2 {
					err = fmt.Errorf("%v are", n)
				}
				return err
			})
			var blobs []Descriptor
			for j, way := range []struct{ from, to Client }{{ours, theirs}, {theirs, ours}} {
				blob := registry.PushBlob(t, noiseBytes(byte(10*i+j), 3<<20), repository)
				blobs = append(blobs, blob)
				if err := way.from.CheckBlobs(t.Context(), blob); err != nil {
					t.Fatal(err)
				}
				// The other one must have it from its neighbour.
				registry.Origin.Reset(t)
				if err := way.to.CheckBlobs(t.Context(), blob); err != nil {
					t.Fatal(err)
				}
				if sent := registry.Origin.Bytes(t, ForBlob(blob.Digest)); sent > 0 {
					t.Errorf("the origin sent %d bytes of what the other build has", sent)
				}
			}

			theirDaemon.Stop(t)
			theirDaemon.Binary = ""
			theirDaemon.Restart(t)
			registry.Origin.Reset(t)
			if err := theirs.CheckBlobs(t.Context(), blobs...); err != nil {
				t.Errorf("after the upgrade: %v", err)
			}
			if asked := registry.Origin.Requests(t, ForContent, Delivered); len(asked) > 0 {
				t.Errorf("after the upgrade the origin is asked for what was held: %s", asked[0])
			}
		})
	}
}

// buildEarlier builds the last release, or where there is none the commit before.
func buildEarlier(t *testing.T) string {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("describe", "--tags", "--abbrev=0", "HEAD")
	if err != nil {
		if commit, err = git("rev-parse", "--verify", "--quiet", before+"^{commit}"); err != nil {
			t.Skipf("this clone has no tag and no commit %s: only the later build takes part", before)
		}
	}
	source := t.TempDir()
	archive := exec.Command("sh", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "sh", root, commit, source)
	if out, err := archive.CombinedOutput(); err != nil {
		t.Fatalf("unpacking %s: %v\n%s", commit, err, out)
	}
	t.Logf("the other build is %s", commit)
	return buildOther(t, source)
}

// later says what in the sources makes a build that speaks a later protocol. What
// does not stand there any more fails the test.
var later = []struct{ file, old, new string }{
	{"scheduler/wire/doc.go", "Version = 1", "Version = 2"},
	{"scheduler/wire/dial.go", "s.stream.Send(&wirepb.ToScheduler{Messages: part})", "s.stream.Send(laterIn(part))"},
	{"scheduler/wire/serve.go", "return c.stream.Send(&wirepb.FromScheduler{Messages: part})", "return c.stream.Send(laterOut(part))"},
	{"daemon/peer/extension.go", "version = 1", "version = 2"},
	{"daemon/peer/extension.go", "type introduction struct {", "type introduction struct {\n\tLater string `bencode:\"shoal_later\"`"},
	{"daemon/peer/extension.go", "return bencode.MustMarshal(introduction{", "return bencode.MustMarshal(introduction{Later: \"unknown\","},
	{"daemon/peer/extension.go", "map[pp.ExtensionName]int64{nameHave:", "map[pp.ExtensionName]int64{\"shoal_later\": 9, nameHave:"},
}

// laterWire adds fields of a number that no message has, and messages that are
// nothing but such a field.
const laterWire = `package wire

import (
	"google.golang.org/protobuf/proto"

	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

func later(m proto.Message) { m.ProtoReflect().SetUnknown([]byte{0xfa, 0x3f, 1, 'x'}) } // field 1023, one byte

func laterIn(part []*wirepb.In) *wirepb.ToScheduler {
	for _, in := range part {
		if h := in.GetHello(); h != nil {
			later(h)
		}
	}
	unknown := &wirepb.In{}
	later(unknown)
	batch := &wirepb.ToScheduler{Messages: append(part[:len(part):len(part)], unknown)}
	later(batch)
	return batch
}

func laterOut(part []*wirepb.Out) *wirepb.FromScheduler {
	unknown := &wirepb.Out{}
	later(unknown)
	batch := &wirepb.FromScheduler{Messages: append(part[:len(part):len(part)], unknown)}
	later(batch)
	return batch
}
`

// buildLater builds these sources with what later says.
func buildLater(t *testing.T) string {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	changed := map[string]string{filepath.Join(root, "scheduler/wire/later.go"): laterWire}
	for _, c := range later {
		path := filepath.Join(root, c.file)
		source, ok := changed[path]
		if !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			source = string(b)
		}
		if strings.Count(source, c.old) < 1 {
			t.Fatalf("%s has no %q: say what now makes a later protocol", c.file, c.old)
		}
		changed[path] = strings.Replace(source, c.old, c.new, 1)
	}
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for path, source := range changed {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(overlay.Replace)))
		if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = file
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return buildOther(t, root, "-overlay", file)
}

func buildOther(t *testing.T, source string, flags ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "shoal")
	cmd := exec.Command("go", append(append([]string{"build", "-o", binary}, flags...), "./cmd/shoal")...)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the other one: %v\n%s", err, out)
	}
	return binary
}
