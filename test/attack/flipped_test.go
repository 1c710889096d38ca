package attack

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// flipOnce inverts a bit of the byte at off the first time that the origin sends it.
func flipOnce(off int64) registrytest.Fault {
	var mu sync.Mutex
	done := false
	return func(next http.Handler) http.Handler {
		wrong := registrytest.Flip(off)(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			first, last := int64(0), int64(1<<62)
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			mu.Lock()
			flips := !done && r.Method == http.MethodGet && first <= off && off <= last
			done = done || flips
			mu.Unlock()
			if flips {
				wrong.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// One bit that leaves the origin wrong costs each node its first pull, and the
// origin about one copy more. Nobody is banned, and nobody is called a liar.
func TestFlippedBitAccusesNobody(t *testing.T) {
	const size, count = 16 << 20, 8
	o := registrytest.New(t)
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Chain(registrytest.Throttle(12<<20), flipOnce(5<<20)))
	ca := rig.NewCA(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: ca.Issue(t, "127.0.0.1")})
	var nodes []*rig.Daemon
	for i := range count {
		name := fmt.Sprintf("node-%d", i+1)
		nodes = append(nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, TLS: ca.Issue(t, name), Args: []string{"--auth", "open"},
		}))
	}
	d := o.AddBlob("app", noise(10, size))
	failed := 0
	for attempt := range 2 {
		results, took := rig.BlobAll(nodes, upstream, "app", d)
		for i, r := range results {
			if r.Wrong() {
				t.Errorf("attempt %d of node %d is complete and wrong", attempt+1, i+1)
			}
			if attempt == 0 && !r.Right {
				failed++
			}
		}
		if attempt > 0 {
			rig.AllRight(t, results)
		}
		t.Logf("attempt %d: %v, %.2f copies", attempt+1, took, copies(o, size))
	}
	if failed == 0 {
		t.Error("no pull met the wrong bit")
	}
	t.Logf("%d of %d first pulls failed, %.2f copies", failed, count, copies(o, size))
	if c := copies(o, size); c > 2.5 {
		t.Errorf("origin sent %.2f copies to %d nodes", c, count)
	}
	for _, n := range nodes {
		if log := n.Log(); strings.Contains(log, "banned") || strings.Contains(log, "peer lied") {
			t.Errorf("%s heard of a ban, or calls a peer a liar", n.Config.Name)
		}
	}
}
