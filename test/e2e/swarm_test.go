package e2e

import (
	"os"
	"slices"
	"strconv"
	"testing"
)

// link is what the link of each node carries in the tests of the swarm, in bytes
// per second: so little that two cores keep up with sixteen of them.
const link = 100 * Mbit

// largeLayer is the size of the large layer, in bytes: 64 MiB, or as many MiB as
// the environment says. Sixteen nodes of 256 MiB take two cores about a minute.
func largeLayer(t *testing.T) int {
	t.Helper()
	mib := 64
	if v := os.Getenv(envLayer); v != "" {
		var err error
		if mib, err = strconv.Atoi(v); err != nil || mib < 1 {
			t.Fatalf("%s is %q, want a number of MiB", envLayer, v)
		}
	}
	return mib << 20
}

const envLayer = "E2E_LAYER_MIB"

// TestSwarm has 16 nodes pull the same at once, four of them with a containerd.
// What the origin sends, it sends once.
func TestSwarm(t *testing.T) {
	const nodes = 16
	c := newCluster(t, clusterConfig{nodes: nodes, schedulers: 1, rate: link})
	for i, m := range c.members[:4] {
		m.containerd = m.StartContainerd(t, Releases[i%len(Releases)], "containerd", ContainerdOptions{})
		m.containerd.Mirror(t, upstream, c.registry.Direct.URL(), m.daemon.URL())
	}
	images := []struct {
		name string
		make func() (*Image, error)
		most float64 // copies that the origin may send
	}{
		{"one large layer", func() (*Image, error) { return NoiseImage(100, largeLayer(t)) }, 1.02},
		{"twenty layers", func() (*Image, error) { return NoiseImage(120, slices.Repeat([]int{512 << 10}, 20)...) }, 1.05},
		{"index", MultiPlatform, 1.05},
	}
	for i, image := range images {
		t.Run(image.name, func(t *testing.T) {
			img := newImage(t, image.make)
			tag := string(rune('a' + i))
			c.registry.Push(t, img, repository, tag)
			c.registry.Origin.Reset(t)
			var pulls []*pull
			for _, m := range c.members {
				pulls = append(pulls, m.startImage(t, img, tag))
			}
			allSucceed(t, pulls...)
			c.sentCopies(t, img.Payload(), image.most)
			if img.index != nil {
				runs(t, c.members[0].containerd, CRINamespace, upstream+"/"+repository+":"+tag)
			}
		})
	}

	// Each node starts when the one before has got something.
	t.Run("late joiners", func(t *testing.T) {
		blob := c.blob(t, 150, 16<<20)
		c.registry.Origin.Reset(t)
		var pulls []*pull
		for _, m := range c.members {
			before := m.received(t)
			pulls = append(pulls, m.startBlobs(t, blob))
			m.brings(t, blob.Size/8, before)
		}
		allSucceed(t, pulls...)
		c.sentCopies(t, blob.Size, 1.02)
	})
}

// TestSwarmOfOneSeed has one node have a layer, takes the origin away, and has 15
// others pull it.
func TestSwarmOfOneSeed(t *testing.T) {
	const nodes = 16
	c := newCluster(t, clusterConfig{nodes: nodes, schedulers: 1, rate: link})
	blob := c.blob(t, 151, 64<<20)
	seed, leechers := c.members[0], c.members[1:]
	allSucceed(t, seed.startBlobs(t, blob))
	c.registry.Stop(t)
	bySeed, byLeechers := sum(t, metricUploaded, seed), sum(t, metricUploaded, leechers...)
	allSucceed(t, startAll(t, leechers, blob)...)
	bySeed = sum(t, metricUploaded, seed) - bySeed
	byLeechers = sum(t, metricUploaded, leechers...) - byLeechers
	t.Logf("the seed sent %.2f copies, all together sent %.2f", copies(bySeed, blob), copies(bySeed+byLeechers, blob))
	if got := copies(bySeed, blob); got > 1.5 {
		t.Errorf("the seed sent %.2f copies, at most 1.5 are allowed", got)
	}
	// There is nobody else they can have it from: a lower count misses some.
	if got := copies(bySeed+byLeechers, blob); got < nodes-1 {
		t.Errorf("all together sent %.2f copies to %d nodes: where did the rest come from?", got, nodes-1)
	}
}

// TestSwarmAsksWhoMayRead pulls where the origin decides for each caller, which
// is how daemons are set up unless told otherwise.
func TestSwarmAsksWhoMayRead(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link, daemon: DaemonConfig{Auth: "relay"}})
	img := newImage(t, MultiPlatform)
	c.registry.Push(t, img, repository, tag)
	c.registry.Origin.Reset(t)
	var pulls []*pull
	for _, m := range c.members {
		pulls = append(pulls, m.startImage(t, img, tag))
	}
	allSucceed(t, pulls...)
	c.sentCopies(t, img.Payload(), 1.05)
}

// TestSwarmOverIPv6 pulls on nodes that have no IPv4 address.
func TestSwarmOverIPv6(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 3, schedulers: 1, rate: link, network: NewNetwork6})
	blob := c.blob(t, 160, 16<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members, blob)...)
	c.sentCopies(t, blob.Size, 1.02)
}

// TestSwarmOverTLS pulls on nodes that prove themselves to each other and to the
// scheduler. Who cannot is let in by nobody, and pulls from the origin.
func TestSwarmOverTLS(t *testing.T) {
	ca, foreign := NewCA(t, "the cluster's CA"), NewCA(t, "another CA")
	c := newCluster(t, clusterConfig{nodes: 3, schedulers: 1, rate: link, ca: ca})
	blob := c.blob(t, 170, 16<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members, blob)...)
	c.sentCopies(t, blob.Size, 1.02)

	n := c.newNode(t, "foreign")
	strangers := []*member{
		c.startDaemon(t, n, foreign.Issue(t, n, foreign, ca)), // believes in the others
		c.startDaemon(t, c.newNode(t, "plain"), nil),
	}
	uploaded := sum(t, metricUploaded, c.members...)
	for _, m := range strangers {
		c.registry.Origin.Reset(t)
		allSucceed(t, m.startBlobs(t, blob))
		if sent := c.registry.Origin.Bytes(t, ForBlob(blob.Digest), From(m.Addr)); sent < blob.Size {
			t.Errorf("%s had %d of %d bytes from the origin: who let it in?", m.Name, sent, blob.Size)
		}
	}
	if more := sum(t, metricUploaded, c.members...) - uploaded; more > 0 {
		t.Errorf("strangers were sent %d bytes", more)
	}
	c.connected(t, len(c.members))
}

func copies(bytes int64, d Descriptor) float64 { return float64(bytes) / float64(d.Size) }
