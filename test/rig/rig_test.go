package rig_test

import (
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// A rig with everything on pulls one blob onto two nodes, from one copy of the
// origin.
func TestRig(t *testing.T) {
	ca := rig.NewCA(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: ca.Issue(t, "127.0.0.1")})
	o := registrytest.New(t)
	blob := make([]byte, 1<<20)
	d := o.AddBlob("app", blob)
	var nodes []*rig.Daemon
	for _, name := range []string{"node-1", "node-2"} {
		nodes = append(nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{s}, TLS: ca.Issue(t, name),
			Registries: []string{"r.test=" + o.URL()}, Args: []string{"--auth", "open"},
		}))
	}
	results, _ := rig.BlobAll(nodes, "r.test", "app", d)
	rig.AllRight(t, results)
	if got := o.Sent(d); got != int64(len(blob)) {
		t.Errorf("the origin sent %d bytes of %d", got, len(blob))
	}
	if nodes[0].Memory() <= 0 || nodes[0].PeakMemory() < nodes[0].Memory() || nodes[0].Descriptors() == 0 {
		t.Error("memory and descriptors are not told")
	}
	if got := nodes[0].Metric("shoal_peer_received_bytes_total") + nodes[1].Metric("shoal_peer_received_bytes_total"); got != float64(len(blob)) {
		t.Errorf("peers sent %v bytes of %d", got, len(blob))
	}
	if !rig.Has(t, "daemon", "--zone") || rig.Has(t, "daemon", "--no-such-flag") {
		t.Error("the flags of the binary are not recognized")
	}
	nodes[0].Kill()
	if !nodes[0].Exited() || nodes[0].Memory() != 0 {
		t.Error("a killed process counts as running")
	}
	again := nodes[1].Restart()
	rig.AllRight(t, []rig.Result{again.Blob("r.test", "app", d)})
}
