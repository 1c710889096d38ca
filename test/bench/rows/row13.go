package rows

import (
	"context"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 13 asks what a source that lies can do. Four nodes say that they have an
// image's layer, as many want it, and the origin is cut off.
var row13 = Row{
	ID:    13,
	Title: "1 of 4 sources lies: time of the last node / with none that lies",
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
	// measure has a liar of a kind on the last node, or none.
	measure := func(kind string) func(context.Context) (report.Sample, error) {
		seeds, daemons := sources, nodes
		if kind != "" {
			seeds, daemons = sources-1, nodes-1
		}
		return func(ctx context.Context) (report.Sample, error) {
			return s.with(daemons, func(c *swarm.Cluster) (report.Sample, error) {
				// The liar comes when there is something to lie about: who
				// seeds is not measured.
				if err := s.seed(ctx, c, img.tag, seeds); err != nil {
					return report.Sample{}, err
				}
				if kind != "" {
					if err := c.Lie(o.Liar, nodes-1, kind, s.pushed[img.tag].Layers[0].Digest); err != nil {
						return report.Sample{}, err
					}
				}
				c.KillOrigin()
				run, err := c.Pull(ctx, swarm.Everybody(seeds, daemons, s.pushed[img.tag].Digest.String()), nil)
				if err != nil {
					return report.Sample{}, err
				}
				failed, wrong, err := run.Failed()
				if failed > wrong {
					return report.Sample{}, err
				}
				notes := []report.Note{{Name: noteWrong, Value: float64(wrong)}}
				if kind != "" {
					sent := run.Sent[nodes-1].Payload()
					notes = append(notes, report.Note{Name: "liar sent", Value: float64(sent) / (1 << 20), Unit: "MiB"})
				}
				return report.Sample{Value: timesIdeal(s, img.tag, run), Notes: append(notes, s.cost(run)...)}, nil
			})
		}
	}
	var lines []Line
	for _, kind := range []string{"wrong-bytes", "silent", "trickle"} {
		lines = append(lines, Line{Name: s.name(img.name+", "+kind, nodes), Unit: "× ideal", Goal: atMost(1.3),
			Contenders: []Contender{
				{Name: s.ours() + ", 3 sources and a liar", Measure: measure(kind)},
				{Name: s.ours() + ", 4 sources", Measure: measure("")},
			},
			Also: []Also{{Title: "bodies delivered wrong", Note: noteWrong, Goal: atMost(0), Plain: true}},
		})
	}
	return lines, nil
}
