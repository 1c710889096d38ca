package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// Every fault here is injected while the origin is held, at a number of bytes
// that it has sent: pulls are under way then, on a machine of any speed.

// TestSchedulerKilled kills the only scheduler in mid pull. Nobody is told what
// to fetch any more.
func TestSchedulerKilled(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	blob := c.blob(t, 1, 16<<20)
	gate := c.gate(blob.Size/2, ForBlob(blob.Digest))
	pulls := startAll(t, c.members, blob)
	held(t, gate, pulls...)
	c.schedulers[0].Kill()
	gate.Open()
	allSucceed(t, pulls...)
	c.sentCopies(t, blob.Size, 1.2)

	// What is begun now comes from the origin, for each node by itself.
	next := c.blob(t, 2, 8<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members[:2], next)...)
	c.sentCopies(t, next.Size, 2.1)
}

// TestSchedulerReplaced kills the only scheduler in mid pull and starts another
// at its address, which learns from the daemons how things stand.
func TestSchedulerReplaced(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	blob := c.blob(t, 1, 16<<20)
	gate := c.gate(blob.Size/3, ForBlob(blob.Digest))
	pulls := startAll(t, c.members, blob)
	held(t, gate, pulls...)
	c.schedulers[0].Kill()
	gate.Raise(2 * blob.Size / 3)
	held(t, gate, pulls...)
	c.schedulers[0].Restart(t)
	gate.Open()
	allSucceed(t, pulls...)
	c.sentCopies(t, blob.Size, 1.2)

	c.connected(t, len(c.members))
	next := c.blob(t, 2, 8<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members, next)...)
	c.sentCopies(t, next.Size, 1.02)
}

// TestSchedulerOfTwoKilled kills one of two schedulers in mid pull of blobs of
// which each has some.
func TestSchedulerOfTwoKilled(t *testing.T) {
	const size = 4 << 20
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 2, rate: link})
	// All eight belong to one of the two once in 128 runs.
	var blobs []Descriptor
	for i := range 8 {
		blobs = append(blobs, c.blob(t, byte(10+i), size))
	}
	gate := c.gate(size*4, ForBlobs)
	var pulls []*pull
	for _, m := range c.members {
		for _, blob := range blobs {
			pulls = append(pulls, m.startBlobs(t, blob))
		}
	}
	held(t, gate)
	c.schedulers[0].Kill()
	gate.Open()
	allSucceed(t, pulls...)
	c.sentCopies(t, size*int64(len(blobs)), 1.2)
	c.connected(t, len(c.members)) // to the one that is left
}

// TestMemberKilled kills a daemon that is bringing pieces from the origin and
// has some that nobody else has yet.
func TestMemberKilled(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	blob := c.blob(t, 1, 32<<20)
	gate := c.gate(blob.Size/2, ForBlob(blob.Digest))
	pulls := startAll(t, c.members, blob)
	held(t, gate, pulls...)
	victim := c.fetching(t, blob)
	victim.daemon.Kill()
	gate.Open()
	for _, p := range pulls {
		if p.member != victim {
			allSucceed(t, p)
		} else if p.wait() == nil {
			t.Error("the pull on the node whose daemon was killed succeeded: it was not killed in the middle")
		}
	}
	// What comes again is at most the run that it was assigned, a third of the
	// blob: what it had of that and nobody had from it yet.
	c.sentCopies(t, blob.Size, 1.34)
}

// TestMemberFrozen stops a daemon that is bringing pieces from the origin, and
// serves others, so that all its connections stay open and nothing comes. In
// the end it goes on, with a pull of its own to finish.
func TestMemberFrozen(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	blob := c.blob(t, 1, 32<<20)
	gate := c.gate(blob.Size/2, ForBlob(blob.Digest))
	pulls := startAll(t, c.members, blob)
	held(t, gate, pulls...)
	victim := c.fetching(t, blob)
	victim.daemon.Freeze()
	gate.Open()
	var own *pull
	for _, p := range pulls {
		if p.member == victim {
			own = p
			continue
		}
		allSucceed(t, p)
	}
	if !own.running() {
		t.Error("the pull on the node whose daemon was stopped ended: it was not stopped in the middle")
	}
	victim.daemon.Thaw()
	allSucceed(t, own)
	// What comes again is at most the run that it was assigned, a third of the
	// blob: what had got as far as its buffers and no further.
	c.sentCopies(t, blob.Size, 1.34)
}

// TestOriginGoneWhenSwarmHasAll takes the origin away as soon as every byte of a
// blob has reached some node. More nodes come after that.
func TestOriginGoneWhenSwarmHasAll(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	blob := c.blob(t, 1, 16<<20)
	early, late := c.members[:6], c.members[6:]
	pulls := startAll(t, early, blob)
	Eventually(t, "the swarm has every byte", runLimit, func() error {
		sent := bytesOf(c.registry.Origin.SoFar(t, ForBlob(blob.Digest)))
		got := sum(t, metricFromOrigin, early...)
		if min(sent, got) < blob.Size {
			return fmt.Errorf("of %d the origin has sent %d, and they have %d from it", blob.Size, sent, got)
		}
		return nil
	})
	c.registry.Stop(t)
	pulls = append(pulls, startAll(t, late, blob)...)
	allSucceed(t, pulls...)
}

