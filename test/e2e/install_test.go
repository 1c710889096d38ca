package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// TestInstall lays out configurations as they are met, has them changed by
// "shoal containerd install", and a real containerd of that line, whose /etc it
// then is, pulls through the mirror. After "uninstall" every file is as before.
func TestInstall(t *testing.T) {
	NeedRoot(t)
	NeedProgram(t, "unshare", "util-linux")
	b := newBed(t, SinglePlatform)
	front := NewTap(t, b.node.Addr, b.daemon.URL())
	for _, c := range []struct {
		release  Release
		fixtures []string
	}{
		{Containerd16, []string{"containerd-1.6-default", "gke-mirrors", "containerd-v1"}},
		{Containerd17, []string{"containerd-1.7-default", "containerd-1.7-imports", "containerd-existing-hosts", "gke-hosts", "aks"}},
		{Containerd2, []string{"containerd-2.2-default", "containerd-no-config", "containerd-2.2-imports", "containerd-list", "eks-al2023", "talos"}},
	} {
		t.Run(c.release.Name, func(t *testing.T) {
			c.release.Find(t)
			for _, fixture := range c.fixtures {
				t.Run(fixture, func(t *testing.T) {
					n := layNode(t, fixture, c.release)
					before := n.snapshot(t)
					n.shoal(t, "install", "--registry", upstream, "--mirror", front.URL())
					if out := n.shoal(t, "install", "--registry", upstream, "--mirror", front.URL()); !strings.Contains(out, "nothing to change") {
						t.Errorf("a second install changes something:\n%s", out)
					}
					seen := len(front.Requests(t, ForBlobs, Delivered))
					runtime, stop := n.containerd(t, c.release)
					if err := runtime.PullCRI(t.Context(), byTag()); err != nil {
						t.Fatal(err)
					}
					if got := len(front.Requests(t, ForBlobs, Delivered)) - seen; got < len(b.image.Blobs) {
						t.Errorf("the mirror was asked for %d blobs, want all %d", got, len(b.image.Blobs))
					}
					stop()
					n.shoal(t, "uninstall")
					if after := n.snapshot(t); after != before {
						t.Errorf("after uninstall the tree is another one. Before:\n%s\nAfter:\n%s", before, after)
					}
				})
			}
		})
	}
}

// TestInstallBeforeOthers installs where a registry has a mirror already: ours is
// asked first, and that one when ours is away.
func TestInstallBeforeOthers(t *testing.T) {
	NeedRoot(t)
	NeedProgram(t, "unshare", "util-linux")
	for _, release := range []Release{Containerd16, Containerd2} {
		t.Run(release.Name, func(t *testing.T) {
			release.Find(t)
			b := newBed(t, SinglePlatform)
			n := layNode(t, "aks", release)
			n.Write(t, fmt.Sprintf("# the house's\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", b.registry.Direct.URL()),
				"fs/etc/containerd/certs.d", upstream, "hosts.toml")
			n.shoal(t, "install", "--registry", upstream, "--mirror", b.daemon.URL())
			first, stop := n.containerd(t, release)
			if err := first.PullCRI(t.Context(), byTag()); err != nil {
				t.Fatal(err)
			}
			stop()
			b.nothingWentPast(t)
			b.daemon.Stop(t)
			second, _ := n.containerd(t, release)
			if err := second.PullCRI(t.Context(), byTag()); err != nil {
				t.Fatal(err)
			}
			if got := len(b.registry.Direct.Requests(t, ForBlobs, Delivered)); got < len(b.image.Blobs) {
				t.Errorf("the mirror of before was asked for %d blobs, want all %d", got, len(b.image.Blobs))
			}
		})
	}
}

// fsNode is a node whose file system, as far as containerd reads it, lies in a
// directory.
type fsNode struct {
	*Node
	root string
	main string // containerd's main file, on the node
	made int
}

// layNode lays out a fixture of package runtimes.
func layNode(t *testing.T, fixture string, release Release) *fsNode {
	t.Helper()
	repo, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := txtar.ParseFile(filepath.Join(repo, "runtimes", "testdata", fixture+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	n := &fsNode{Node: NewNode(t, "node"), main: "/etc/containerd/config.toml"}
	n.root = n.Path("fs")
	overlay := snapshotterFor(t, n.Dir)
	for _, f := range archive.Files {
		name, ok := strings.CutPrefix(f.Name, "before/")
		if !ok {
			continue
		}
		if name == "etc/cri/containerd.toml" {
			n.main = "/" + name
		}
		// What the machine of the test cannot do is not what is tested.
		text := strings.NewReplacer(`"overlayfs"`, `"`+overlay+`"`, `'overlayfs'`, `'`+overlay+`'`).Replace(string(f.Data))
		n.Write(t, text, "fs", name)
	}
	for _, dir := range []string{"etc", "opt", "run", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(n.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if release.Find == nil {
		return n
	}
	// The command reads from the program which release it is.
	if _, err := n.Run("cp", "--reflink=auto", filepath.Join(release.Find(t), "containerd"), filepath.Join(n.root, "usr/bin/")); err != nil {
		t.Fatal(err)
	}
	return n
}

// shoal runs "shoal containerd" on the node's files and returns what it says.
func (n *fsNode) shoal(t *testing.T, args ...string) string {
	t.Helper()
	binary, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Run(binary, append([]string{"containerd", args[0], "--root", n.root}, args[1:]...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s:\n%s", args[0], out)
	return out
}

// containerd runs one for which the node's /etc is the machine's, in a mount
// namespace of its own, until stop is called or the test ends.
func (n *fsNode) containerd(t *testing.T, release Release) (_ *Containerd, stop func()) {
	t.Helper()
	n.made++
	name := fmt.Sprintf("containerd%d", n.made)
	c := &Containerd{node: n.Node, bin: release.Find(t), dir: n.Path(name)}
	c.socket = filepath.Join(c.dir, "c.sock")
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `for d in etc opt run; do mount --bind "$0/$d" "/$d"; done && exec "$@"`
	args := []string{"--mount", "--propagation", "private", "sh", "-ec", script, n.root,
		c.program("containerd"), "--root", filepath.Join(c.dir, "root"), "--state", filepath.Join(c.dir, "state"), "--address", c.socket}
	if _, err := os.Stat(filepath.Join(n.root, n.main)); err == nil {
		args = append(args, "--config", n.main)
	}
	proc := c.start(t, name, n.Command("unshare", args...))
	return c, func() { proc.Stop(t) }
}

// snapshot is every file and directory of the node below /etc and /var with its
// mode and content, what containerd itself makes there aside.
func (n *fsNode) snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, top := range []string{"etc", "var"} {
		err := filepath.WalkDir(filepath.Join(n.root, top), func(file string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(file, n.root)
			if name == "/etc/cni" || name == "/etc/nri" {
				return filepath.SkipDir
			}
			fmt.Fprintf(&b, "%s %s\n", info.Mode(), name)
			if info.Mode().IsRegular() {
				content, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				b.Write(content)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}
