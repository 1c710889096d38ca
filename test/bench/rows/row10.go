package rows

import (
	"context"
	"fmt"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 10 asks how often an image crosses between two zones. The link between
// them is thin; origin and scheduler are in neither zone, and what nodes say
// to them does not cross. Bytes are counted where they cross, both ways added up.
var row10 = Row{
	ID:    10,
	Title: "two zones, thin link between: bytes across / size",
	Root:  true,
	Needs: swarmNeeds,
	Lines: row10Lines,
}

func row10Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	img := one(o.Layer)
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: o.Nodes, Zones: 2, Thin: o.Thin}, img)
	if err != nil {
		return nil, err
	}
	measure := func(ctx context.Context) (report.Sample, error) {
		return s.with(o.Nodes, func(c *swarm.Cluster) (report.Sample, error) {
			run, err := c.Pull(ctx, swarm.Everybody(0, o.Nodes, img.tag), nil)
			if err != nil {
				return report.Sample{}, err
			}
			if _, _, err := run.Failed(); err != nil {
				return report.Sample{}, err
			}
			f := float64(s.pushed[img.tag].Bytes)
			return report.Sample{Value: float64(run.Crossed.Payload()) / f, Notes: append([]report.Note{
				{Name: "with headers", Value: float64(run.Crossed.Bytes) / f, Unit: "copies"},
				{Name: "last node", Value: timesIdeal(s, img.tag, run), Unit: "× ideal"},
				{Name: noteCopies, Value: originCopies(s, img.tag, run), Unit: "copies"},
			}, s.cost(run)...)}, nil
		})
	}
	return []Line{{
		Name: s.name(fmt.Sprintf("%s, %v between zones", img.name, o.Thin), o.Nodes), Unit: "copies", Goal: atMost(1.1),
		Contenders: []Contender{{Name: s.ours(), Measure: measure}},
	}}, nil
}
