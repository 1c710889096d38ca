package e2e

import (
	"flag"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	// Tests that run side by side wait more than they work; fewer at a time
	// would be the slower for nothing. A flag of the command line wins.
	if err := flag.Set("test.parallel", "5"); err != nil {
		panic(err)
	}
	os.Exit(Main(m))
}

const (
	// upstream is the registry host that image names carry. It does not
	// resolve: who gets there got there by configuration.
	upstream   = "origin.e2e.test"
	repository = "apps/hello"
	tag        = "v1"
)

// bed is what most tests lie on: a registry with one image, a node with a
// daemon before it.
type bed struct {
	registry *Registry
	node     *Node
	daemon   *Daemon
	image    *Image
}

func newBed(t *testing.T, make func() (*Image, error), extra ...string) *bed {
	t.Helper()
	b := bedWithout(t, make)
	b.daemon = b.node.StartDaemon(t, DaemonConfig{
		Registries:      []string{upstream + "=" + b.registry.Origin.URL()},
		DefaultRegistry: upstream,
		Extra:           extra,
	})
	return b
}

// bedWithout has no daemon yet.
func bedWithout(t *testing.T, make func() (*Image, error)) *bed {
	t.Helper()
	b := &bed{image: newImage(t, make)}
	b.registry = NewNode(t, "origin").StartRegistry(t)
	b.registry.Push(t, b.image, repository, tag)
	b.node = NewNode(t, "node")
	return b
}

func newImage(t *testing.T, make func() (*Image, error)) *Image {
	t.Helper()
	img, err := make()
	if err != nil {
		t.Fatalf("making the test image: %v", err)
	}
	return img
}

func byTag() string { return upstream + "/" + repository + ":" + tag }

func (b *bed) byDigest() string { return upstream + "/" + repository + "@" + b.image.Digest }

// containerd starts one that asks the mirror first and falls back to the origin.
func (b *bed) containerd(t *testing.T, release Release, name string, options ContainerdOptions, mirror string) *Containerd {
	t.Helper()
	c := b.node.StartContainerd(t, release, name, options)
	c.Mirror(t, upstream, b.registry.Direct.URL(), mirror)
	return c
}

// client asks the daemon as containerd does.
func (b *bed) client() Client {
	return Client{Base: b.daemon.URL(), Namespace: upstream, Repository: repository}
}

// nothingWentPast fails if the runtime asked the origin itself.
func (b *bed) nothingWentPast(t *testing.T) {
	t.Helper()
	if past := b.registry.Direct.Requests(t); len(past) > 0 {
		t.Errorf("%d requests went past the mirror, the first: %s", len(past), past[0])
	}
}

// originSentOnce fails if the origin did not send each of the blobs, or sent
// one of any platform more than once. Two percent are for what lies in socket
// buffers when a connection is dropped.
func (b *bed) originSentOnce(t *testing.T) {
	t.Helper()
	for _, d := range b.image.Blobs {
		if sent := b.registry.Origin.Bytes(t, ForBlob(d.Digest)); sent < d.Size {
			t.Errorf("the origin sent %d of the %d bytes of %s: where did the rest come from?", sent, d.Size, d.Digest)
		}
	}
	t.Logf("the origin answered %d requests with %d bytes; the image has %d",
		len(b.registry.Origin.Requests(t, ForContent)), b.registry.Origin.Bytes(t), b.image.Payload())
	for _, d := range b.image.AllBlobs {
		if sent := b.registry.Origin.Bytes(t, ForBlob(d.Digest)); float64(sent) > 1.02*float64(d.Size) {
			t.Errorf("the origin sent %d bytes of %s, which has %d", sent, d.Digest, d.Size)
		}
	}
}

// runs fails unless a container of the pulled image prints its line.
func runs(t *testing.T, c *Containerd, namespace, ref string) {
	t.Helper()
	out, err := c.RunImage(namespace, ref, "hello")
	if err != nil {
		t.Fatal(err)
	}
	if out != Hello+"\n" {
		t.Errorf("the container printed %q, want %q", out, Hello+"\n")
	}
}

// puller is a way to make containerd pull.
type puller struct {
	name      string
	namespace string
	pull      func(t *testing.T, c *Containerd, ref string) error
}

var (
	withCtr = puller{"ctr", CtrNamespace, func(_ *testing.T, c *Containerd, ref string) error { return c.Pull(ref) }}
	withCRI = puller{"cri", CRINamespace, func(t *testing.T, c *Containerd, ref string) error { return c.PullCRI(t.Context(), ref) }}
)

// pullsAndHolds fails unless the pull succeeds and containerd then holds the
// right bytes.
func (b *bed) pullsAndHolds(t *testing.T, c *Containerd, with puller, ref string) {
	t.Helper()
	if err := with.pull(t, c, ref); err != nil {
		t.Fatal(err)
	}
	got, err := c.Resolved(with.namespace, ref)
	if err != nil {
		t.Fatal(err)
	}
	if got != b.image.Digest {
		t.Errorf("%s resolved to %s, want %s", ref, got, b.image.Digest)
	}
	if err := c.CheckContent(with.namespace, b.image.Blobs...); err != nil {
		t.Error(err)
	}
}

// eachRelease runs a test with every line of containerd.
func eachRelease(t *testing.T, test func(t *testing.T, release Release)) {
	for _, release := range Releases {
		t.Run(release.Name, func(t *testing.T) {
			NeedRoot(t)
			release.Find(t) // before anything is started in vain
			test(t, release)
		})
	}
}
