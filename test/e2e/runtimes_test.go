package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPodman pulls with podman, by registries.conf and the drop-in of "shoal
// containerd install" as on a node with CRI-O, and again into an empty storage
// with the origin gone. A container runs each time.
func TestPodman(t *testing.T) {
	NeedRoot(t)
	podman := NeedProgram(t, "podman", "podman")
	NeedProgram(t, "runc", "runc")
	b := newBed(t, MultiPlatform, "--tag-ttl", "1ms")
	front := NewTap(t, b.node.Addr, b.daemon.URL())
	b.node.Write(t, fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", upstream, b.registry.Direct.Addr),
		"fs/etc/containers/registries.conf")
	b.node.install(t, b.node.Path("fs"), "podman", "--registry", upstream, "--mirror", front.URL())
	policy := b.node.Write(t, `{"default":[{"type":"insecureAcceptAnything"}]}`, "policy.json")

	for _, pull := range []string{"cold", "origin down"} {
		if pull == "origin down" {
			b.registry.Stop(t)
			front.Reset(t)
		}
		dir := b.node.Path(strings.ReplaceAll("podman "+pull, " ", "-"))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		driver := "vfs"
		if snapshotterFor(t, dir) == "overlayfs" {
			driver = "overlay"
		}
		run := func(args ...string) string {
			t.Helper()
			cmd := b.node.Command("unshare", append([]string{
				"--mount", "--propagation", "private", "sh", "-ec", `mount --bind "$0/etc/containers" /etc/containers && exec "$@"`, b.node.Path("fs"),
				podman, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
				"--network-config-dir", filepath.Join(dir, "net"),
				"--storage-driver", driver, "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
			}, args...)...)
			cmd.Env = append(cmd.Env, "HOME="+dir, "XDG_RUNTIME_DIR="+dir)
			out, err := runToEnd(cmd)
			if err != nil {
				t.Fatalf("%s: %v", pull, err)
			}
			return out
		}
		run("pull", "--quiet", "--signature-policy", policy, byTag())
		if out := run("image", "inspect", "--format", "{{.RepoDigests}}", byTag()); !strings.Contains(out, b.image.Digest) {
			t.Errorf("%s: podman knows %s as %s, want %s", pull, byTag(), out, b.image.Digest)
		}
		// By itself podman asks for a million descriptors, which root without
		// CAP_SYS_RESOURCE may not.
		out := run("run", "--rm", "--pull", "never", "--network", "none", "--log-driver", "none",
			"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", byTag())
		if out != Hello+"\n" {
			t.Errorf("%s: the container printed %q, want %q", pull, out, Hello+"\n")
		}
		cameThrough(t, front, b.image)
	}
	b.nothingWentPast(t)
	b.originSentOnce(t)
}

// TestDocker pulls from Docker Hub with dockerd, whose registry-mirrors knows no
// other, and again with another dockerd and the origin gone.
func TestDocker(t *testing.T) {
	b := newHub(t)
	for _, pull := range []string{"cold", "origin down"} {
		if pull == "origin down" {
			b.registry.Stop(t)
			b.front.Reset(t)
		}
		docker := b.startDocker(t, strings.ReplaceAll("docker "+pull, " ", "-"))
		if _, err := docker("pull", "--quiet", hubName); err != nil {
			t.Fatalf("%s: %v", pull, err)
		}
		out, err := docker("image", "inspect", "--format", "{{.RepoDigests}}", hubName)
		if err != nil {
			t.Fatalf("%s: %v", pull, err)
		}
		if !strings.Contains(out, b.image.Digest) {
			t.Errorf("%s: docker knows %s as %s, want %s", pull, hubName, out, b.image.Digest)
		}
		out, err = docker("run", "--rm", "--network", "none", hubName)
		if err != nil {
			t.Fatalf("%s: %v", pull, err)
		}
		if out != Hello+"\n" {
			t.Errorf("%s: the container printed %q, want %q", pull, out, Hello+"\n")
		}
		cameThrough(t, b.front, b.image)
	}
	b.originSentOnce(t)
}

// TestBuildKit builds FROM an image of Docker Hub, and again with another
// buildkitd and the origin gone.
func TestBuildKit(t *testing.T) {
	b := newHub(t)
	dockerfile := b.node.Write(t, "FROM "+hubName+"\nRUN [\"/hello\"]\n", "context", "Dockerfile")
	for _, pull := range []string{"cold", "origin down"} {
		if pull == "origin down" {
			b.registry.Stop(t)
			b.front.Reset(t)
		}
		name := strings.ReplaceAll("buildkit "+pull, " ", "-")
		buildctl := b.startBuildKit(t, name)
		result := b.node.Path(name, "result")
		// The build fails if the program of the image does not run.
		_, err := buildctl("build", "--progress", "plain", "--frontend", "dockerfile.v0",
			"--local", "context="+filepath.Dir(dockerfile), "--local", "dockerfile="+filepath.Dir(dockerfile),
			"--output", "type=local,dest="+result)
		if err != nil {
			t.Fatalf("%s: %v", pull, err)
		}
		large, err := os.ReadFile(filepath.Join(result, "noise-2"))
		if err != nil {
			t.Fatal(err)
		}
		if digestOf(large) != digestOf(noiseBytes(2, LargeLayer)) {
			t.Errorf("%s: the largest file of the image is not what it was", pull)
		}
		cameThrough(t, b.front, b.image)
	}
	b.originSentOnce(t)
}

