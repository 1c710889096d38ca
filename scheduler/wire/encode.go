package wire

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// appendIn appends what a daemon says to a list of messages: one, or several
// when it is longer than one may be. The peer's own name goes into Hello.
func appendIn(list []*wirepb.In, id scheduler.PeerID, msg scheduler.In) ([]*wirepb.In, error) {
	switch m := msg.(type) {
	case scheduler.Hello:
		return appendHello(list, id, m), nil
	case scheduler.Join:
		return append(list, &wirepb.In{Msg: &wirepb.In_Join{Join: &wirepb.Join{
			Blob: string(m.Blob), Size: m.Size, Have: m.Have, Origin: m.Origin, Source: m.Source, Again: m.Again,
			// A core takes over a few at most: see scheduler.Join.
			Bringing: runs(m.Bringing[:min(len(m.Bringing), maxRuns)]),
		}}}), nil
	case scheduler.Have:
		for part := range chunks(m.Runs, maxRuns) {
			list = append(list, &wirepb.In{Msg: &wirepb.In_Have{Have: &wirepb.Have{Blob: string(m.Blob), Runs: runs(part)}}})
		}
		return list, nil
	case scheduler.Complete:
		return append(list, complete(m)), nil
	case scheduler.Sized:
		return append(list, &wirepb.In{Msg: &wirepb.In_Sized{Sized: &wirepb.Sized{Blob: string(m.Blob), Size: m.Size}}}), nil
	case scheduler.GiveBack:
		return append(list, &wirepb.In{Msg: &wirepb.In_GiveBack{GiveBack: &wirepb.GiveBack{
			Blob: string(m.Blob), Run: run(m.Run), Reason: wirepb.Reason(m.Reason), RetryAfterMs: millis(m.RetryAfter),
		}}}), nil
	case scheduler.Leave:
		return append(list, &wirepb.In{Msg: &wirepb.In_Leave{Leave: &wirepb.Leave{Blob: string(m.Blob)}}}), nil
	case scheduler.Report:
		return append(list, &wirepb.In{Msg: &wirepb.In_Report{Report: &wirepb.Report{
			Blob: string(m.Blob), Peer: string(m.Peer), Reason: wirepb.Reason(m.Reason),
		}}}), nil
	case scheduler.Missing:
		// A second one at once would not be heeded, so it is cut.
		return append(list, &wirepb.In{Msg: &wirepb.In_Missing{Missing: &wirepb.Missing{
			Blob: string(m.Blob), Runs: runs(m.Runs[:min(len(m.Runs), maxRuns)]),
		}}}), nil
	case jobs.Report:
		return append(list, &wirepb.In{Msg: &wirepb.In_Preheated{Preheated: encodePreheated(m)}}), nil
	case jobs.Vitals:
		return append(list, &wirepb.In{Msg: &wirepb.In_Vitals{Vitals: encodeVitals(m)}}), nil
	}
	return list, fmt.Errorf("scheduler wire: a daemon does not send %T", msg)
}

func appendHello(list []*wirepb.In, id scheduler.PeerID, m scheduler.Hello) []*wirepb.In {
	hello := &wirepb.Hello{Version: Version, Peer: string(id), Addr: m.Addr, Zone: m.Zone, Node: encodeNode(m.Node)}
	first := min(len(m.Inventory), maxHoldings)
	for _, h := range m.Inventory[:first] {
		hello.Inventory = append(hello.Inventory, &wirepb.Holding{Blob: string(h.Blob), Size: h.Size})
	}
	list = append(list, &wirepb.In{Msg: &wirepb.In_Hello{Hello: hello}})
	for _, h := range m.Inventory[first:] {
		list = append(list, complete(scheduler.Complete(h)))
	}
	return list
}

func complete(m scheduler.Complete) *wirepb.In {
	return &wirepb.In{Msg: &wirepb.In_Complete{Complete: &wirepb.Complete{Blob: string(m.Blob), Size: m.Size}}}
}

