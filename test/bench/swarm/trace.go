package swarm

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
)

// traceEvery is how often a trace has a line.
const traceEvery = 250 * time.Millisecond

// tracer writes what happens while clients pull, a line now and then: seconds
// since the start; how busy the machine was since the last line, in %; how much
// payload the node that has least, the middle one and the one that has most
// have received on their links, in MiB; what the origin has sent, in MiB; and
// how many pulls have ended.
type tracer struct {
	c       *Cluster
	w       io.Writer
	pullers []*bed.Puller
	start   time.Time
	before  look
	last    time.Time
	busy    float64
}

func (c *Cluster) trace(before look, start time.Time, pullers []*bed.Puller) (*tracer, error) {
	t := &tracer{c: c, w: c.rig.conf.Trace, pullers: pullers, start: start, before: before, last: start, busy: before.usage.Machine}
	_, err := fmt.Fprintln(t.w, "seconds\tbusy\tleast\tmiddle\tmost\torigin\tended")
	return t, err
}

func (t *tracer) line() error {
	now := time.Now()
	busy, err := bed.MachineCPU()
	if err != nil {
		return err
	}
	var got []int64
	for i, n := range t.c.rig.nodes {
		in, _, err := n.Traffic()
		if err != nil {
			return err
		}
		got = append(got, in.Since(t.before.got[i]).Payload())
	}
	slices.Sort(got)
	_, sent, err := t.c.rig.origin.Traffic()
	if err != nil {
		return err
	}
	ended := 0
	for _, p := range t.pullers {
		if p.Gone() {
			ended++
		}
	}
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	_, err = fmt.Fprintf(t.w, "%.2f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\n", now.Sub(t.start).Seconds(),
		100*(busy-t.busy)/(now.Sub(t.last).Seconds()*float64(runtime.NumCPU())),
		mib(got[0]), mib(got[len(got)/2]), mib(got[len(got)-1]), mib(sent.Since(t.before.originSent).Payload()), ended)
	t.last, t.busy = now, busy
	return err
}

// until traces until done is closed.
func (t *tracer) until(ctx context.Context, done <-chan struct{}) error {
	tick := time.NewTicker(traceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := t.line(); err != nil {
				return err
			}
		case <-done:
			return t.line()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
