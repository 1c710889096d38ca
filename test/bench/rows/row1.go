package rows

import (
	"context"
	"fmt"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 1 asks how long a cold image takes to reach the last of many nodes that
// want it at once, rows 2 and 3 what of that the origin notices. The same runs
// give all three.
var row1 = Row{
	ID:     1,
	Title:  "cold, all at once: time of the last node / ideal",
	Covers: []int{2, 3},
	Root:   true,
	Needs:  swarmNeeds,
	Lines:  row1Lines,
}

// small is many layers of one piece each.
var small = image{tag: "small", name: "20 layers of 512 KiB", layers: func() []int64 {
	l := make([]int64, 20)
	for i := range l {
		l[i] = 512 << 10
	}
	return l
}()}

// one is an image of one large layer.
func one(large int64) image { return images(large)[0] }

func row1Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	whole := images(o.Layer)[1]
	whole.index, whole.name = true, "index and "+whole.name
	s, err := newBench(ctx, b, o, swarm.Config{Nodes: o.Nodes}, one(o.Layer), small, whole)
	if err != nil {
		return nil, err
	}
	var lines []Line
	for _, img := range []image{one(o.Layer), small, whole} {
		l := Line{Name: s.name(img.name, o.Nodes), Unit: "× ideal", Plain: true,
			Contenders: []Contender{
				{Name: s.ours(), Measure: s.cold(o.Nodes, swarm.Everybody(0, o.Nodes, img.tag), timesIdeal)},
				{Name: "direct, one node", Measure: s.cold(0, direct(1, img.tag), timesIdeal)},
			},
			Also: []Also{
				{Row: 2, Title: "bytes from the origin / size", Note: noteCopies, Goal: atMost(1.02), Plain: true},
				{Row: 3, Title: "origin requests / those of one direct pull", Note: noteRequests, Goal: atMost(3)},
			},
		}
		if !img.index && !o.Brief {
			// As many copies as nodes, through one link: once tells enough.
			l.Contenders = append(l.Contenders, Contender{Name: "direct, all nodes", Measure: s.cold(0, direct(o.Nodes, img.tag), timesIdeal), Runs: 1})
		}
		if img.tag == "one" {
			l.Goal = atMost(1.15)
		}
		lines = append(lines, l)
	}
	late := swarm.Everybody(0, o.Nodes, "one")
	for i := range late {
		late[i].Delay = time.Duration(i) * time.Second
	}
	return append(lines, Line{
		Name: s.name(fmt.Sprintf("one joins a second, 1 layer of %s", size(o.Layer)), o.Nodes), Unit: "× ideal", Plain: true,
		Contenders: []Contender{{Name: s.ours(), Measure: s.cold(o.Nodes, late, timesIdeal)}},
		Also:       []Also{{Row: 2, Title: "bytes from the origin / size", Note: noteCopies, Goal: atMost(1.02), Plain: true}},
	}), nil
}
