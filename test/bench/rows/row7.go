package rows

import (
	"context"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 7 asks what small layers cost, where the way to a decision may take
// longer than the bytes: eight nodes at once, beside one that pulls directly
// and has the origin to itself.
var row7 = Row{
	ID:    7,
	Title: "small layers, all at once: last node / one direct pull alone",
	Root:  true,
	Needs: swarmNeeds,
	Lines: row7Lines,
}

func row7Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	const nodes = 8
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: nodes}, small)
	if err != nil {
		return nil, err
	}
	return []Line{{
		Name: s.name(small.name, nodes), Unit: "s", Goal: atMost(1.5),
		Contenders: []Contender{
			{Name: s.ours(), Measure: s.cold(nodes, swarm.Everybody(0, nodes, small.tag), seconds)},
			{Name: "direct, one node", Measure: s.cold(0, direct(1, small.tag), seconds)},
			{Name: "direct, all nodes", Measure: s.cold(0, direct(nodes, small.tag), seconds)},
		},
	}}, nil
}
