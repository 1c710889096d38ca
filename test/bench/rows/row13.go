package rows

import (
	"context"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 13 asks what a source that lies can do: four nodes have an image, as many
// want it, and the origin is cut off. With --liar, one of the four runs that
// binary.
var row13 = Row{
	ID:    13,
	Title: "1 of 4 sources lies: slowdown",
	Root:  true,
	Needs: swarmNeeds,
	Lines: row13Lines,
}

func row13Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	const sources, nodes = 4, 8
	img := one(o.Layer)
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: nodes}, img)
	if err != nil {
		return nil, err
	}
	const noteWrong = "wrong bodies"
	measure := func(liar string) func(context.Context) (report.Sample, error) {
		return func(ctx context.Context) (report.Sample, error) {
			var liars map[int]string
			if liar != "" {
				liars = map[int]string{sources - 1: liar}
			}
			return s.withOthers(nodes, liars, func(c *swarm.Cluster) (report.Sample, error) {
				run, err := s.seeded(ctx, c, img.tag, sources, func(<-chan struct{}) error {
					c.KillOrigin()
					return nil
				})
				if err != nil {
					return report.Sample{}, err
				}
				failed, wrong, err := run.Failed()
				if failed > wrong {
					return report.Sample{}, err
				}
				return report.Sample{Value: timesIdeal(s, img.tag, run), Notes: append([]report.Note{{Name: noteWrong, Value: float64(wrong)}}, s.cost(run)...)}, nil
			})
		}
	}
	l := Line{Name: s.name(img.name+", 4 sources", nodes), Unit: "× ideal",
		Also: []Also{{Title: "bodies delivered wrong", Note: noteWrong, Goal: atMost(0), Plain: true}},
	}
	if o.Liar != "" {
		l.Goal = atMost(1.3)
		l.Contenders = append(l.Contenders, Contender{Name: "shoal, one lies", Measure: measure(o.Liar)})
	}
	l.Contenders = append(l.Contenders, Contender{Name: s.ours(), Measure: measure("")})
	return []Line{l}, nil
}
