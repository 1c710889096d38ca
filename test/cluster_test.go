package test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

// sched is a running scheduler.
type sched struct {
	addr  string
	admin string
	cfg   standalone.Config
	logs  *lockedBuffer
	stop  func() // stops it and waits for it
}

func startScheduler(t *testing.T, change ...func(*standalone.Config)) *sched {
	t.Helper()
	cfg := standalone.DefaultConfig()
	cfg.Listen, cfg.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	logs := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, c := range change {
		c(&cfg)
	}
	s, err := standalone.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	sc := &sched{addr: s.Addr().String(), admin: s.AdminAddr().String(), cfg: cfg, logs: logs}
	sc.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler: %v", err)
		}
	})
	t.Cleanup(func() {
		sc.stop()
		if t.Failed() {
			t.Logf("log of the scheduler:\n%s", logs)
		}
	})
	return sc
}

// startCluster starts n daemons that know the schedulers, and waits until each
// is connected.
func startCluster(t *testing.T, o *registrytest.Origin, n int, scheds []*sched, change ...func(*daemon.Config)) []*node {
	t.Helper()
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = startMember(t, o, i, scheds, change...)
	}
	for _, node := range nodes {
		node.connected()
	}
	return nodes
}

// secured gives a scheduler and its nodes certificates of one CA.
func secured(t *testing.T) (func(*standalone.Config), func(*daemon.Config)) {
	t.Helper()
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "127.0.0.1")
	return func(c *standalone.Config) { c.TLSCert, c.TLSKey, c.TLSCA = cert, key, ca.File },
		func(c *daemon.Config) {
			c.TLSCert, c.TLSKey = ca.Issue(t, nil, c.NodeName)
			c.TLSCA = ca.File
		}
}

func startMember(t *testing.T, o *registrytest.Origin, i int, scheds []*sched, change ...func(*daemon.Config)) *node {
	t.Helper()
	return startNode(t, o, append([]func(*daemon.Config){func(c *daemon.Config) {
		c.NodeName = fmt.Sprintf("node%d", i)
		for _, s := range scheds {
			c.Schedulers = append(c.Schedulers, s.addr)
		}
	}}, change...)...)
}

func (n *node) connected() {
	n.t.Helper()
	eventually(n.t, "daemon is connected to a scheduler", func() bool { return n.metric("shoal_scheduler_connected") == "1" })
}

// each runs f for all nodes at once.
func each(nodes []*node, f func(i int, n *node)) {
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { f(i, n) })
	}
	wg.Wait()
}

// pullAll has all nodes get a blob at once, and insists that each gets it
// right.
func pullAll(t *testing.T, nodes []*node, d digest.Digest) {
	t.Helper()
	each(nodes, func(i int, n *node) {
		a := n.get(blobPath(d))
		if got := d.Algorithm().FromBytes(a.body); a.err != nil || a.StatusCode != 200 || got != d {
			t.Errorf("node %d: status %d, %v, digest %s of %d bytes: %.200s", i, a.StatusCode, a.err, got, len(a.body), short(a.body))
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// short is a body as far as it can be read.
func short(b []byte) []byte {
	if len(b) > 1000 {
		return nil
	}
	return b
}

// copies is how many times the origin has sent size bytes.
func copies(o *registrytest.Origin, size int) float64 { return float64(o.SentTotal()) / float64(size) }

// Sixteen nodes that pull a layer at once have it leave the origin once.
func TestSwarmCold(t *testing.T) {
	o := registrytest.New(t)
	nodes := startCluster(t, o, 16, []*sched{startScheduler(t)})
	for _, size := range []int{1, 1000, 256 << 10, 300 << 10, 8 << 20, 32<<20 + 17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			o.ResetCounters()
			d := o.AddBlob("app", noise(uint64(size), size))
			pullAll(t, nodes, d)
			if c := copies(o, size); c > 1.02 {
				t.Errorf("origin sent %.3f copies", c)
			}
			t.Logf("%d requests, %.3f copies", len(o.Requests()), copies(o, size))
		})
	}
}
