package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestDaemonDiesInMidPull kills the daemon while a layer flows through it. The
// pull succeeds, by the origin.
func TestDaemonDiesInMidPull(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newBed(t, SinglePlatform)
		large := b.image.Large()
		hold := &Fault{HoldAfter: large.Size / 2}
		b.registry.Origin.Order(ForBlob(large.Digest), hold)
		c := b.containerd(t, release, "containerd", ContainerdOptions{}, b.daemon.URL())

		pulled := make(chan error, 1)
		go func() { pulled <- c.PullCRI(t.Context(), byTag()) }()
		select {
		case <-hold.Held():
		case err := <-pulled:
			t.Fatalf("the pull ended without the layer: %v", err)
		}
		// Bytes reach containerd while the origin has more to send.
		Eventually(t, "containerd has a part of the layer", time.Minute, func() error {
			return c.hasPartOf(CRINamespace, large)
		})
		b.daemon.Kill()
		if err := <-pulled; err != nil {
			t.Fatal(err)
		}
		if err := c.CheckContent(CRINamespace, b.image.Blobs...); err != nil {
			t.Error(err)
		}
		runs(t, c, CRINamespace, byTag())
		if rest := b.registry.Direct.Requests(t, ForBlob(large.Digest), Delivered); len(rest) == 0 {
			t.Error("containerd did not get the rest of the layer from the origin")
		}
	})
}

// TestKilledDaemonResumes kills the daemon in the middle of a layer and starts it
// again: it goes on from what it has, and what it has is right.
func TestKilledDaemonResumes(t *testing.T) {
	b := newBed(t, SinglePlatform)
	large := b.image.Large()
	half := large.Size / 2
	hold := &Fault{HoldAfter: half}
	b.registry.Origin.Order(ForBlob(large.Digest), hold)

	body, err := b.client().Open(t.Context(), large.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	// All but a few pieces of that half pass through while the rest is held.
	if _, err := io.CopyN(io.Discard, body, half-1<<20); err != nil {
		t.Fatal(err)
	}
	b.daemon.Kill()
	b.registry.Origin.Heal()
	b.daemon.Restart(t)

	if err := b.client().CheckBlobs(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	// A daemon that starts over makes the origin send 1.5 times the layer. What
	// was on its way when it died, in buffers or in pieces not yet noted, may
	// come twice.
	if sent := b.registry.Origin.Bytes(t, ForBlob(large.Digest)); float64(sent) > 1.25*float64(large.Size) {
		t.Errorf("the origin sent %d bytes of a layer of %d", sent, large.Size)
	}
}

// hasPartOf is nil if containerd is writing a blob and has some of it.
func (c *Containerd) hasPartOf(namespace string, d Descriptor) error {
	active, err := c.Ctr(namespace, "content", "active")
	if err != nil {
		return err
	}
	// REF SIZE AGE, one header line. A ref ends with the digest.
	for line := range strings.Lines(active) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasSuffix(fields[0], d.Digest) && fields[1] != "0" && !strings.HasPrefix(line, "REF") {
			return nil
		}
	}
	return fmt.Errorf("containerd has nothing of %s yet:\n%s", d.Digest, active)
}

// TestOriginCutsConnections has the origin close every connection in the middle
// of the large layer. The daemon goes on from there; the runtime sees nothing
// of it.
func TestOriginCutsConnections(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newBed(t, SinglePlatform)
		large := b.image.Large()
		b.registry.Origin.Order(ForBlob(large.Digest), &Fault{CutAfter: large.Size/3 + 1})
		c := b.containerd(t, release, "containerd", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, c, withCRI, byTag())
		runs(t, c, CRINamespace, byTag())
		b.nothingWentPast(t)
		b.originSentOnce(t)
	})
}

// TestOriginCorrupts flips a bit of a layer. No client gets it whole and nothing
// of it is kept. The bytes before the end have been passed on, so the pull that
// meets it may fail, and the one after that succeeds.
func TestOriginCorrupts(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		b := newBed(t, SinglePlatform)
		large := b.image.Large()
		b.registry.Origin.Order(ForBlob(large.Digest), &Fault{Flip: true})

		got, err := b.client().Blob(t.Context(), large.Digest, "")
		if err == nil && got.Status == http.StatusOK {
			t.Errorf("a corrupt layer came whole, %d bytes with digest %s", got.Size, got.Digest)
		}
		c := b.containerd(t, release, "containerd", ContainerdOptions{}, b.daemon.URL())
		if err := c.PullCRI(t.Context(), byTag()); err == nil {
			if err := c.CheckContent(CRINamespace, b.image.Blobs...); err != nil {
				t.Error(err)
			}
		} else {
			t.Logf("the pull from the corrupt origin: %v", err)
		}

		b.registry.Origin.Heal()
		Eventually(t, "the layer comes whole from an origin that is well again", time.Minute, func() error {
			return b.client().CheckBlobs(t.Context(), large)
		})
		// containerd resumes on top of what it had got until its garbage
		// collector has taken that away, and fails as long.
		Eventually(t, "containerd pulls again", time.Minute, func() error {
			return c.PullCRI(t.Context(), byTag())
		})
		b.pullsAndHolds(t, c, withCRI, byTag())
		runs(t, c, CRINamespace, byTag())
	})
}
