// Package swarm is a whole cluster to be measured: an origin, a scheduler and
// nodes, each in a namespace of its own behind a shaped link, and a client on
// every node. It knows how to start them from nothing, let the clients pull at
// the same moment, and say what that took. It knows nothing of the figures to
// reach.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/netns"
)

// Repo is the repository of all images.
const Repo = "bench/image"

// Config says what a rig is like.
type Config struct {
	// Nodes of the cluster, spread over the zones in order: first all of one.
	Nodes int
	// Rate of the links of the nodes and of the origin. The scheduler's is
	// not shaped.
	Rate netns.Rate
	// Zones, 0 for none, and the rate between them.
	Zones int
	Thin  netns.Rate
	// Congestion is TCP's congestion control; see [netns.Network].
	Congestion string
	// Alone starts daemons without a scheduler, each for itself: to try the
	// rig, or to see what a swarm changes.
	Alone bool
	// Trace gets lines about the course of every pull, unless it is nil.
	Trace io.Writer
}

// Rig is the part of a cluster that lasts from run to run: network, registry
// and images. Its methods, and those of what it makes, must be called by one
// goroutine, the main one.
type Rig struct {
	conf      Config
	bed       *bed.Bed
	registry  *bed.Registry
	images    string // its directory
	origin    *netns.Node
	scheduler *netns.Node
	nodes     []*netns.Node
	zones     []*netns.Zone
}

// New makes a rig. What push puts into the registry at a base URL is what can
// be pulled. Everything is in memory: no disk is measured.
func New(b *bed.Bed, conf Config, push func(base string) error) (*Rig, error) {
	if err := b.UseMemory(); err != nil {
		return nil, err
	}
	root, err := b.NewDir("images")
	if err != nil {
		return nil, err
	}
	// Pushed by loopback, served from the same directory on the network.
	local, err := b.StartRegistry(bed.Here, root)
	if err != nil {
		return nil, err
	}
	if err := push("http://" + local.Addr); err != nil {
		return nil, err
	}
	if err := local.Stop(); err != nil {
		return nil, err
	}
	r := &Rig{conf: conf, bed: b, images: root}
	if err := r.network(); err != nil {
		return nil, err
	}
	r.registry, err = b.StartRegistry(bed.Within(r.origin), root)
	return r, err
}

func (r *Rig) network() error {
	nw, err := r.bed.Network()
	if err != nil {
		return err
	}
	nw.Congestion = r.conf.Congestion
	if r.origin, err = nw.Add(r.conf.Rate); err != nil {
		return err
	}
	if r.scheduler, err = nw.Add(0); err != nil {
		return err
	}
	add := nw.Add
	for i := range r.conf.Nodes {
		// A zone's share of the nodes is full.
		if z := len(r.zones); z < r.conf.Zones && i == r.conf.Nodes*z/r.conf.Zones {
			zone, err := nw.AddZone(r.conf.Thin)
			if err != nil {
				return err
			}
			r.zones = append(r.zones, zone)
			add = zone.Add
		}
		n, err := add(r.conf.Rate)
		if err != nil {
			return err
		}
		r.nodes = append(r.nodes, n)
	}
	return nil
}

// zone is the name of a node's zone.
func (r *Rig) zone(node int) string {
	for z := range r.conf.Zones {
		if node < r.conf.Nodes*(z+1)/r.conf.Zones {
			return fmt.Sprintf("zone-%d", z)
		}
	}
	return ""
}

// Ideal is the time that so many bytes take on a link that carries nothing
// else, and no headers.
func (r *Rig) Ideal(bytes int64) time.Duration {
	return time.Duration(float64(bytes) / r.conf.Rate.BytesPerSecond() * float64(time.Second))
}

// Cluster is what is started anew for every run.
type Cluster struct {
	rig       *Rig
	tap       *bed.Tap
	scheduler *bed.Scheduler
	daemons   []*bed.Daemon
	liars     []*bed.Process
	received  int64 // by the nodes' links, in earlier runs
}

