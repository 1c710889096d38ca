package sim

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// peer is a simulated daemon.
type peer struct {
	id        int32
	name      scheduler.PeerID
	zone      int
	up, down  int32
	slow      bool
	seed      bool // from the beginning
	started   bool
	connected bool
	gone      bool
	joined    time.Duration

	have, coming bitset
	mine         bitset // assigned to it
	count        int
	avail        []uint8 // how many neighbours have a piece
	links        []neighbour
	downs, ups   int
	flows        []int32 // transfers that begin or end here
	asked        []ask   // assigned requests that wait for an upload slot
	runs         []scheduler.Run
	origin       bool // a piece from the origin is on its way
	opening      bool
	imports      int
	progress     bool
	renewing     bool
	last         time.Duration // of the last piece
	uploaded     float64
}

type neighbour struct {
	id       int32
	reserved bool
}

type ask struct {
	from  int32
	piece int32
}

func (w *world) addPeer(i int) *peer {
	rate := w.cfg.Rate
	p := &peer{
		id: int32(i), name: scheduler.PeerID(fmt.Sprint("n", i)), zone: i % w.cfg.Zones,
		slow: i >= w.cfg.Seeds && w.rng.Float64() < w.cfg.Slow,
		have: make(bitset, w.nw), coming: make(bitset, w.nw), mine: make(bitset, w.nw), avail: make([]uint8, w.n),
	}
	if p.slow {
		rate /= 10
	}
	p.up, p.down = w.net.addLink(rate), w.net.addLink(rate)
	w.peers = append(w.peers, p)
	w.index[p.name] = p.id
	return p
}

func (w *world) startPeer(p *peer) {
	p.started, p.joined, p.last = true, w.now, w.now
	w.connect(p, false)
	if !p.seed {
		w.after(time.Second, event{kind: evIdle, a: p.id})
	}
}

// connect announces the peer to the scheduler.
func (w *world) connect(p *peer, again bool) {
	p.connected = true
	hello := scheduler.Hello{Addr: string(p.name) + ":4401", Zone: fmt.Sprint("z", p.zone)}
	if p.count == w.n {
		hello.Inventory = []scheduler.Holding{{Blob: blob, Size: w.cfg.Size}}
		w.tell(p, hello)
		return
	}
	w.tell(p, hello)
	join := scheduler.Join{Blob: blob, Size: w.cfg.Size, Origin: !w.cfg.NoOrigin, Source: "registry/repo", Again: again}
	if again {
		join.Have = p.have.bytes(w.n)
		join.Bringing = slices.Clone(p.runs)
	}
	w.tell(p, join)
}

func (w *world) receive(p *peer, msg any) {
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		for _, id := range msg.Remove {
			w.unlink(p, w.peers[w.index[id]])
		}
		for _, n := range msg.Add {
			w.link(p, w.peers[w.index[n.Peer]], n.Reserved)
		}
		w.try(p)
	case *scheduler.Assign:
		w.assigned(p, msg)
	case *scheduler.Revoke:
		p.runs = subtract(p.runs, msg.Run)
	case *scheduler.Ask:
		var runs []scheduler.Run
		for _, r := range msg.Runs {
			for i := r.First; i < r.End(); i++ {
				if p.have.has(i) {
					runs = append(runs, scheduler.Run{First: i, Count: 1})
				}
			}
		}
		w.tell(p, scheduler.Have{Blob: blob, Runs: runs})
	}
}

// subtract takes one run out of others.
func subtract(runs []scheduler.Run, cut scheduler.Run) []scheduler.Run {
	var left []scheduler.Run
	for _, r := range runs {
		if before := min(r.End(), cut.First) - r.First; before > 0 {
			left = append(left, scheduler.Run{First: r.First, Count: before})
		}
		if first := max(r.First, cut.End()); first < r.End() {
			left = append(left, scheduler.Run{First: first, Count: r.End() - first})
		}
	}
	return left
}

func (w *world) link(a, b *peer, reserved bool) {
	if b.gone {
		return
	}
	if i := slices.IndexFunc(a.links, func(n neighbour) bool { return n.id == b.id }); i >= 0 {
		a.links[i].reserved = reserved
		return
	}
	across := a.zone != b.zone
	a.links = append(a.links, neighbour{b.id, reserved})
	b.links = append(b.links, neighbour{a.id, across})
	for q := range w.n {
		if a.have.has(q) {
			b.avail[q]++
		}
		if b.have.has(q) {
			a.avail[q]++
		}
	}
	w.try(b)
}

