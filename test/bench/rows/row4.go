package rows

import (
	"context"
	"fmt"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 4 asks how well a swarm divides the uplink of the one node that has an
// image, when the origin is gone. That node pulled it before; the others pull by
// digest, since a tag means nothing without an origin.
var row4 = Row{
	ID:    4,
	Title: "one seed, origin cut off: last node / ideal",
	Root:  true,
	Needs: swarmNeeds,
	Lines: row4Lines,
}

func row4Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	img := one(o.Layer)
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: o.Nodes}, img)
	if err != nil {
		return nil, err
	}
	const noteSeed = "seed sent"
	measure := func(ctx context.Context) (report.Sample, error) {
		return s.with(o.Nodes, func(c *swarm.Cluster) (report.Sample, error) {
			if err := s.seed(ctx, c, img.tag, 1); err != nil {
				return report.Sample{}, err
			}
			c.KillOrigin()
			run, err := c.Pull(ctx, swarm.Everybody(1, o.Nodes, s.pushed[img.tag].Digest.String()), nil)
			if err != nil {
				return report.Sample{}, err
			}
			if _, _, err := run.Failed(); err != nil {
				return report.Sample{}, err
			}
			sent := float64(run.Sent[0].Payload()) / float64(s.pushed[img.tag].Bytes)
			return report.Sample{Value: timesIdeal(s, img.tag, run), Notes: append([]report.Note{{Name: noteSeed, Value: sent, Unit: "copies"}}, s.cost(run)...)}, nil
		})
	}
	return []Line{{
		Name: s.name(fmt.Sprintf("%s, 1 seed", img.name), o.Nodes), Unit: "× ideal", Plain: true, Goal: atMost(1.2),
		Contenders: []Contender{{Name: s.ours(), Measure: measure}},
		Also:       []Also{{Title: "bytes from the seed / size", Note: noteSeed, Goal: atMost(1.25), Plain: true}},
	}}, nil
}

// seed lets the first nodes pull an image.
func (s *bench) seed(ctx context.Context, c *swarm.Cluster, tag string, nodes int) error {
	run, err := c.Pull(ctx, swarm.Everybody(0, nodes, tag), nil)
	if err == nil {
		_, _, err = run.Failed()
	}
	if err != nil {
		return fmt.Errorf("seeding: %w", err)
	}
	return nil
}