// Start starts the origin, and daemons with empty stores on the first so many
// nodes, with a scheduler. It returns when all are ready and connected.
func (r *Rig) Start(daemons int) (c *Cluster, err error) {
	c = &Cluster{rig: r}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if c.received, err = r.received(); err != nil {
		return c, err
	}
	if c.tap, err = r.bed.StartTap(bed.At(r.origin), r.registry.Addr); err != nil {
		return c, err
	}
	if daemons == 0 {
		return c, nil
	}
	if !r.conf.Alone {
		if c.scheduler, err = r.bed.StartScheduler(bed.At(r.scheduler)); err != nil {
			return c, err
		}
	}
	for i := range daemons {
		d, err := r.bed.LaunchDaemon(bed.Within(r.nodes[i]), c.tap.Addr, c.flags(i)...)
		if err != nil {
			return c, err
		}
		c.daemons = append(c.daemons, d)
	}
	for _, d := range c.daemons {
		if err := d.WaitReady(); err != nil {
			return c, err
		}
	}
	if c.scheduler == nil {
		return c, nil
	}
	return c, c.scheduler.WaitConnected(daemons)
}

func (c *Cluster) flags(node int) []string {
	if c.scheduler == nil {
		return nil
	}
	f := []string{"--scheduler", c.scheduler.Addr, "--peer-listen", ":4401", "--node-name", nodeName(node)}
	if z := c.rig.zone(node); z != "" {
		f = append(f, "--zone", z)
	}
	return f
}

// nodeName is what a node is called in the swarm; namespaces of one machine
// share its name.
func nodeName(node int) string { return fmt.Sprintf("node-%d", node) }

// Lie starts a node that lies about blobs which the origin has, on a node that
// has no daemon; kinds are those of package swarmtest. It returns when the liar
// is connected to the scheduler.
func (c *Cluster) Lie(liar string, node int, kind string, blobs ...digest.Digest) error {
	if c.scheduler == nil {
		return errors.New("without a scheduler nobody hears a liar")
	}
	args := []string{"--kind", kind, "--scheduler", c.scheduler.Addr, "--node-name", nodeName(node)}
	for _, d := range blobs {
		// Where docker-registry keeps it.
		path := filepath.Join(c.rig.images, "docker/registry/v2/blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
		args = append(args, "--blob", fmt.Sprintf("%s=%s", d, path))
	}
	p, err := c.rig.bed.Launch(bed.Within(c.rig.nodes[node]), liar, args...)
	if err != nil {
		return err
	}
	c.liars = append(c.liars, p)
	return c.scheduler.WaitConnected(len(c.daemons) + len(c.liars))
}

// Stop stops what Start started, and removes what daemons stored.
func (c *Cluster) Stop() error {
	var list []*bed.Process
	for _, d := range c.daemons {
		list = append(list, d.Process)
	}
	// Daemons first: they say goodbye to the scheduler.
	errs := []error{bed.StopAll(list...)}
	for _, d := range c.daemons {
		errs = append(errs, os.RemoveAll(d.DataDir))
	}
	list = c.liars
	if c.scheduler != nil {
		list = append(list, c.scheduler.Process)
	}
	if c.tap != nil {
		list = append(list, c.tap.Process)
	}
	return errors.Join(append(errs, bed.StopAll(list...))...)
}

// KillOrigin makes the origin refuse connections from now on, and cuts those
// that are open.
func (c *Cluster) KillOrigin() { c.tap.Kill() }

// KillScheduler does the same to the scheduler.
func (c *Cluster) KillScheduler() {
	if c.scheduler != nil {
		c.scheduler.Kill()
	}
}

// Drained reports whether the origin has nothing more to do, and every byte
// that it sent has arrived, and these were at least so many.
func (c *Cluster) Drained(payload int64) (bool, error) {
	n, err := c.tap.Counts()
	return n.Payload >= payload && n.InFlight == 0 && n.Unacked == 0, err
}

// Received adds up the payload that the nodes have received on their links
// since the cluster was started.
func (c *Cluster) Received() (int64, error) {
	n, err := c.rig.received()
	return n - c.received, err
}

func (r *Rig) received() (int64, error) {
	var sum int64
	for _, n := range r.nodes {
		in, _, err := n.Traffic()
		if err != nil {
			return 0, err
		}
		sum += in.Payload()
	}
	return sum, nil
}

// Wait polls until a condition holds, the context ends, or done is closed; it
// reports whether it came to hold.
func Wait(ctx context.Context, done <-chan struct{}, holds func() (bool, error)) (bool, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := holds(); ok || err != nil {
			return ok, err
		}
		select {
		case <-tick.C:
		case <-done:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// processes are those of the cluster that are no client's.
func (c *Cluster) processes() (daemons, origin, scheduler []*bed.Process) {
	for _, d := range c.daemons {
		daemons = append(daemons, d.Process)
	}
	if c.scheduler != nil {
		scheduler = []*bed.Process{c.scheduler.Process}
	}
	return slices.Clip(daemons), []*bed.Process{c.rig.registry.Process, c.tap.Process}, scheduler
}