func (w *world) unlink(a, b *peer) {
	i := slices.IndexFunc(a.links, func(n neighbour) bool { return n.id == b.id })
	if i < 0 {
		return
	}
	a.links = slices.Delete(a.links, i, i+1)
	j := slices.IndexFunc(b.links, func(n neighbour) bool { return n.id == a.id })
	b.links = slices.Delete(b.links, j, j+1)
	for q := range w.n {
		if a.have.has(q) {
			b.avail[q]--
		}
		if b.have.has(q) {
			a.avail[q]--
		}
	}
}

// assigned begins what a peer was told to bring.
func (w *world) assigned(p *peer, a *scheduler.Assign) {
	if !p.renewing {
		p.renewing = true
		w.after(w.cfg.Core.Renew, event{kind: evRenew, a: p.id})
	}
	for q := a.Run.First; q < a.Run.End(); q++ {
		p.mine.set(q)
	}
	if a.From.Peer != "" {
		for q := a.Run.First; q < a.Run.End(); q++ {
			if p.have.has(q) {
				w.tell(p, scheduler.Have{Blob: blob, Runs: []scheduler.Run{{First: q, Count: 1}}})
			} else if !p.coming.has(q) {
				p.coming.set(q)
				p.imports++
				w.after(w.cfg.Latency, event{kind: evRequest, a: w.index[a.From.Peer], b: p.id, version: uint32(q)})
			}
		}
		return
	}
	if k := len(p.runs) - 1; k >= 0 && p.runs[k].End() == a.Run.First {
		p.runs[k].Count += a.Run.Count
		return
	}
	p.runs = append(p.runs, a.Run)
	w.res.OriginRequests++
	w.open(p)
}

// open asks the origin for the peer's next run: a round trip, and the next
// one is asked for before the last one ends.
func (w *world) open(p *peer) {
	if !p.origin && !p.opening {
		p.opening = true
		w.after(2*w.cfg.Latency, event{kind: evBegin, a: p.id})
	}
}

// begin fetches the next piece of the peer's first run.
func (w *world) begin(p *peer) {
	p.opening = false
	if p.gone {
		return
	}
	for len(p.runs) > 0 {
		r := &p.runs[0]
		if r.Count == 0 {
			p.runs = p.runs[1:]
			continue
		}
		q := r.First
		if p.have.has(q) || p.coming.has(q) {
			if p.have.has(q) {
				w.tell(p, scheduler.Have{Blob: blob, Runs: []scheduler.Run{{First: q, Count: 1}}})
			}
			r.First++
			r.Count--
			continue
		}
		p.origin = true
		p.coming.set(q)
		_, size := w.layout.Span(q)
		w.attach(flow{src: -1, dst: p.id, piece: int32(q), left: float64(size)}, w.origin, p.down)
		return
	}
}

func (w *world) attach(f flow, links ...int32) {
	id := w.start(f, links...)
	if f.src >= 0 {
		src := w.peers[f.src]
		src.flows = append(src.flows, id)
	}
	dst := w.peers[f.dst]
	dst.flows = append(dst.flows, id)
}

// detach takes a transfer off both its ends.
func (w *world) detach(id int32) flow {
	f := w.net.flows[id]
	for _, end := range []int32{f.src, f.dst} {
		if end < 0 {
			continue
		}
		p := w.peers[end]
		if i := slices.Index(p.flows, id); i >= 0 {
			p.flows[i] = p.flows[len(p.flows)-1]
			p.flows = p.flows[:len(p.flows)-1]
		}
	}
	w.stop(id)
	return f
}

// transfer starts a piece from one peer to another.
func (w *world) transfer(src, dst *peer, q int, assigned bool) {
	src.ups++
	dst.downs++
	dst.coming.set(q)
	_, size := w.layout.Span(q)
	// A peer that was idle pays the round trip for its request; one that
	// was busy had asked ahead.
	bytes := float64(size)
	if dst.downs == 1 && !assigned {
		bytes += w.cfg.Rate * (2 * w.cfg.Latency).Seconds()
	}
	f := flow{src: src.id, dst: dst.id, piece: int32(q), left: bytes, assigned: assigned}
	if src.zone != dst.zone {
		w.attach(f, src.up, dst.down, w.zoneUp[src.zone], w.zoneDn[dst.zone])
	} else {
		w.attach(f, src.up, dst.down)
	}
}

// request is an assigned request arriving at src.
func (w *world) request(src, dst *peer, q int) {
	if dst.gone {
		return
	}
	if src.gone {
		dst.coming.unset(q)
		dst.imports--
		return
	}
	src.asked = append(src.asked, ask{dst.id, int32(q)})
	w.serve(src)
}

