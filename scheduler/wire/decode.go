package wire

import (
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// decodeIn returns what a daemon says, or nil for a message that a newer
// version may have, or a *FieldError.
func decodeIn(in *wirepb.In) (scheduler.In, error) {
	var c claims
	var out scheduler.In
	switch m := in.GetMsg().(type) {
	case *wirepb.In_Hello:
		c.msg = "hello"
		out = c.hello(m.Hello)
	case *wirepb.In_Join:
		c.msg = "join"
		j := m.Join
		if c.atMost("have", len(j.GetHave()), MaxPieces/8) {
			out = scheduler.Join{
				Blob: c.blob(j.GetBlob()), Size: c.size(j.GetSize(), 0), Have: j.GetHave(), Origin: j.GetOrigin(),
				Source: c.text("source", j.GetSource(), 0, maxSource), Again: j.GetAgain(),
				Bringing: c.runs("bringing", j.GetBringing()),
			}
		}
	case *wirepb.In_Have:
		c.msg = "have"
		out = scheduler.Have{Blob: c.blob(m.Have.GetBlob()), Runs: c.runs("runs", m.Have.GetRuns())}
	case *wirepb.In_Complete:
		c.msg = "complete"
		out = scheduler.Complete{Blob: c.blob(m.Complete.GetBlob()), Size: c.size(m.Complete.GetSize(), 1)}
	case *wirepb.In_Sized:
		c.msg = "sized"
		out = scheduler.Sized{Blob: c.blob(m.Sized.GetBlob()), Size: c.size(m.Sized.GetSize(), 1)}
	case *wirepb.In_GiveBack:
		c.msg = "give_back"
		g := m.GiveBack
		out = scheduler.GiveBack{
			Blob: c.blob(g.GetBlob()), Run: c.run("run", g.GetRun(), true), Reason: c.reason(g.GetReason()),
			RetryAfter: c.duration("retry_after_ms", g.GetRetryAfterMs()),
		}
	case *wirepb.In_Leave:
		c.msg = "leave"
		out = scheduler.Leave{Blob: c.blob(m.Leave.GetBlob())}
	case *wirepb.In_Report:
		c.msg = "report"
		out = scheduler.Report{Blob: c.blob(m.Report.GetBlob()), Peer: c.peer("peer", m.Report.GetPeer()), Reason: c.reason(m.Report.GetReason())}
	case *wirepb.In_Missing:
		c.msg = "missing"
		out = scheduler.Missing{Blob: c.blob(m.Missing.GetBlob()), Runs: c.runs("runs", m.Missing.GetRuns())}
	case *wirepb.In_Preheated:
		c.msg = "preheated"
		out = c.preheated(m.Preheated)
	case *wirepb.In_Vitals:
		out = vitals(m.Vitals)
	}
	if c.err != nil {
		return nil, c.err
	}
	return out, nil
}

func (c *claims) hello(h *wirepb.Hello) scheduler.Hello {
	if v := h.GetVersion(); v < Oldest {
		c.fail("version", "%d, want at least %d", v, Oldest)
	}
	c.peer("peer", h.GetPeer())
	hello := scheduler.Hello{Addr: c.addr("addr", h.GetAddr(), true), Zone: c.text("zone", h.GetZone(), 0, maxName), Node: c.node(h.GetNode())}
	if c.atMost("inventory", len(h.GetInventory()), maxHoldings) {
		for _, holding := range h.GetInventory() {
			hello.Inventory = append(hello.Inventory, scheduler.Holding{Blob: c.blob(holding.GetBlob()), Size: c.size(holding.GetSize(), 1)})
		}
	}
	return hello
}

// decodeOut returns what a scheduler says, or nil for a message that a newer
// version may have, or a *FieldError. Goodbye and Welcome are the stream's
// own.
func decodeOut(out *wirepb.Out) (any, error) {
	var c claims
	var msg any
	switch m := out.GetMsg().(type) {
	case *wirepb.Out_Swarm:
		c.msg = "swarm"
		msg = c.swarm(m.Swarm)
	case *wirepb.Out_Assign:
		c.msg = "assign"
		a := &scheduler.Assign{Blob: c.blob(m.Assign.GetBlob()), Run: c.run("run", m.Assign.GetRun(), false)}
		if from := m.Assign.GetFrom(); from != nil {
			a.From = c.neighbour("from", from)
		}
		msg = a
	case *wirepb.Out_Revoke:
		c.msg = "revoke"
		msg = &scheduler.Revoke{Blob: c.blob(m.Revoke.GetBlob()), Run: c.run("run", m.Revoke.GetRun(), false)}
	case *wirepb.Out_Ask:
		c.msg = "ask"
		msg = &scheduler.Ask{Blob: c.blob(m.Ask.GetBlob()), Runs: c.runs("runs", m.Ask.GetRuns())}
	case *wirepb.Out_Probe:
		c.msg = "probe"
		msg = &scheduler.Probe{Blob: c.blob(m.Probe.GetBlob())}
	case *wirepb.Out_Hold:
		c.msg = "hold"
		msg = &scheduler.Hold{Source: c.text("source", m.Hold.GetSource(), 0, maxSource), For: c.duration("for_ms", m.Hold.GetForMs())}
	case *wirepb.Out_Ban:
		c.msg = "ban"
		msg = &scheduler.Ban{Peer: c.peer("peer", m.Ban.GetPeer()), For: c.duration("for_ms", m.Ban.GetForMs())}
	case *wirepb.Out_Refused:
		c.msg = "refused"
		msg = &scheduler.Refused{Blob: c.blob(m.Refused.GetBlob()), Reason: c.reason(m.Refused.GetReason())}
	case *wirepb.Out_Preheat:
		c.msg = "preheat"
		msg = c.preheat(m.Preheat)
	case *wirepb.Out_PreheatStop:
		c.msg = "preheat_stop"
		msg = &jobs.Stop{Job: c.text("job", m.PreheatStop.GetJob(), 1, maxJobID)}
	}
	if c.err != nil {
		return nil, c.err
	}
	return msg, nil
}

func (c *claims) swarm(m *wirepb.Swarm) *scheduler.Swarm {
	s := &scheduler.Swarm{Blob: c.blob(m.GetBlob()), Size: c.size(m.GetSize(), 0)}
	if !c.atMost("add", len(m.GetAdd()), maxNeighbours) || !c.atMost("remove", len(m.GetRemove()), maxNeighbours) {
		return s
	}
	if n := len(m.GetAdd()); n > 0 {
		s.Add = make([]scheduler.Neighbour, 0, n)
	}
	for _, n := range m.GetAdd() {
		s.Add = append(s.Add, c.neighbour("add", n))
	}
	for _, id := range m.GetRemove() {
		s.Remove = append(s.Remove, c.peer("remove", id))
	}
	return s
}
