package test

import (
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

// number returns the value of a metric.
func (n *node) number(metric string) float64 {
	n.t.Helper()
	v, err := strconv.ParseFloat(n.metric(metric), 64)
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// mostCopies insists that the origin sent no more than so many copies.
func mostCopies(t *testing.T, o *registrytest.Origin, size int, most float64) {
	t.Helper()
	c := copies(o, size)
	t.Logf("%d requests, %.3f copies", len(o.Requests()), c)
	if c > most {
		t.Errorf("origin sent %.3f copies, should be at most %.2f", c, most)
	}
}

// Who holds a blob whole serves it to all others, about once, with the origin
// down.
func TestSwarmSeed(t *testing.T) {
	const size = 48 << 20
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, size))
	nodes := startCluster(t, o, 8, []*sched{startScheduler(t)})
	nodes[0].blob(d)
	nodes[0].settled()
	o.Down()
	pullAll(t, nodes[1:], d)
	up := nodes[0].number("shoal_peer_uploaded_bytes_total") / size
	t.Logf("the seed uploaded %.2f copies", up)
	if up > 1.5 {
		t.Errorf("the seed uploaded %.2f copies, should be at most 1.5", up)
	}
}

// A daemon that starts again announces what it holds.
func TestSwarmSeedRestarted(t *testing.T) {
	const size = 3 << 20
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, size))
	nodes := startCluster(t, o, 2, []*sched{startScheduler(t)})
	nodes[0].blob(d)
	nodes[0].settled()
	again := nodes[0].restart()
	again.connected()
	o.Down()
	nodes[1].blob(d)
}

// Who comes later finds what is there.
func TestSwarmLateJoiners(t *testing.T) {
	const size = 24 << 20
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, size))
	nodes := startCluster(t, o, 8, []*sched{startScheduler(t)})
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { pullAll(t, []*node{n}, d) })
		if i < len(nodes)-1 {
			eventually(t, "the one before has begun to get something", func() bool {
				return n.number("shoal_origin_received_bytes_total")+n.number("shoal_peer_received_bytes_total") > 0
			})
		}
	}
	wg.Wait()
	mostCopies(t, o, size, 1.02)
}

// midway has nodes pull a blob at once, and calls do when the origin has sent
// a third of it and all nodes exchange it.
func midway(t *testing.T, o *registrytest.Origin, nodes []*node, size int, do func()) {
	t.Helper()
	d := o.AddBlob("app", noise(uint64(size), size))
	var once sync.Once
	done := make(chan struct{})
	var sent sync.WaitGroup
	cancel := o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: d}, registrytest.After(int64(size)/9, func() {
		once.Do(func() {
			sent.Go(func() {
				// Who has not begun by then would have to do without. And the
				// origin must not hold all up while it is done: then the nodes
				// would help themselves.
				for _, n := range nodes {
					eventually(t, "every node is in the swarm", func() bool { return n.metric("shoal_peer_connections") != "0" })
				}
				close(done)
				do()
			})
		})
		<-done
	}))
	defer cancel()
	pullAll(t, nodes, d)
	select {
	case <-done:
	default:
		t.Error("nothing was done midway")
	}
	sent.Wait()
}

// Pulls go on when their scheduler is gone, and when another takes its place.
func TestSwarmLosesScheduler(t *testing.T) {
	const size = 36 << 20
	t.Run("for good", func(t *testing.T) {
		o := registrytest.New(t)
		s := startScheduler(t)
		nodes := startCluster(t, o, 8, []*sched{s})
		midway(t, o, nodes, size, s.stop)
		mostCopies(t, o, size, 1.2)
		// What comes then has no scheduler at all.
		o.ResetCounters()
		const small = 8 << 20
		pullAll(t, nodes, o.AddBlob("app", noise(7, small)))
		mostCopies(t, o, small, 8)
	})
	t.Run("replaced", func(t *testing.T) {
		o := registrytest.New(t)
		s := startScheduler(t)
		nodes := startCluster(t, o, 8, []*sched{s})
		midway(t, o, nodes, size, func() {
			s.stop()
			startScheduler(t, func(c *standalone.Config) { c.Listen = s.addr })
		})
		mostCopies(t, o, size, 1.2)
	})
	t.Run("one of two", func(t *testing.T) {
		o := registrytest.New(t)
		a, b := startScheduler(t), startScheduler(t)
		nodes := startCluster(t, o, 8, []*sched{a, b})
		midway(t, o, nodes, size, a.stop)
		midway(t, o, nodes, size+1, func() {})
		mostCopies(t, o, 2*size, 1.2)
	})
}