// finish is the end of a transfer.
func (w *world) finish(id int32) {
	f := w.detach(id)
	dst := w.peers[f.dst]
	q := int(f.piece)
	_, size := w.layout.Span(q)
	dst.progress = true
	w.after(time.Duration(size), event{kind: evVerified, a: dst.id, b: f.piece}) // 1 GB/s
	if f.src < 0 {
		w.sent += float64(size)
		dst.origin = false
		if r := &dst.runs; len(*r) > 0 && (*r)[0].First == q {
			(*r)[0].First++
			(*r)[0].Count--
		}
		w.begin(dst)
		return
	}
	src := w.peers[f.src]
	src.uploaded += float64(size)
	if src.zone != dst.zone {
		w.cross += float64(size)
	}
	if f.assigned {
		dst.imports--
	}
	src.ups--
	dst.downs--
	// The slot goes to who lacks most, not to who had it.
	w.serve(src)
	w.try(dst)
}

// verified makes a piece visible.
func (w *world) verified(p *peer, q int) {
	if p.gone || p.have.has(q) {
		return
	}
	p.have.set(q)
	p.coming.unset(q)
	p.count++
	p.last = w.now
	for _, n := range p.links {
		w.peers[n.id].avail[q]++
	}
	if p.mine.has(q) {
		w.tell(p, scheduler.Have{Blob: blob, Runs: []scheduler.Run{{First: q, Count: 1}}})
	}
	w.after(w.cfg.Latency, event{kind: evHave, a: p.id, b: int32(q)})
	if p.count < w.n {
		return
	}
	w.left--
	w.res.Done++
	if !p.slow {
		w.took = append(w.took, (w.now - p.joined).Seconds())
		w.last = max(w.last, w.now)
	}
	w.tell(p, scheduler.Complete{Blob: blob, Size: w.cfg.Size})
	for i := len(p.links) - 1; i >= 0; i-- {
		if other := w.peers[p.links[i].id]; other.count == w.n {
			w.unlink(p, other)
		}
	}
}

// heard is a HAVE reaching the neighbours of p.
func (w *world) heard(p *peer, q int) {
	if p.gone {
		return
	}
	// From a random one on: who is told first must not always be served
	// first.
	k := len(p.links)
	if k == 0 {
		return
	}
	at := w.rng.IntN(k)
	for i := 0; i < k && w.mayUpload(p) && i < len(p.links); i++ {
		n := w.peers[p.links[(at+i)%len(p.links)].id]
		if w.mayDownload(n) && !n.have.has(q) && !n.coming.has(q) {
			w.try(n)
		}
	}
}

// try starts transfers to p, as long as it has slots and there is something
// to be had.
func (w *world) try(p *peer) {
	if p.gone || p.count == w.n {
		return
	}
	for w.mayDownload(p) {
		if !w.tryOne(p, nil) {
			return
		}
	}
}

// extraSlots is how many transfers more than usual a peer has when those at
// work leave a quarter of its link idle: they are held back at their other
// ends. Without it, two receivers behind a thin link keep a fast sender from
// serving anybody else.
const extraSlots = 4

func (w *world) mayUpload(p *peer) bool {
	return p.ups < w.cfg.Uploads || p.ups < w.cfg.Uploads+extraSlots && w.idleLink(p.up)
}

func (w *world) mayDownload(p *peer) bool {
	return p.downs < w.cfg.Downloads || p.downs < w.cfg.Downloads+extraSlots && w.idleLink(p.down)
}

func (w *world) idleLink(l int32) bool {
	k := &w.net.links[l]
	sum := 0.0
	for _, id := range k.flows {
		sum += w.net.flows[id].rate
	}
	return sum < 0.75*k.rate
}

// tryOne starts one transfer to p, from one given neighbour or from any.
func (w *world) tryOne(p, only *peer) bool {
	var can [64]*peer
	k := 0
	var wanted [256]uint64
	for _, n := range p.links {
		src := w.peers[n.id]
		if !w.mayUpload(src) || only != nil && src != only || n.reserved && p.connected || k == len(can) || src.count == 0 {
			continue
		}
		useful := uint64(0)
		for i, word := range src.have {
			word &^= p.have[i] | p.coming[i]
			wanted[i] |= word
			useful |= word
		}
		if useful != 0 {
			can[k] = src
			k++
		}
	}
	if k == 0 {
		return false
	}
	best, least, ties := -1, uint8(255), 0
	for i, word := range wanted[:w.nw] {
		for ; word != 0; word &= word - 1 {
			q := i*64 + bits.TrailingZeros64(word)
			switch a := p.avail[q]; {
			case a < least || best < 0:
				best, least, ties = q, a, 1
			case a == least:
				ties++
				if w.rng.IntN(ties) == 0 {
					best = q
				}
			}
		}
	}
	var src *peer
	ties = 0
	for _, s := range can[:k] {
		if s.have.has(best) {
			if src == nil || s.ups < src.ups {
				src, ties = s, 1
			} else if s.ups == src.ups {
				ties++
				if w.rng.IntN(ties) == 0 {
					src = s
				}
			}
		}
	}
	w.transfer(src, p, best, false)
	return true
}

