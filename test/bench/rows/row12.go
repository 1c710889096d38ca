package rows

import (
	"context"
	"errors"
	"fmt"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 12 asks whether running pulls go on when origin and scheduler die
// together, given that the nodes have every piece: one node has all of them, or
// all nodes together.
var row12 = Row{
	ID:    12,
	Title: "origin and scheduler killed mid-pull: pulls that fail",
	Root:  true,
	Needs: swarmNeeds,
	Lines: row12Lines,
}

func row12Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	img := one(o.Layer)
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: o.Nodes}, img)
	if err != nil {
		return nil, err
	}
	f := s.pushed[img.tag].Bytes
	// killed pulls, and kills when it is time.
	killed := func(pull func(ctx context.Context, c *swarm.Cluster, meanwhile func(<-chan struct{}) error) (*swarm.Run, error),
		isTime func(c *swarm.Cluster) (bool, error)) func(context.Context) (report.Sample, error) {
		return func(ctx context.Context) (report.Sample, error) {
			return s.with(o.Nodes, func(c *swarm.Cluster) (report.Sample, error) {
				var got int64
				run, err := pull(ctx, c, func(done <-chan struct{}) error {
					ok, err := swarm.Wait(ctx, done, func() (bool, error) { return isTime(c) })
					if err != nil {
						return err
					}
					if !ok {
						return errors.New("all pulls had ended before it was time to kill anything")
					}
					c.KillOrigin()
					c.KillScheduler()
					got, err = c.Received()
					return err
				})
				if err != nil {
					return report.Sample{}, err
				}
				failed, wrong, err := run.Failed()
				if err != nil {
					fmt.Fprintln(o.Log, "a pull that failed:", err)
				}
				if wrong > 0 {
					return report.Sample{}, err
				}
				return report.Sample{Value: float64(failed), Notes: append([]report.Note{
					{Name: "received before", Value: float64(got) / float64(f), Unit: "copies"},
					{Name: "last node", Value: timesIdeal(s, img.tag, run), Unit: "× ideal"},
				}, s.cost(run)...)}, nil
			})
		}
	}
	cold := func(ctx context.Context, c *swarm.Cluster, meanwhile func(<-chan struct{}) error) (*swarm.Run, error) {
		return c.Pull(ctx, swarm.Everybody(0, o.Nodes, img.tag), meanwhile)
	}
	seeded := func(ctx context.Context, c *swarm.Cluster, meanwhile func(<-chan struct{}) error) (*swarm.Run, error) {
		if err := s.seed(ctx, c, img.tag, 1); err != nil {
			return nil, err
		}
		return c.Pull(ctx, swarm.Everybody(1, o.Nodes, s.pushed[img.tag].Digest.String()), meanwhile)
	}
	return []Line{
		{
			Name: s.name(img.name+", cold, when the origin has sent all", o.Nodes), Unit: "pulls", Goal: atMost(0),
			Contenders: []Contender{{Name: s.ours(), Measure: killed(cold, func(c *swarm.Cluster) (bool, error) { return c.Drained(f) })}},
		},
		{
			Name: s.name(img.name+", 1 seed, when a third has come", o.Nodes), Unit: "pulls", Goal: atMost(0),
			Contenders: []Contender{{Name: s.ours(), Measure: killed(seeded, func(c *swarm.Cluster) (bool, error) {
				// The seed's own copy counts too.
				got, err := c.Received()
				return got >= f+f*int64(o.Nodes-1)/3, err
			})}},
		},
	}, nil
}
