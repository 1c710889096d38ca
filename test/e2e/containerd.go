package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Release is one line of containerd.
type Release struct {
	// Name tells subtests apart.
	Name string
	// Find returns the directory of containerd, ctr and the shim, or ends the
	// test.
	Find func(t testing.TB) string
	// config renders config.toml.
	config func(c *Containerd, options ContainerdOptions) string
}

// Containerd16 is Debian's.
var Containerd16 = Release{Name: "containerd-1.6", Find: findContainerd16, config: configVersion2}

// Containerd2 is the release of the 2.x line that containerd2/go.mod pins.
var Containerd2 = Release{Name: "containerd-2", Find: findContainerd2, config: configVersion3}

// Containerd17 is the release of the 1.7 line that containerd17/go.mod pins. It
// has containerd alone: it pulls, and runs nothing.
var Containerd17 = Release{Name: "containerd-1.7", Find: findContainerd17}

// Releases are all lines that the tests run with.
var Releases = []Release{Containerd16, Containerd2}

func findContainerd16(t testing.TB) string {
	t.Helper()
	NeedProgram(t, "runc", "runc")
	path := NeedProgram(t, "containerd", "containerd")
	version, err := (&Node{Dir: "/"}).Run(path, "--version")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(version, " 1.6.") {
		missing(t, "needs containerd 1.6 (Debian 12's package containerd), found %s", strings.TrimSpace(version))
	}
	return filepath.Dir(path)
}

func findContainerd17(t testing.TB) string {
	t.Helper()
	dir, err := containerd17Binaries()
	if err != nil {
		missing(t, "needs containerd 1.7: %v", err)
	}
	return dir
}

func findContainerd2(t testing.TB) string {
	t.Helper()
	NeedProgram(t, "runc", "runc")
	dir, err := containerd2Binaries()
	if err != nil {
		missing(t, "needs containerd 2: %v", err)
	}
	return dir
}

// ContainerdOptions is how a containerd is started.
type ContainerdOptions struct {
	// RangeSize turns on parallel range fetching with chunks of so many bytes.
	// Only the 2.x line has it.
	RangeSize int
	// Downloads is how many requests it makes at once; 0 leaves the default, 3.
	Downloads int
	// Sandbox is the image that holds a pod's namespaces; empty leaves the
	// default, which is on the network. With it, pods are killed no later than
	// containerd when memory runs out: to say otherwise takes a capability that
	// not every machine gives.
	Sandbox string
}

// Containerd is a running containerd with nothing in it.
type Containerd struct {
	// HostsDir is its registry configuration, what /etc/containerd/certs.d
	// often is.
	HostsDir string
	// Snapshotter is overlayfs, or native where overlayfs does not mount.
	Snapshotter string

	node   *Node
	dir    string
	bin    string // directory of its programs
	socket string
	images cri.ImageServiceClient
	pods   cri.RuntimeServiceClient
}