// serve fills the upload slots of p: assigned requests first, then neighbours
// that want something, from a random one on.
func (w *world) serve(p *peer) {
	for w.mayUpload(p) && len(p.asked) > 0 {
		a := p.asked[0]
		p.asked = p.asked[1:]
		dst := w.peers[a.from]
		switch {
		case dst.gone:
		case dst.have.has(int(a.piece)):
			dst.imports--
		default:
			w.transfer(p, dst, int(a.piece), true)
		}
	}
	k := len(p.links)
	if p.gone || k == 0 || !w.mayUpload(p) {
		return
	}
	// The one that lacks most comes first: left to chance, one in a hundred
	// is overlooked until the end and makes the time of the last.
	for w.mayUpload(p) {
		var next *peer
		ties := 0
		for _, l := range p.links {
			n := w.peers[l.id]
			if n.count == w.n || n.gone || !w.mayDownload(n) || next != nil && n.count > next.count || !w.lacks(n, p) {
				continue
			}
			if next == nil || n.count < next.count {
				next, ties = n, 0
			}
			if ties++; w.rng.IntN(ties) == 0 {
				next = n
			}
		}
		if next == nil || !w.tryOne(next, p) {
			return
		}
	}
}

// lacks reports whether src has what dst may ask it for.
func (w *world) lacks(dst, src *peer) bool {
	for _, l := range dst.links {
		if l.id == src.id && l.reserved && dst.connected {
			return false
		}
	}
	for i, word := range src.have {
		if word&^(dst.have[i]|dst.coming[i]) != 0 {
			return true
		}
	}
	return false
}

// renew reports progress of assignments.
func (w *world) renew(p *peer) {
	if p.gone || len(p.runs) == 0 && p.imports == 0 || p.count == w.n {
		p.renewing = false
		return
	}
	if p.progress || p.origin && w.net.links[w.origin].rate > 0 || p.imports > 0 {
		w.tell(p, scheduler.Have{Blob: blob})
	}
	p.progress = false
	w.after(w.cfg.Core.Renew, event{kind: evRenew, a: p.id})
}

// idle looks whether the peer is stuck, and says so.
func (w *world) idle(p *peer) {
	if p.gone || p.count == w.n {
		return
	}
	w.after(time.Second, event{kind: evIdle, a: p.id})
	w.try(p)
	if w.now-p.last < 2*time.Second || p.downs > 0 || p.origin {
		return
	}
	var runs []scheduler.Run
	for q := 0; q < w.n && len(runs) < 64; q++ {
		if !p.have.has(q) && !p.coming.has(q) && p.avail[q] == 0 {
			runs = append(runs, scheduler.Run{First: q, Count: 1})
		}
	}
	if len(runs) == 0 {
		return
	}
	w.tell(p, scheduler.Missing{Blob: blob, Runs: runs})
}

// kill loses a peer with all that it was doing.
func (w *world) kill(p *peer) {
	p.gone = true
	for len(p.links) > 0 {
		w.unlink(p, w.peers[p.links[0].id])
	}
	for len(p.flows) > 0 {
		f := w.detach(p.flows[0])
		_, size := w.layout.Span(int(f.piece))
		if f.src < 0 {
			w.sent += float64(size) - w.leftOf(f)
			continue
		}
		src, dst := w.peers[f.src], w.peers[f.dst]
		src.ups--
		dst.downs--
		if f.assigned {
			dst.imports--
		}
		dst.coming.unset(int(f.piece))
		if src != p {
			w.serve(src)
		}
		if dst != p {
			w.try(dst)
		}
	}
	for _, a := range p.asked {
		dst := w.peers[a.from]
		dst.imports--
		dst.coming.unset(int(a.piece))
	}
	p.asked = nil
	w.tell(p, scheduler.Bye{})
}

// leftOf returns the bytes that a stopped transfer lacked.
func (w *world) leftOf(f flow) float64 {
	return min(max(f.left-f.rate*(w.now-f.since).Seconds(), 0), f.left)
}
