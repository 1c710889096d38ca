package e2e

import (
	"net"
	"strconv"
	"syscall"
	"testing"
)

// TestFallThrough takes away what the mirror needs, one thing at a time:
// containerd goes to the origin by itself, at once.
func TestFallThrough(t *testing.T) {
	cases := []struct {
		name string
		// daemon starts one that cannot help, and returns the URL that
		// hosts.toml names.
		daemon func(t *testing.T, b *bed) string
		// asked says that the daemon lives and is asked.
		asked bool
	}{
		{"daemon stopped", func(t *testing.T, b *bed) string {
			b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + b.registry.Origin.URL()}})
			b.daemon.Stop(t)
			return b.daemon.URL()
		}, false},
		{"upstream not allowed", func(t *testing.T, b *bed) string {
			b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{"other.e2e.test=" + b.registry.Origin.URL()}})
			return b.daemon.URL()
		}, true},
		{"origin refuses connections", func(t *testing.T, b *bed) string {
			b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=http://" + deadAddress(t)}})
			return b.daemon.URL()
		}, true},
		{"origin is no registry", func(t *testing.T, b *bed) string {
			// The admin endpoints of another daemon answer 404 to all of it.
			other := NewNode(t, "other").StartDaemon(t, DaemonConfig{Registries: []string{upstream}})
			b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=http://" + other.Admin}})
			return b.daemon.URL()
		}, true},
	}
	eachRelease(t, func(t *testing.T, release Release) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				b := bedWithout(t, SinglePlatform)
				mirror := c.daemon(t, b)
				var seen *Tap
				if c.asked {
					seen = NewTap(t, b.node.Addr, mirror)
					mirror = seen.URL()
				}
				runtime := b.containerd(t, release, "containerd", ContainerdOptions{}, mirror)
				b.pullsAndHolds(t, runtime, withCtr, byTag())
				b.pullsAndHolds(t, runtime, withCRI, byTag())
				runs(t, runtime, CRINamespace, byTag())

				// Two pulls, neither of which finds what the other brought.
				want := 2 * len(b.image.Blobs)
				if blobs := b.registry.Direct.Requests(t, ForBlobs, Delivered); len(blobs) < want {
					t.Errorf("containerd got %d blobs from the origin, want all %d", len(blobs), want)
				}
				if c.asked {
					gaveUpAtOnce(t, seen)
				}
			})
		}
	})
}

// gaveUpAtOnce fails if the mirror was asked for anything again and again: its
// status then is one that containerd retries on the same host. There were two
// pulls, which may each ask once with HEAD and once with GET.
func gaveUpAtOnce(t *testing.T, mirror *Tap) {
	t.Helper()
	asked := mirror.Requests(t, ForContent)
	if len(asked) == 0 {
		t.Error("the mirror was never asked")
	}
	times := map[string]int{}
	for _, r := range asked {
		times[r.Method+" "+r.Path]++
		if r.Status < 400 {
			t.Errorf("the mirror should have nothing to give: %s", r)
		}
	}
	for request, n := range times {
		if n > 2 {
			t.Errorf("the mirror was asked %d times for %s", n, request)
		}
	}
}

// deadAddress is an address that refuses connections: it is bound until the end
// of the test, so that nobody else gets it, but nothing listens there.
func deadAddress(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("binding a dead address: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatalf("binding a dead address: %v", err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatalf("binding a dead address: %v", err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*syscall.SockaddrInet4).Port))
}
