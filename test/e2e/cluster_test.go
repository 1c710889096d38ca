package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// cluster is what the tests of the swarm lie on: nodes with links of their own,
// a daemon on each, one registry and schedulers, all of them connected.
type cluster struct {
	config     clusterConfig
	network    *Network
	registry   *Registry
	schedulers []*Scheduler
	members    []*member
}

// clusterConfig says what a cluster consists of.
type clusterConfig struct {
	nodes, schedulers int
	// rate shapes the link of each node, in bytes per second; the origin's
	// carries five times as much. 0 does not.
	rate int
	// network makes another network than [NewNetwork].
	network func(testing.TB) *Network
	// ca, if set, issues the certificates of all nodes.
	ca *CA
	// daemon is how daemons are started; registries, schedulers and
	// certificates are added.
	daemon DaemonConfig
}

// member is a node of a cluster, with its daemon.
type member struct {
	*Node
	daemon     *Daemon
	containerd *Containerd // nil on most
}

func newCluster(t *testing.T, config clusterConfig) *cluster {
	t.Helper()
	network := NewNetwork
	if config.network != nil {
		network = config.network
	}
	c := &cluster{config: config, network: network(t)}
	if config.rate > 0 {
		c.network.Shape(t, 5*config.rate)
	}
	c.registry = NewNodeAt(t, "origin", c.network.Addr, "").StartRegistry(t)
	for i := range config.schedulers {
		n := c.network.NewNode(t, fmt.Sprintf("scheduler%d", i+1))
		c.schedulers = append(c.schedulers, n.StartScheduler(t, SchedulerConfig{Identity: c.identity(t, n)}))
	}
	for i := range config.nodes {
		n := c.newNode(t, fmt.Sprintf("node%d", i+1))
		c.members = append(c.members, c.startDaemon(t, n, c.identity(t, n)))
	}
	c.connected(t, config.nodes)
	return c
}

// newNode makes a node without a daemon.
func (c *cluster) newNode(t *testing.T, name string) *Node {
	t.Helper()
	n := c.network.NewNode(t, name)
	if c.config.rate > 0 {
		n.Shape(t, c.config.rate)
	}
	return n
}

// identity is what proves the node to the cluster, nil where nobody asks.
func (c *cluster) identity(t *testing.T, n *Node) *Identity {
	t.Helper()
	if c.config.ca == nil {
		return nil
	}
	return c.config.ca.Issue(t, n, c.config.ca)
}

// startDaemon starts a daemon that knows the cluster's registry and schedulers.
func (c *cluster) startDaemon(t *testing.T, n *Node, identity *Identity) *member {
	t.Helper()
	config := c.config.daemon
	config.Registries = append([]string{upstream + "=" + c.registry.Origin.URL()}, config.Registries...)
	for _, s := range c.schedulers {
		config.Schedulers = append(config.Schedulers[:len(config.Schedulers):len(config.Schedulers)], s.Addr)
	}
	config.Identity = identity
	return &member{Node: n, daemon: n.StartDaemon(t, config)}
}

// connected waits until every scheduler that is alive has so many daemons.
func (c *cluster) connected(t *testing.T, daemons int) {
	t.Helper()
	for _, s := range c.schedulers {
		if gone, _ := s.Exited(); gone {
			continue
		}
		Eventually(t, fmt.Sprintf("%d daemons are connected to %s", daemons, s.node.Name), time.Minute, func() error {
			n, err := s.Metric(metricPeers)
			if err == nil && int(n) != daemons {
				err = fmt.Errorf("%v are", n)
			}
			return err
		})
	}
}

// connected waits until each of the daemons says that it has a scheduler, 1, or
// that it has none, 0.
func connected(t *testing.T, want float64, members ...*member) {
	t.Helper()
	for _, m := range members {
		Eventually(t, fmt.Sprintf("%s has %v schedulers", m.Name, want), time.Minute, func() error {
			got, err := m.daemon.Metric(metricConnected)
			if err == nil && got != want {
				err = fmt.Errorf("it has %v", got)
			}
			return err
		})
	}
}

// Names of metrics that the tests go by.
const (
	metricPeers      = "shoal_scheduler_peers"
	metricConnected  = "shoal_scheduler_connected"
	metricUploaded   = "shoal_peer_uploaded_bytes_total"
	metricFromOrigin = "shoal_origin_received_bytes_total"
	metricFromPeers  = "shoal_peer_received_bytes_total"
)

// sum adds up a metric of daemons.
func sum(t *testing.T, metric string, members ...*member) int64 {
	t.Helper()
	var total float64
	for _, m := range members {
		v, err := m.daemon.Metric(metric)
		if err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		total += v
	}
	return int64(total)
}

// pull is a pull under way.
type pull struct {
	member *member
	ended  chan struct{}
	// Set when ended is closed.
	err  error
	took time.Duration
}

