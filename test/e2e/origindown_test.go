package e2e

import "testing"

// TestOriginDown fills the store through one containerd and takes the origin
// away. Others with nothing of their own then pull the same.
func TestOriginDown(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newBed(t, MultiPlatform)
		first := b.containerd(t, release, "first", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, first, withCRI, byTag())
		b.registry.Stop(t)

		second := b.containerd(t, release, "second", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, second, withCRI, byTag())
		runs(t, second, CRINamespace, byTag())

		// What is in the store is there after a restart, too.
		b.daemon.Stop(t)
		b.daemon.Restart(t)
		third := b.containerd(t, release, "third", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, third, withCRI, b.byDigest())
		runs(t, third, CRINamespace, b.byDigest())

		b.nothingWentPast(t)
		b.originSentOnce(t)
	})
}

// TestCrashedDaemonKeepsItsStore is the same with a daemon that was killed: a
// pull that has ended is durable.
func TestCrashedDaemonKeepsItsStore(t *testing.T) {
	b := newBed(t, SinglePlatform)
	if err := b.client().CheckManifests(t.Context(), b.image.Manifests...); err != nil {
		t.Fatal(err)
	}
	if err := b.client().CheckBlobs(t.Context(), b.image.Blobs...); err != nil {
		t.Fatal(err)
	}
	b.daemon.Kill()
	b.registry.Stop(t)
	b.daemon.Restart(t)
	if err := b.client().CheckManifests(t.Context(), b.image.Manifests...); err != nil {
		t.Error(err)
	}
	if err := b.client().CheckBlobs(t.Context(), b.image.Blobs...); err != nil {
		t.Error(err)
	}
}
