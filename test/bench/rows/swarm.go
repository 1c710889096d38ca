package rows

import (
	"context"
	"fmt"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/netns"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// swarmNeeds are of all rows with a swarm.
var swarmNeeds = append([]bed.Need{bed.DockerRegistry}, bed.Namespaces...)

// rate is that of the links, in Mbit/s unless it was chosen.
func (o Options) rate(mbit netns.Rate) netns.Rate {
	if o.Rate > 0 {
		return o.Rate
	}
	return mbit * netns.Mbit
}

// swarmRate keeps the CPU of two cores below 70% with 16 nodes.
const swarmRate = 100

// bench is a rig with images in it.
type bench struct {
	*swarm.Rig
	o      Options
	conf   swarm.Config
	pushed map[string]load.Pushed // by tag
}

// newBench makes a rig; conf lacks what the options say.
func newBench(ctx context.Context, b *bed.Bed, o Options, conf swarm.Config, images ...image) (*bench, error) {
	conf.Rate, conf.Alone, conf.Congestion, conf.Trace = o.rate(swarmRate), o.Alone, o.Congestion, o.Trace
	s := &bench{o: o, conf: conf, pushed: map[string]load.Pushed{}}
	push := func(base string) error {
		for i, img := range images {
			p, err := img.push(ctx, base, uint64(i))
			if err != nil {
				return err
			}
			if img.index {
				if p, err = load.PushIndex(ctx, base, repo, img.tag, p); err != nil {
					return err
				}
			}
			s.pushed[img.tag] = p
		}
		return nil
	}
	var err error
	s.Rig, err = swarm.New(b, conf, push)
	return s, err
}

// name is that of a line about an image.
func (s *bench) name(what string, nodes int) string {
	return fmt.Sprintf("%s, N=%d, %v", what, nodes, s.conf.Rate)
}

// with runs something on a cluster that is started from nothing, with so many
// daemons, and stopped after it.
func (s *bench) with(daemons int, do func(*swarm.Cluster) (report.Sample, error)) (sample report.Sample, err error) {
	c, err := s.Start(daemons)
	if err != nil {
		return sample, err
	}
	defer closing(&err, c.Stop)
	return do(c)
}

// value is how a run becomes the value of a sample.
type value func(s *bench, tag string, run *swarm.Run) float64

// timesIdeal is the time of the last client over the ideal.
func timesIdeal(s *bench, tag string, run *swarm.Run) float64 {
	return run.Last().Seconds() / s.Ideal(s.pushed[tag].Bytes).Seconds()
}

// seconds is the time of the last client.
func seconds(_ *bench, _ string, run *swarm.Run) float64 { return run.Last().Seconds() }

// originCopies is how often the image's bytes have left the origin.
func originCopies(s *bench, tag string, run *swarm.Run) float64 {
	return float64(run.Origin.Payload) / float64(s.pushed[tag].Bytes)
}

// cold pulls an image with all clients on a cluster that was just started.
func (s *bench) cold(daemons int, clients []swarm.Client, v value) func(context.Context) (report.Sample, error) {
	return func(ctx context.Context) (report.Sample, error) {
		return s.with(daemons, func(c *swarm.Cluster) (report.Sample, error) {
			run, err := c.Pull(ctx, clients, nil)
			if err != nil {
				return report.Sample{}, err
			}
			if _, _, err := run.Failed(); err != nil {
				return report.Sample{}, err
			}
			tag := clients[0].Ref
			return report.Sample{Value: v(s, tag, run), Notes: append([]report.Note{
				{Name: noteCopies, Value: originCopies(s, tag, run), Unit: "copies"},
				{Name: noteRequests, Value: float64(run.Origin.Total)},
			}, s.cost(run)...)}, nil
		})
	}
}

// Notes that are figures too.
const (
	noteCopies   = "origin"
	noteRequests = "origin requests"
)

// cost is what a run took of the machine. GiB are those delivered to clients.
func (s *bench) cost(run *swarm.Run) []report.Note {
	u, each := run.Usage, gib(run.Delivered)
	// Forwarding, and whatever else the machine did: much of it spoils a run.
	others := 1 - (u.Daemons+u.Clients+u.Registry+u.Tap+u.Scheduler)/u.Machine
	notes := []report.Note{
		{Name: "busy", Value: 100 * u.Busy, Unit: "%"},
		{Name: "of it with others", Value: 100 * u.Busy * others, Unit: "%"},
		{Name: "machine", Value: u.Machine / each, Unit: "s/GiB"},
	}
	if u.PeakMemory > 0 {
		notes = append(notes, report.Note{Name: "daemons", Value: u.Daemons / each, Unit: "s/GiB"})
	}
	notes = append(notes,
		report.Note{Name: "clients", Value: u.Clients / each, Unit: "s/GiB"},
		report.Note{Name: "registry and tap", Value: u.Registry + u.Tap, Unit: "s"})
	if u.PeakMemory > 0 {
		notes = append(notes,
			report.Note{Name: "scheduler", Value: u.Scheduler, Unit: "s"},
			report.Note{Name: "peak memory of a daemon", Value: float64(u.PeakMemory) / (1 << 20), Unit: "MiB"})
	}
	return notes
}

// ours is the name of what is measured.
func (s *bench) ours() string {
	if s.conf.Alone {
		return "shoal, each node alone"
	}
	return "shoal"
}

// direct are clients that pull from the origin.
func direct(nodes int, ref string) []swarm.Client {
	list := swarm.Everybody(0, nodes, ref)
	for i := range list {
		list[i].Direct = true
	}
	return list
}
