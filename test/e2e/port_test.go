package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRegistryWithPort pulls from a registry HOST:PORT with podman and skopeo,
// by the drop-in that "shoal containerd install" writes. Only the first part of
// an image name may have a port: a second one fails every pull.
func TestRegistryWithPort(t *testing.T) {
	NeedRoot(t)
	podman := NeedProgram(t, "podman", "podman")
	skopeo := NeedProgram(t, "skopeo", "skopeo")
	NeedProgram(t, "runc", "runc")
	b := bedWithout(t, SinglePlatform)
	host := b.registry.Direct.Addr
	b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{host + "=" + b.registry.Origin.URL()}})
	front := NewTap(t, b.node.Addr, b.daemon.URL())
	b.node.Write(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host), "fs/etc/containers/registries.conf")
	b.node.install(t, b.node.Path("fs"), "podman", "--registry", host, "--mirror", front.URL())
	policy := b.node.Write(t, `{"default":[{"type":"insecureAcceptAnything"}]}`, "policy.json")
	image := host + "/" + repository + ":" + tag

	// The node's /etc/containers is what install has written.
	run := func(args ...string) string {
		t.Helper()
		dir := b.node.Path("home")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := b.node.Command("unshare", slices.Concat([]string{"--mount", "--propagation", "private", "sh", "-ec",
			`mount --bind "$0/etc/containers" /etc/containers && exec "$@"`, b.node.Path("fs")}, args)...)
		cmd.Env = append(cmd.Env, "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
		out, err := runToEnd(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	dir := b.node.Path("podman")
	withPodman := []string{podman, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		"--network-config-dir", filepath.Join(dir, "net"), "--storage-driver", "vfs", "--runtime", "runc",
		"--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	run(slices.Concat(withPodman, []string{"pull", "--quiet", "--signature-policy", policy, image})...)
	if out := run(slices.Concat(withPodman, []string{"image", "inspect", "--format", "{{.RepoDigests}}", image})...); !strings.Contains(out, b.image.Digest) {
		t.Errorf("podman knows %s as %s, want %s", image, out, b.image.Digest)
	}
	cameThrough(t, front, b.image)
	front.Reset(t)
	run(skopeo, "--insecure-policy", "copy", "docker://"+image, "oci:"+b.node.Path("layout")+":"+tag)
	if err := checkLayout(b.node.Path("layout"), slices.Concat(b.image.Manifests, b.image.Blobs)); err != nil {
		t.Error(err)
	}
	cameThrough(t, front, b.image)
	b.nothingWentPast(t)
	b.originSentOnce(t)
}
