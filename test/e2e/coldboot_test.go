package e2e

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// TestColdBoot starts 16 nodes at once, as after a power cut, each with an image to
// pull, and the schedulers last. No process ends, every pull succeeds, and all
// daemons are in the swarm in the end.
func TestColdBoot(t *testing.T) {
	const nodes = 16
	ports, err := freePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	addrs := []string{net.JoinHostPort("127.0.0.1", ports[0]), net.JoinHostPort("127.0.0.1", ports[1])}
	registry := NewNode(t, "origin").StartRegistry(t)
	img := newImage(t, func() (*Image, error) { return NoiseImage(90, 100<<10, 2<<20) })
	registry.Push(t, img, repository, tag)

	all := make([]*Daemon, nodes)
	pulled := make([]error, nodes)
	var boot, pulls sync.WaitGroup
	for i := range nodes {
		n := NewNode(t, fmt.Sprintf("node%d", i))
		boot.Go(func() {
			d := n.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + registry.Origin.URL()}, Schedulers: addrs})
			all[i] = d
			// Nobody waits for a scheduler.
			pulls.Go(func() {
				client := Client{Base: d.URL(), Namespace: upstream, Repository: repository}
				pulled[i] = client.PullImage(t.Context(), img, tag)
			})
		})
	}
	boot.Wait()
	if t.Failed() {
		t.FailNow() // a daemon did not start
	}
	var schedulers []*Scheduler
	for i, addr := range addrs {
		s := &Scheduler{node: NewNode(t, fmt.Sprintf("scheduler%d", i)), Addr: addr}
		s.proc = startOnPorts(t, 1, func(ports []string) (*Process, error) {
			s.Admin = net.JoinHostPort("127.0.0.1", ports[0])
			return s.start(t)
		})
		schedulers = append(schedulers, s)
	}
	begun := time.Now()
	for _, s := range schedulers {
		Eventually(t, "all daemons are connected to "+s.Addr, time.Minute, func() error {
			n, err := s.Metric("shoal_scheduler_peers")
			if err == nil && n != nodes {
				err = fmt.Errorf("%v of %d are", n, nodes)
			}
			return err
		})
	}
	t.Logf("all are connected %v after the last scheduler was there", time.Since(begun).Round(time.Millisecond))
	pulls.Wait()
	for i, d := range all {
		if pulled[i] != nil {
			t.Errorf("a pull on %s: %v", d.node.Name, pulled[i])
		}
		if gone, err := d.Exited(); gone {
			t.Errorf("%s ended: %v", d.node.Name, err)
		}
	}
	// The swarm works: what one has, the others get from it.
	late := registry.PushBlob(t, noiseBytes(99, 3<<20), repository)
	registry.Origin.Reset(t)
	for _, d := range all {
		client := Client{Base: d.URL(), Namespace: upstream, Repository: repository}
		if err := client.CheckBlobs(t.Context(), late); err != nil {
			t.Error(err)
		}
	}
	if sent := float64(registry.Origin.Bytes(t, ForBlob(late.Digest))) / float64(late.Size); sent > 1.1 {
		t.Errorf("the origin sent %.2f copies to a swarm that has settled", sent)
	}
}
