package e2e

import "testing"

// TestNamespaces pulls on two nodes with network namespaces of their own.
func TestNamespaces(t *testing.T) {
	NeedRoot(t)
	Containerd16.Find(t)
	network := NewNetwork(t)
	b := &bed{image: newImage(t, SinglePlatform)}
	b.registry = NewNodeAt(t, "origin", network.Addr, "").StartRegistry(t)
	b.registry.Push(t, b.image, repository, tag)
	for _, name := range []string{"one", "two"} {
		b.node = network.NewNode(t, name)
		b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + b.registry.Origin.URL()}})
		c := b.containerd(t, Containerd16, "containerd", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, c, withCRI, byTag())
		runs(t, c, CRINamespace, byTag())
		b.nothingWentPast(t)
	}
}