// Without any scheduler each node gets its blobs from the origin.
func TestSwarmWithoutScheduler(t *testing.T) {
	const size = 3 << 20
	o := registrytest.New(t)
	nobody := &sched{addr: "127.0.0.1:9"}
	nodes := []*node{startMember(t, o, 0, []*sched{nobody}), startMember(t, o, 1, []*sched{nobody})}
	pullAll(t, nodes, o.AddBlob("app", noise(1, size)))
}

// When the origin goes away after the swarm has got every piece, nobody
// notices.
func TestSwarmLosesOrigin(t *testing.T) {
	const size = 16 << 20
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, size))
	nodes := startCluster(t, o, 6, []*sched{startScheduler(t)})
	var wg sync.WaitGroup
	wg.Go(func() { pullAll(t, nodes, d) })
	eventually(t, "every piece has come", func() bool {
		sum := 0.0
		for _, n := range nodes {
			sum += n.number("shoal_origin_received_bytes_total")
		}
		return sum >= size
	})
	o.Down()
	wg.Wait()
}

// With the origin down and nobody who has the blob, pulls fail, clearly and
// soon enough for a runtime to go elsewhere.
func TestSwarmFindsNothing(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, 1<<20))
	nodes := startCluster(t, o, 3, []*sched{startScheduler(t)})
	o.Down()
	each(nodes, func(i int, n *node) {
		began := time.Now()
		a := n.get(blobPath(d))
		if a.StatusCode < 500 {
			t.Errorf("node %d: status %d: %.200s", i, a.StatusCode, short(a.body))
		}
		t.Logf("node %d: status %d after %v: %.200s", i, a.StatusCode, time.Since(began).Round(time.Millisecond), short(a.body))
	})
}

// What the origin does not have it is asked for once by each at most, and said
// not to be there.
func TestSwarmOfNothing(t *testing.T) {
	o := registrytest.New(t)
	o.AddBlob("app", []byte("something"))
	nodes := startCluster(t, o, 3, []*sched{startScheduler(t)})
	each(nodes, func(i int, n *node) {
		a := n.get(blobPath(digest.FromString("nobody has it")))
		if a.StatusCode != http.StatusNotFound {
			t.Errorf("node %d: status %d: %.200s", i, a.StatusCode, short(a.body))
		}
	})
	t.Logf("%d requests", len(o.Requests()))
}

// Nothing is left behind of a thousand blobs.
func TestSwarmLeavesNothing(t *testing.T) {
	o := registrytest.New(t)
	nodes := startCluster(t, o, 3, []*sched{startScheduler(t)}, func(c *daemon.Config) { c.CacheSize = 64 << 20 })
	pull := func(from, to int) {
		for i := from; i < to; i++ {
			pullAll(t, nodes, o.AddBlob("app", noise(uint64(i), 1000+i%7*60_000)))
		}
		for _, n := range nodes {
			n.settled()
			eventually(t, "connections lapse", func() bool { return n.metric("shoal_peer_connections") == "0" })
			n.http.CloseIdleConnections()
		}
	}
	pull(0, 50)
	goroutines, files, heap := resources(t)
	pull(50, 1000)
	var g, f int
	var h uint64
	eventually(t, "goroutines and descriptors are as before", func() bool {
		g, f, h = resources(t)
		return g <= goroutines+10 && f <= files+10
	})
	t.Logf("goroutines %d, then %d; descriptors %d, then %d; heap %d KiB, then %d KiB", goroutines, g, files, f, heap>>10, h>>10)
	// The origin of this test keeps each blob, 190 KB on average.
	if kept := uint64(950 * 190_000); h > heap+kept+32<<20 {
		t.Errorf("heap grew from %d to %d KiB, of which the origin has %d", heap>>10, h>>10, kept>>10)
	}
}

// resources counts what this process holds.
func resources(t *testing.T) (goroutines, files int, heap uint64) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc to count descriptors in:", err)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), len(entries), m.HeapAlloc
}