// start begins a pull on a node, by its own mirror. No pull takes longer than
// runLimit.
func (m *member) start(t *testing.T, do func(ctx context.Context, client Client) error) *pull {
	t.Helper()
	p := &pull{member: m, ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	t.Cleanup(cancel)
	client := Client{Base: m.daemon.URL(), Namespace: upstream, Repository: repository, HTTP: m.HTTP()}
	go func() {
		defer close(p.ended)
		begun := time.Now()
		p.err = do(ctx, client)
		p.took = time.Since(begun)
	}()
	return p
}

// startBlobs begins to pull blobs, one after the other.
func (m *member) startBlobs(t *testing.T, blobs ...Descriptor) *pull {
	t.Helper()
	return m.start(t, func(ctx context.Context, client Client) error { return client.CheckBlobs(ctx, blobs...) })
}

// startImage begins to pull the image that is pushed under a tag, by containerd
// where there is one.
func (m *member) startImage(t *testing.T, img *Image, tag string) *pull {
	t.Helper()
	return m.start(t, func(ctx context.Context, client Client) error {
		if m.containerd == nil {
			return client.PullImage(ctx, img, tag)
		}
		if err := m.containerd.PullCRI(ctx, upstream+"/"+repository+":"+tag); err != nil {
			return err
		}
		return m.containerd.CheckContent(CRINamespace, slices.Concat(img.Chain(), img.Blobs)...)
	})
}

func startAll(t *testing.T, members []*member, blobs ...Descriptor) []*pull {
	t.Helper()
	pulls := make([]*pull, 0, len(members))
	for _, m := range members {
		pulls = append(pulls, m.startBlobs(t, blobs...))
	}
	return pulls
}

// wait returns how the pull ended.
func (p *pull) wait() error {
	<-p.ended
	return p.err
}

// running says whether the pull is still under way.
func (p *pull) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// allSucceed fails the test for each pull that fails.
func allSucceed(t *testing.T, pulls ...*pull) {
	t.Helper()
	failed, last := 0, pulls[0]
	for _, p := range pulls {
		if err := p.wait(); err != nil {
			failed++
			t.Errorf("the pull on %s: %v", p.member.Name, err)
		}
		if p.took > last.took {
			last = p
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d pulls failed", failed, len(pulls))
	}
	t.Logf("%d pulls succeeded, the slowest on %s in %v", len(pulls), last.member.Name, last.took.Round(time.Millisecond))
}

// brings waits until a daemon has received so many bytes, from wherever, more
// than before. A body may begin long after its swarm does: pieces come in any
// order.
func (m *member) brings(t *testing.T, bytes, before int64) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%s has %d bytes", m.Name, bytes), runLimit, func() error {
		if got := m.received(t) - before; got < bytes {
			return fmt.Errorf("it has %d", got)
		}
		return nil
	})
}

func (m *member) received(t *testing.T) int64 {
	t.Helper()
	return sum(t, metricFromOrigin, m) + sum(t, metricFromPeers, m)
}

// gate orders the origin to stop when it has sent so many bytes of some blobs to
// all nodes together.
func (c *cluster) gate(bytes int64, blobs func(Request) bool) *Gate {
	gate := NewGate(bytes)
	c.registry.Origin.Order(blobs, &Fault{Gate: gate})
	return gate
}

// fetching is a member that is getting a blob from the origin at this moment.
func (c *cluster) fetching(t *testing.T, d Descriptor) *member {
	t.Helper()
	for _, r := range c.registry.Origin.SoFar(t, ForBlob(d.Digest), Delivered) {
		for _, m := range c.members {
			if !r.Ended && r.From == m.Addr {
				return m
			}
		}
	}
	t.Fatalf("nobody is getting %s from the origin", d.Digest)
	return nil
}

// blob puts fresh content into the registry. Other seeds have other content.
func (c *cluster) blob(t *testing.T, seed byte, size int) Descriptor {
	t.Helper()
	return c.registry.PushBlob(t, noiseBytes(seed, size), repository)
}

// held waits until the origin has stopped at a gate. No pull can have ended by
// then.
func held(t *testing.T, gate *Gate, pulls ...*pull) {
	t.Helper()
	Eventually(t, "the origin is in the middle of it", runLimit, func() error {
		for _, p := range pulls {
			if !p.running() {
				t.Fatalf("the pull on %s ended before its middle: %v", p.member.Name, p.err)
			}
		}
		if !gate.Held() {
			return errors.New("not yet")
		}
		return nil
	})
}

// sentCopies fails the test unless the origin has sent size bytes of content,
// once or up to most times. The least is the proof that the count misses nothing.
func (c *cluster) sentCopies(t *testing.T, size int64, most float64, filters ...func(Request) bool) {
	t.Helper()
	sent := c.registry.Origin.Requests(t, append(filters, ForContent)...)
	copies := float64(bytesOf(sent)) / float64(size)
	t.Logf("the origin sent %.3f copies of %.1f MiB in %d requests", copies, float64(size)/(1<<20), len(sent))
	if copies < 1 {
		t.Errorf("the origin sent %.3f copies: where did the rest come from?", copies)
	}
	if copies > most {
		t.Errorf("the origin sent %.3f copies, at most %v are allowed", copies, most)
		for _, r := range sent {
			t.Log(r)
		}
	}
	if past := c.registry.Direct.Requests(t); len(past) > 0 {
		t.Errorf("%d requests went past the daemons, the first: %s", len(past), past[0])
	}
}