// appendOut appends what a scheduler says to a list of messages.
func appendOut(list []*wirepb.Out, msg any) ([]*wirepb.Out, error) {
	switch m := msg.(type) {
	case *scheduler.Swarm:
		return appendSwarm(list, m), nil
	case *scheduler.Assign:
		a := &wirepb.Assign{Blob: string(m.Blob), Run: run(m.Run)}
		if m.From.Peer != "" {
			a.From = neighbour(m.From)
		}
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Assign{Assign: a}}), nil
	case *scheduler.Revoke:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Revoke{Revoke: &wirepb.Revoke{Blob: string(m.Blob), Run: run(m.Run)}}}), nil
	case *scheduler.Ask:
		for part := range chunks(m.Runs, maxRuns) {
			list = append(list, &wirepb.Out{Msg: &wirepb.Out_Ask{Ask: &wirepb.Ask{Blob: string(m.Blob), Runs: runs(part)}}})
		}
		return list, nil
	case *scheduler.Probe:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Probe{Probe: &wirepb.Probe{Blob: string(m.Blob)}}}), nil
	case *scheduler.Hold:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Hold{Hold: &wirepb.Hold{Source: m.Source, ForMs: millis(m.For)}}}), nil
	case *scheduler.Ban:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Ban{Ban: &wirepb.Ban{Peer: string(m.Peer), ForMs: millis(m.For)}}}), nil
	case *scheduler.Refused:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Refused{Refused: &wirepb.Refused{
			Blob: string(m.Blob), Reason: wirepb.Reason(m.Reason),
		}}}), nil
	case *jobs.Order:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_Preheat{Preheat: encodePreheat(m)}}), nil
	case *jobs.Stop:
		return append(list, &wirepb.Out{Msg: &wirepb.Out_PreheatStop{PreheatStop: &wirepb.PreheatStop{Job: m.Job}}}), nil
	}
	return list, fmt.Errorf("scheduler wire: a scheduler does not send %T", msg)
}

// appendSwarm sends who is no neighbour any more before who is one now: when
// there are many of both, nobody has twice as many in between.
func appendSwarm(list []*wirepb.Out, m *scheduler.Swarm) []*wirepb.Out {
	remove, add := m.Remove, m.Add
	for {
		part := &wirepb.Swarm{Blob: string(m.Blob), Size: m.Size}
		for _, id := range remove[:min(len(remove), maxNeighbours)] {
			part.Remove = append(part.Remove, string(id))
		}
		remove = remove[len(part.Remove):]
		if len(remove) == 0 {
			n := min(len(add), maxNeighbours)
			for _, other := range add[:n] {
				part.Add = append(part.Add, neighbour(other))
			}
			add = add[n:]
		}
		list = append(list, &wirepb.Out{Msg: &wirepb.Out_Swarm{Swarm: part}})
		if len(remove)+len(add) == 0 {
			return list
		}
	}
}

func neighbour(n scheduler.Neighbour) *wirepb.Neighbour {
	return &wirepb.Neighbour{Peer: string(n.Peer), Addr: n.Addr, Zone: n.Zone, Reserved: n.Reserved}
}

// run passes on what no piece has as an index that the other end refuses.
func run(r scheduler.Run) *wirepb.Run {
	return &wirepb.Run{First: index(r.First), Count: index(r.Count)}
}

func index(n int) uint32 {
	if n < 0 || n > MaxPieces {
		return MaxPieces + 1
	}
	return uint32(n)
}

func runs(list []scheduler.Run) []*wirepb.Run {
	if len(list) == 0 {
		return nil
	}
	// Two allocations in all, not one for each.
	backing := make([]wirepb.Run, len(list))
	out := make([]*wirepb.Run, len(list))
	for i, r := range list {
		backing[i].First, backing[i].Count = index(r.First), index(r.Count)
		out[i] = &backing[i]
	}
	return out
}

// millis rounds up, so that a wait is never cut to none, within a day.
func millis(d time.Duration) uint64 {
	return uint64((min(max(d, 0), maxDuration) + time.Millisecond - 1) / time.Millisecond)
}

// chunks cuts a list, an empty one into one empty part.
func chunks[T any](list []T, most int) func(yield func([]T) bool) {
	if len(list) == 0 {
		return func(yield func([]T) bool) { yield(nil) }
	}
	return slices.Chunk(list, most)
}