const (
	// hub is the only upstream for which Docker has mirrors.
	hub = "docker.io"
	// hubName is the test image as Docker's users write it.
	hubName = "e2e-hello:" + tag
)

// hubBed is a bed whose origin stands in for Docker Hub. Its node has a network
// namespace with no way out: a client that goes past the mirror fails, and does
// not reach the true Docker Hub.
type hubBed struct {
	bed
	front *Tap // before the daemon: what the client asks and gets
}

func newHub(t *testing.T) *hubBed {
	t.Helper()
	nw := NewNetwork(t)
	b := &hubBed{bed: bed{image: newImage(t, MultiPlatform)}}
	b.registry = NewNodeAt(t, "origin", nw.Addr, "").StartRegistry(t)
	b.registry.Push(t, b.image, "library/e2e-hello", tag)
	b.node = nw.NewNode(t, "node")
	b.daemon = b.node.StartDaemon(t, DaemonConfig{
		Registries:      []string{hub + "=" + b.registry.Origin.URL()},
		DefaultRegistry: hub,
		Extra:           []string{"--tag-ttl", "1ms"},
	})
	b.front = NewTap(t, nw.Addr, b.daemon.URL())
	return b
}

// startDocker runs a dockerd with nothing in it until the end of the test, and
// returns its client.
func (b *hubBed) startDocker(t *testing.T, name string) func(args ...string) (string, error) {
	t.Helper()
	dockerd := NeedProgram(t, "dockerd", "docker.io")
	docker := NeedProgram(t, "docker", "docker.io")
	NeedProgram(t, "containerd", "containerd")
	NeedProgram(t, "runc", "runc")
	dir := b.node.Path(name)
	config := b.node.Write(t, fmt.Sprintf("{\"deprecated-key-path\": %q}\n", filepath.Join(dir, "key.json")), name, "etc/docker/daemon.json")
	b.node.install(t, dir, "docker", "--mirror", b.front.URL())
	driver := "vfs"
	if snapshotterFor(t, dir) == "overlayfs" {
		driver = "overlay2"
	}
	host := "unix://" + filepath.Join(dir, "d.sock")
	proc := b.node.Start(t, name, b.node.Command(dockerd, "--config-file", config, "--host", host,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"),
		"--storage-driver", driver, "--exec-opt", "native.cgroupdriver=cgroupfs",
		"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"))
	run := func(args ...string) (string, error) {
		cmd := b.node.Command(docker, append([]string{"--host", host, "--config", dir}, args...)...)
		return runToEnd(cmd)
	}
	if err := proc.waitReady(func() error { _, err := run("version"); return err }); err != nil {
		t.Fatal(err)
	}
	return run
}

// startBuildKit runs a buildkitd with nothing in it until the end of the test,
// and returns its client.
func (b *hubBed) startBuildKit(t *testing.T, name string) func(args ...string) (string, error) {
	t.Helper()
	NeedProgram(t, "runc", "runc")
	bin, err := buildkitBinaries()
	if err != nil {
		missing(t, "needs BuildKit: %v", err)
	}
	dir := b.node.Path(name)
	config := b.node.Write(t, "[worker.oci]\n  enabled = true\n[worker.containerd]\n  enabled = false\n", name, "etc/buildkit/buildkitd.toml")
	b.node.install(t, dir, "buildkit", "--registry", hub, "--mirror", b.front.URL())
	snapshotter := snapshotterFor(t, dir)
	address := "unix://" + filepath.Join(dir, "b.sock")
	cmd := b.node.Command(filepath.Join(bin, "buildkitd"), "--config", config, "--addr", address,
		"--root", filepath.Join(dir, "root"), "--oci-worker-snapshotter", snapshotter, "--oci-worker-net", "host",
		"--otel-socket-path", filepath.Join(dir, "otel.sock"))
	proc := b.node.Start(t, name, cmd)
	run := func(args ...string) (string, error) {
		cmd := b.node.Command(filepath.Join(bin, "buildctl"), append([]string{"--addr", address}, args...)...)
		cmd.Env = append(cmd.Env, "HOME="+dir)
		return runToEnd(cmd)
	}
	if err := proc.waitReady(func() error { _, err := run("debug", "workers"); return err }); err != nil {
		t.Fatal(err)
	}
	return run
}

// install runs "shoal containerd install" on a file system.
func (n *Node) install(t *testing.T, root, runtime string, args ...string) {
	t.Helper()
	binary, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Run(binary, append([]string{"containerd", "install", "--root", root, "--runtime", runtime}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("install:\n%s", out)
}

// cameThrough fails unless the client got every blob of the image through the
// tap before the daemon.
func cameThrough(t *testing.T, front *Tap, img *Image) {
	t.Helper()
	for _, d := range img.Blobs {
		if got := front.Bytes(t, ForBlob(d.Digest), Delivered); got < d.Size {
			t.Errorf("the client got %d of the %d bytes of %s from the daemon: where did the rest come from?", got, d.Size, d.Digest)
		}
	}
}