// StartContainerd runs a containerd with an empty root on the node until the
// end of the test. A node may have several, told apart by name.
func (n *Node) StartContainerd(t testing.TB, release Release, name string, options ContainerdOptions) *Containerd {
	t.Helper()
	NeedRoot(t)
	c := &Containerd{node: n, bin: release.Find(t), dir: n.Path(name)}
	c.socket = filepath.Join(c.dir, "c.sock")
	c.HostsDir = filepath.Join(c.dir, "certs.d")
	if err := os.MkdirAll(c.HostsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.Snapshotter = snapshotterFor(t, c.dir)
	config := n.Write(t, release.config(c, options), name, "config.toml")

	cmd := n.Command(c.program("containerd"), "--config", config)
	// containerd looks for its shim on PATH before its own directory.
	cmd.Env = append(cmd.Env, "PATH="+c.bin+":"+os.Getenv("PATH"))
	c.start(t, name, cmd)
	return c
}

// start runs a containerd that listens on c.socket until the end of the test,
// and returns when its CRI answers.
func (c *Containerd) start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	// Registered before the process, so that it runs after containerd's end:
	// what a failed test left running would otherwise be restarted.
	t.Cleanup(func() {
		if err := killByArgument(c.socket); err != nil {
			t.Errorf("ending the shims of %s: %v", name, err)
		}
	})
	proc := c.node.Start(t, name, cmd)
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("CRI of %s: %v", name, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c.images, c.pods = cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)
	err = proc.waitReady(func() error {
		_, err := c.images.ListImages(t.Context(), &cri.ListImagesRequest{}, grpc.WaitForReady(false))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

func (c *Containerd) program(name string) string { return filepath.Join(c.bin, name) }

// Mirror writes the hosts.toml of one upstream: first the mirrors, base URLs,
// in this order, then the server. With an empty server containerd falls back to
// the upstream by its name.
func (c *Containerd) Mirror(t testing.TB, upstream, server string, mirrors ...string) {
	t.Helper()
	var b strings.Builder
	if server != "" {
		fmt.Fprintf(&b, "server = %q\n", server)
	}
	for _, m := range mirrors {
		// The only capabilities that every version of containerd knows.
		fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", m)
	}
	dir := filepath.Join(c.HostsDir, upstream)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// By renaming: a pull that begins now finds the one or the other.
	file := filepath.Join(dir, "hosts.toml")
	if err := os.WriteFile(file+".new", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// Namespaces of containerd.
const (
	// CtrNamespace is where [Containerd.Pull] puts images.
	CtrNamespace = "default"
	// CRINamespace is where the CRI puts images.
	CRINamespace = "k8s.io"
)

// Ctr runs ctr in a namespace and returns its standard output.
func (c *Containerd) Ctr(namespace string, args ...string) (string, error) {
	args = append([]string{"--address", c.socket, "--namespace", namespace}, args...)
	return c.node.Run(c.program("ctr"), args...)
}

// Pull pulls with ctr.
func (c *Containerd) Pull(ref string, flags ...string) error {
	args := append([]string{"images", "pull", "--hosts-dir", c.HostsDir, "--snapshotter", c.Snapshotter}, flags...)
	_, err := c.Ctr(CtrNamespace, append(args, ref)...)
	return err
}

// PullCRI pulls through the CRI, as the kubelet does, without credentials.
func (c *Containerd) PullCRI(ctx context.Context, ref string) error {
	return c.PullCRIAs(ctx, ref, "", "")
}

// PullCRIAs is PullCRI with what the kubelet makes of a pull secret: user and
// password, and no server address.
func (c *Containerd) PullCRIAs(ctx context.Context, ref, user, password string) error {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	req := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}
	if user != "" {
		req.Auth = &cri.AuthConfig{Username: user, Password: password}
	}
	_, err := c.images.PullImage(ctx, req)
	if err != nil {
		return fmt.Errorf("CRI PullImage %s: %w", ref, err)
	}
	return nil
}

// RunImage runs a container from a pulled image to its end, on the host's
// network, and returns its output.
func (c *Containerd) RunImage(namespace, ref, id string) (string, error) {
	return c.Ctr(namespace, "run", "--rm", "--snapshotter", c.Snapshotter, ref, id)
}

// Resolved is the digest that containerd recorded for an image name.
func (c *Containerd) Resolved(namespace, ref string) (string, error) {
	list, err := c.Ctr(namespace, "images", "ls", "name=="+ref)
	if err != nil {
		return "", err
	}
	// REF TYPE DIGEST SIZE PLATFORMS LABELS, one header line.
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == ref {
			return fields[2], nil
		}
	}
	return "", fmt.Errorf("containerd has no image %s", ref)
}

// CheckContent reads content back from containerd and hashes it.
func (c *Containerd) CheckContent(namespace string, content ...Descriptor) error {
	for _, d := range content {
		hash := sha256.New()
		cmd := c.node.Command(c.program("ctr"), "--address", c.socket, "--namespace", namespace, "content", "get", d.Digest)
		cmd.Stdout = hash
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("reading %s from containerd: %w", d.Digest, err)
		}
		if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != d.Digest {
			return fmt.Errorf("containerd holds %s under the name %s", got, d.Digest)
		}
	}
	return nil
}

// disabledPlugins are those that would write outside the root or need devices.
const disabledPlugins = `disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]
`

// commonConfig is what both config versions have. Content is isolated so that
// what one namespace has pulled is not there already when another pulls.
const commonConfig = disabledPlugins + `root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/c.sock"
[ttrpc]
  address = "%[1]s/c.sock.ttrpc"
[debug]
  level = "debug"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
`

// configVersion2 is a config.toml for containerd 1.6.
func configVersion2(c *Containerd, options ContainerdOptions) string {
	sandbox := ""
	if options.Sandbox != "" {
		sandbox = fmt.Sprintf("[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n  sandbox_image = %q\n", options.Sandbox)
	}
	return "version = 2\n" + fmt.Sprintf(commonConfig+sandbox+`[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "%[1]s/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "%[2]s"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "%[3]s"
`, c.dir, c.Snapshotter, c.HostsDir)
}

// configVersion3 is a config.toml for containerd 2. Since 2.1 both ctr and the
// CRI pull by the transfer service, whose own section says how. A CRI section
// that sets max_concurrent_downloads would silently turn the CRI back to the
// old road.
func configVersion3(c *Containerd, options ContainerdOptions) string {
	downloads := options.Downloads
	if downloads == 0 {
		downloads = 3
	}
	sandbox := ""
	if options.Sandbox != "" {
		sandbox = fmt.Sprintf("[plugins.\"io.containerd.cri.v1.runtime\"]\n  restrict_oom_score_adj = true\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = %q\n", options.Sandbox)
	}
	return "version = 3\n" + fmt.Sprintf(commonConfig+sandbox+`[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "%[1]s/cni"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "%[2]s"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "%[3]s"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "%[3]s"
  max_concurrent_downloads = %[4]d
  concurrent_layer_fetch_buffer = %[5]d
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "%[2]s"
`, c.dir, c.Snapshotter, c.HostsDir, downloads, options.RangeSize)
}