// TestOriginNeverThere pulls what nobody has from an origin that refuses
// connections, and from one that never answers. The daemon says so while the
// runtime still waits for it, and the runtime goes elsewhere.
func TestOriginNeverThere(t *testing.T) {
	t.Run("refusing", func(t *testing.T) {
		c := newCluster(t, clusterConfig{nodes: 3, schedulers: 1, rate: link})
		blob := c.blob(t, 1, 8<<20)
		c.registry.Stop(t)
		c.failsFast(t, blob)
	})
	t.Run("silent", func(t *testing.T) {
		c := newCluster(t, clusterConfig{nodes: 3, schedulers: 1, rate: link})
		blob := c.blob(t, 1, 8<<20)
		for _, m := range c.members {
			m.Cut(t, c.network.Addr)
		}
		c.failsFast(t, blob)
		for _, m := range c.members {
			m.Mend(t)
		}
		// The origin is left alone for a while, and then asked again.
		for _, m := range c.members {
			Eventually(t, "the pull succeeds when the origin is there", runLimit, func() error {
				return m.startBlobs(t, blob).wait()
			})
		}
	})
}

// failsFast fails unless every daemon answers 5xx for a blob, and soon.
func (c *cluster) failsFast(t *testing.T, d Descriptor) {
	t.Helper()
	// A runtime itself waits 30 s for a connection, and minutes for headers.
	const moveOn = 20 * time.Second
	var pulls []*pull
	for _, m := range c.members {
		pulls = append(pulls, m.start(t, func(ctx context.Context, client Client) error {
			got, err := client.Blob(ctx, d.Digest, "")
			if err == nil && got.Status < http.StatusInternalServerError {
				err = fmt.Errorf("status %d, want 5xx", got.Status)
			}
			return err
		}))
	}
	for _, p := range pulls {
		if err := p.wait(); err != nil {
			t.Errorf("%s: %v", p.member.Name, err)
		}
		t.Logf("%s answered after %v", p.member.Name, p.took.Round(time.Millisecond))
		if p.took > moveOn {
			t.Errorf("%s took %v to fail, at most %v are allowed", p.member.Name, p.took.Round(time.Millisecond), moveOn)
		}
	}
}

// TestSchedulerOutOfReach drops, in mid pull, whatever passes between half of
// the nodes and the scheduler. The nodes still reach each other.
func TestSchedulerOutOfReach(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 8, schedulers: 1, rate: link})
	half := c.members[:4]
	blob := c.blob(t, 1, 16<<20)
	gate := c.gate(blob.Size/2, ForBlob(blob.Digest))
	pulls := startAll(t, c.members, blob)
	held(t, gate, pulls...)
	for _, m := range half {
		m.Cut(t, c.schedulers[0].node.Addr)
	}
	gate.Open()
	allSucceed(t, pulls...)
	c.sentCopies(t, blob.Size, 1.5)

	// What is begun now comes once for those that reach the scheduler, and for
	// the others as often as they have to.
	next := c.blob(t, 2, 8<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members, next)...)
	c.sentCopies(t, next.Size, float64(len(half))+1.1)

	// They find out that it is gone, and come back by themselves.
	connected(t, 0, half...)
	for _, m := range half {
		m.Mend(t)
	}
	connected(t, 1, half...)
	c.connected(t, len(c.members))
	last := c.blob(t, 3, 8<<20)
	c.registry.Origin.Reset(t)
	allSucceed(t, startAll(t, c.members, last)...)
	c.sentCopies(t, last.Size, 1.02)
}

// TestSchedulerNeverThere pulls on nodes whose scheduler has never been there.
func TestSchedulerNeverThere(t *testing.T) {
	cases := []struct {
		name      string
		scheduler func(nw *Network) string
	}{
		{"refusing", func(nw *Network) string { return net.JoinHostPort(nw.Addr, "1") }},
		{"silent", func(nw *Network) string { return net.JoinHostPort(nw.address(maxNodes+2), "4402") }},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{rate: link})
			c.config.daemon.Schedulers = []string{test.scheduler(c.network)}
			for _, name := range []string{"node1", "node2", "node3"} {
				c.members = append(c.members, c.startDaemon(t, c.newNode(t, name), nil))
			}
			blob := c.blob(t, 1, 8<<20)
			allSucceed(t, startAll(t, c.members, blob)...)
			c.sentCopies(t, blob.Size, float64(len(c.members)))
		})
	}
}
