package attack

import (
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// Nothing is wrong while nobody attacks: the oracle sees one copy leave the
// origin, and right bodies on every node.
func TestHonestSwarm(t *testing.T) {
	o := registrytest.New(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	const size = 8 << 20
	d := o.AddBlob("app", noise(1, size))
	var nodes []*rig.Daemon
	for _, name := range []string{"node-1", "node-2", "node-3"} {
		nodes = append(nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open"},
		}))
	}
	results, took := rig.BlobAll(nodes, upstream, "app", d)
	rig.AllRight(t, results)
	t.Logf("%v, %.3f copies", took, copies(o, size))
	if c := copies(o, size); c > 1.2 {
		t.Errorf("origin sent %.2f copies, should be at most 1.2", c)
	}
}
