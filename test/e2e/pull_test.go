package e2e

import "testing"

// TestPullAndRun pulls through the mirror in each way a node does, and runs a
// container from what came.
func TestPullAndRun(t *testing.T) {
	cases := []struct {
		name     string
		image    func() (*Image, error)
		with     puller
		byDigest bool
	}{
		{"ctr, image by tag", SinglePlatform, withCtr, false},
		{"ctr, index by digest", MultiPlatform, withCtr, true},
		{"cri, index by tag", MultiPlatform, withCRI, false},
		{"cri, image by digest", SinglePlatform, withCRI, true},
	}
	eachRelease(t, func(t *testing.T, release Release) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				b := newBed(t, c.image)
				runtime := b.containerd(t, release, "containerd", ContainerdOptions{}, b.daemon.URL())
				ref := byTag()
				if c.byDigest {
					ref = b.byDigest()
				}
				b.pullsAndHolds(t, runtime, c.with, ref)
				b.nothingWentPast(t)
				b.originSentOnce(t)
				runs(t, runtime, c.with.namespace, ref)
			})
		}
	})
}

// TestPullEveryPlatform pulls all of an index.
func TestPullEveryPlatform(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newBed(t, MultiPlatform)
		c := b.containerd(t, release, "containerd", ContainerdOptions{}, b.daemon.URL())
		// ctr of 1.6 pulls all platforms and unpacks all of them; so does 2.
		if err := c.Pull(byTag(), "--all-platforms"); err != nil {
			t.Fatal(err)
		}
		if err := c.CheckContent(CtrNamespace, b.image.Manifests...); err != nil {
			t.Error(err)
		}
		if err := c.CheckContent(CtrNamespace, b.image.AllBlobs...); err != nil {
			t.Error(err)
		}
		b.nothingWentPast(t)
		b.originSentOnce(t)
	})
}

// TestUpstreamWithPort pulls a name that carries a port, and has containerd
// fall back by that name alone: hosts.toml names no server.
func TestUpstreamWithPort(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := bedWithout(t, SinglePlatform)
		host := b.registry.Direct.Addr
		b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{host + "=" + b.registry.Origin.URL()}})
		c := b.node.StartContainerd(t, release, "containerd", ContainerdOptions{})
		c.Mirror(t, host, "", b.daemon.URL())
		b.pullsAndHolds(t, c, withCtr, host+"/"+repository+":"+tag)
		b.nothingWentPast(t)
		b.originSentOnce(t)
	})
}
