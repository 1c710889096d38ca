package scheduler

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// crowd has n peers join one blob of 256 pieces, one a millisecond, with a
// tick every 200 of them.
func crowd(n int) *Core {
	c := New(DefaultConfig())
	for i := range n {
		now := time.Duration(i) * time.Millisecond
		id := PeerID(fmt.Sprint("node-", i))
		c.Step(now, id, Hello{Addr: "10.0.0.1:4401", Zone: "z"})
		c.Step(now, id, Join{Blob: "sha256:b", Size: 256 << 20, Origin: true, Source: "docker.io/library/x"})
		if i%200 == 0 {
			c.Tick(now)
		}
	}
	return c
}

// BenchmarkJoin is one Hello and Join among 10,000 peers, ticks included.
// Design 8, row 11: at most 50 µs.
func BenchmarkJoin(b *testing.B) {
	const peers = 10_000
	for range b.N {
		crowd(peers)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/peers, "ns/join")
}

// Design 8, row 11: at most 1 KiB per (peer, blob), the peer itself included,
// at 10,000 peers in one blob.
func TestMemory(t *testing.T) {
	const peers = 10_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := crowd(peers)
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / peers
	runtime.KeepAlive(c)
	t.Logf("%.0f bytes per (peer, blob)", per)
	if per > 1024 {
		t.Errorf("%.0f bytes per (peer, blob), want at most 1024", per)
	}
}

// A flash crowd is one connected graph of bounded degree and small diameter.
func TestGraph(t *testing.T) {
	for _, n := range []int{2, 9, 16, 100, 3000} {
		c := crowd(n)
		sw := c.blobs["sha256:b"][0]
		all := sw.rings[0].roll[rollAll]
		far := map[*member]int{all[0]: 0}
		queue := []*member{all[0]}
		last := 0
		for len(queue) > 0 {
			m := queue[0]
			queue = queue[1:]
			last = far[m]
			for _, o := range m.links {
				if _, ok := far[o]; !ok {
					far[o] = far[m] + 1
					queue = append(queue, o)
				}
			}
		}
		least, most := n, 0
		for _, m := range all {
			least, most = min(least, len(m.links)), max(most, len(m.links))
		}
		_, may := c.degree(sw)
		if len(far) != n || most > may || least < min(n-1, c.cfg.Degree-1) || last > 6 {
			t.Errorf("%d peers: %d connected, degree %d to %d, diameter at least %d", n, len(far), least, most, last)
		}
		if err := check(c); err != nil {
			t.Error(err)
		}
	}
}
