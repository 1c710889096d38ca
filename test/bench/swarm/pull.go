package swarm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/netns"
	"github.com/shoalproject/shoal/test/bench/tap"
)

// Client is one that pulls.
type Client struct {
	// Node that it is on, from 0.
	Node int
	// Direct: it asks the origin, not the node's daemon.
	Direct bool
	// Ref is the tag or digest that it pulls.
	Ref string
	// Delay after the common start.
	Delay time.Duration
}

// Everybody is a client of ref on each node from one number to below another.
func Everybody(from, to int, ref string) []Client {
	var out []Client
	for i := from; i < to; i++ {
		out = append(out, Client{Node: i, Ref: ref})
	}
	return out
}

// Run is what a pull by several clients took.
type Run struct {
	// Pulls are in the order of the clients.
	Pulls []Pull
	// Origin is what it has sent and was asked since the cluster was started;
	// nothing if it was killed.
	Origin tap.Counts
	// Sent and Received are what each node did on its link.
	Sent, Received []netns.Traffic
	// OriginSent is what went out on the origin's link.
	OriginSent netns.Traffic
	// Crossed is what went from zone to zone.
	Crossed netns.Traffic
	Usage   Usage
	// Delivered is what all clients got, in bytes.
	Delivered int64
}

// Pull is what became of one client.
type Pull struct {
	bed.Pulled
	// Took is the time from the client's start to its end.
	Took time.Duration
}

// Usage is in CPU seconds, from the common start to the last end.
type Usage struct {
	Daemons, Clients, Registry, Tap, Scheduler float64
	// Machine is all that it was busy, Busy the part of what it has.
	Machine, Busy float64
	// PeakMemory of the daemon that had most, in bytes, since its start.
	PeakMemory int64
}

// Last is the longest time from a client's start to its end.
func (r *Run) Last() time.Duration {
	var last time.Duration
	for _, p := range r.Pulls {
		last = max(last, p.Took)
	}
	return last
}

// Failed is how many pulls failed, and of these for wrong bytes; the error is
// about one of them.
func (r *Run) Failed() (failed, wrong int, err error) {
	for i, p := range r.Pulls {
		if p.Failed == "" {
			continue
		}
		failed++
		if p.Wrong {
			wrong++
		}
		err = fmt.Errorf("client %d after %v: %s", i+1, p.Took, p.Failed)
	}
	return failed, wrong, err
}

// Pull lets clients pull, and returns when all have ended. Meanwhile it does
// something, if that is not nil; done is closed after the last has ended.
func (c *Cluster) Pull(ctx context.Context, clients []Client, meanwhile func(done <-chan struct{}) error) (*Run, error) {
	// Every client waits for the end of the same pipe.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	pullers, err := c.prepare(clients, r)
	r.Close()
	// Those that still pull would keep the daemons from ending.
	defer func() {
		for _, p := range pullers {
			p.Kill()
		}
	}()
	if err != nil {
		return nil, err
	}
	before, err := c.look()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := w.Close(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, p := range pullers {
			<-p.Done()
		}
	}()
	if meanwhile != nil {
		if err := meanwhile(done); err != nil {
			return nil, err
		}
	}
	if c.rig.conf.Trace != nil {
		t, err := c.trace(before, start, pullers)
		if err != nil {
			return nil, err
		}
		if err := t.until(ctx, done); err != nil {
			return nil, err
		}
	}
	select {
	case <-done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after, err := c.look()
	if err != nil {
		return nil, err
	}
	run := after.since(before)
	for i, p := range pullers {
		out, err := p.Outcome()
		if err != nil {
			return nil, err
		}
		run.Pulls = append(run.Pulls, Pull{Pulled: out, Took: out.Ended.Sub(start) - clients[i].Delay})
		run.Delivered += out.Bytes
		run.Usage.Clients += out.CPU
	}
	for _, d := range c.daemons {
		peak, err := d.PeakMemory()
		if err != nil {
			return nil, err
		}
		run.Usage.PeakMemory = max(run.Usage.PeakMemory, peak)
	}
	return run, nil
}

// prepare starts clients that wait. With an error it returns those that it
// has started.
func (c *Cluster) prepare(clients []Client, signal *os.File) ([]*bed.Puller, error) {
	var out []*bed.Puller
	for _, cl := range clients {
		at, base := bed.Within(c.rig.nodes[cl.Node]), "http://"+c.tap.Addr
		if !cl.Direct {
			base = "http://" + c.daemons[cl.Node].Addr
		}
		p, err := c.rig.bed.StartPuller(at, signal, base, Repo, cl.Ref, cl.Delay)
		if err != nil {
			return out, err
		}
		out = append(out, p)
	}
	for _, p := range out {
		if err := p.WaitReady(); err != nil {
			return out, err
		}
	}
	return out, nil
}

// look is the state of all counters at one time.
type look struct {
	at         time.Time
	usage      Usage
	origin     tap.Counts
	sent, got  []netns.Traffic
	originSent netns.Traffic
	crossed    netns.Traffic
}

func (c *Cluster) look() (l look, err error) {
	l.at = time.Now()
	daemons, origin, scheduler := c.processes()
	u := &l.usage
	for _, of := range []struct {
		to   *float64
		list []*bed.Process
	}{{&u.Daemons, daemons}, {&u.Registry, origin[:1]}, {&u.Tap, origin[1:]}, {&u.Scheduler, scheduler}} {
		if *of.to, err = bed.CPUs(of.list...); err != nil {
			return l, err
		}
	}
	if u.Machine, err = bed.MachineCPU(); err != nil {
		return l, err
	}
	if l.origin, err = c.counts(); err != nil {
		return l, err
	}
	for _, n := range c.rig.nodes {
		in, out, err := n.Traffic()
		if err != nil {
			return l, err
		}
		l.got, l.sent = append(l.got, in), append(l.sent, out)
	}
	if _, l.originSent, err = c.rig.origin.Traffic(); err != nil {
		return l, err
	}
	for _, z := range c.rig.zones {
		in, _, err := z.Crossed()
		if err != nil {
			return l, err
		}
		l.crossed = netns.Traffic{Bytes: l.crossed.Bytes + in.Bytes, Packets: l.crossed.Packets + in.Packets}
	}
	return l, nil
}

// counts are those of the origin, if it is still there.
func (c *Cluster) counts() (tap.Counts, error) {
	if c.tap.Gone() {
		return tap.Counts{}, nil
	}
	n, err := c.tap.Counts()
	if err != nil && c.tap.Gone() {
		err = errors.New("the tap has ended")
	}
	return n, err
}

func (l look) since(before look) *Run {
	r := &Run{Origin: l.origin, OriginSent: l.originSent.Since(before.originSent), Crossed: l.crossed.Since(before.crossed)}
	for i := range l.sent {
		r.Sent = append(r.Sent, l.sent[i].Since(before.sent[i]))
		r.Received = append(r.Received, l.got[i].Since(before.got[i]))
	}
	a, b := l.usage, before.usage
	r.Usage = Usage{
		Daemons: a.Daemons - b.Daemons, Registry: a.Registry - b.Registry, Tap: a.Tap - b.Tap,
		Scheduler: a.Scheduler - b.Scheduler, Machine: a.Machine - b.Machine,
	}
	r.Usage.Busy = r.Usage.Machine / (l.at.Sub(before.at).Seconds() * float64(runtime.NumCPU()))
	return r
}
