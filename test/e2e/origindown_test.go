package e2e

import "testing"

// TestOriginDown fills the store through one containerd and takes the origin
// away. Others with nothing of their own then pull the same.
func TestOriginDown(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		// Tags are forgotten at once, so that the second pull has to ask the
		// origin in vain before the old answer serves.
		b := newBed(t, MultiPlatform, "--tag-ttl", "1ms")
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
