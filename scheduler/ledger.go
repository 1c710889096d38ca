package scheduler

import (
	"iter"
	"slices"
	"time"

	"github.com/shoalproject/shoal/piece"
)

// state is what a ring knows of a piece.
type state uint8

const (
	// free: nobody of the ring is known to have it or is bringing it.
	free state = iota
	// assigned: its owner is to bring it.
	assigned
	// held: its owner brought it.
	held
	// doubted: its owner is gone; others are being asked.
	doubted
)

// ledger is what a ring knows of each piece. Every piece that has an owner is
// in its owner's list, so that the loss of a peer costs as much as it owned.
type ledger struct {
	state      []state
	owner      []*member
	next, prev []int32 // the owner's list; -1 ends it
	free       int

	imports []imported
	queue   []int32    // pieces that came up in other rings
	queued  *piece.Set // those in queue
	cursor  int        // with seeds: no piece before this one is free
	turn    int        // of the wanters that import
	// seeded: there were seeds when it was opened, and not all of their
	// pieces have been dealt out.
	seeded   bool
	unproved int // of imports
}

// doubt is a run of pieces of one ring about which others are being asked.
type doubt struct {
	ring *ring
	run  Run
	end  time.Duration
}

// deal opens the ring's ledger if its pieces have to be dealt out: always
// without a proved seed in the zone; with such seeds, as long as more want the
// blob than hold it. With as many, everybody can fetch from seeds as he likes.
// Seeds are rationed while there are fewer of them than want the blob.
func (c *Core) deal(sw *swarm, r *ring) {
	wanters, proved := len(r.roll[rollWant]), len(r.roll[rollSeed])
	seeds := proved + len(r.roll[rollNew])
	if r.ledger == nil && wanters > 0 && sw.n > 0 && proved < wanters {
		c.openLedger(sw, r)
		r.ledger.seeded = seeds > 0
		if seeds > 0 {
			// Those who came before took what they liked, so far.
			for _, m := range r.roll[rollWant][:wanters-1] {
				c.send(m, &Ask{Blob: sw.blob, Runs: []Run{{0, sw.n}}})
			}
		}
	}
	if l := r.ledger; l != nil && l.seeded && !r.rationed && proved < wanters {
		c.ration(r)
	}
}

func (c *Core) openLedger(sw *swarm, r *ring) {
	l := &ledger{
		state: make([]state, sw.n), owner: make([]*member, sw.n),
		next: make([]int32, sw.n), prev: make([]int32, sw.n),
		free: sw.n, queued: piece.NewSet(sw.n),
	}
	r.ledger = l
	if sw.held == nil {
		sw.held, sw.busy, sw.open = make([]uint64, sw.n), make([]uint64, sw.n), piece.NewSet(sw.n)
		sw.from = 0
		return
	}
	for p, rings := range sw.held {
		if rings != 0 {
			l.enqueue(p)
		}
	}
}

// closeLedger forgets a ring's pieces when nobody there wants them any more:
// they are with its seeds, or nowhere.
func (c *Core) closeLedger(sw *swarm, r *ring) {
	l := r.ledger
	if l == nil {
		return
	}
	for _, im := range l.imports {
		im.to.imports--
	}
	for p := range l.state {
		c.mark(sw, r, p, free, nil)
	}
	r.ledger, r.rationed = nil, false
	for _, m := range r.roll[rollSeed] {
		m.reserved = false
	}
	for _, other := range sw.rings {
		if other.ledger != nil {
			return
		}
	}
	sw.held, sw.busy, sw.open = nil, nil, nil
}

// mark is the only place where the state of a piece changes.
func (c *Core) mark(sw *swarm, r *ring, p int, st state, owner *member) {
	l := r.ledger
	if was := l.owner[p]; was != owner {
		if was != nil {
			l.unlist(was, p)
		}
		l.owner[p] = owner
		if owner != nil {
			l.list(owner, p)
		}
	}
	was := l.state[p]
	if was == st {
		return
	}
	l.state[p] = st
	bit := uint64(1) << r.index
	if st == free {
		l.free++
		sw.busy[p] &^= bit
		l.cursor = min(l.cursor, p)
	} else {
		if was == free {
			l.free--
		}
		sw.busy[p] |= bit
	}
	if st == held {
		sw.held[p] |= bit
		for _, other := range sw.rings {
			if o := other.ledger; o != nil && other != r && o.state[p] == free {
				o.enqueue(p)
			}
		}
	} else {
		sw.held[p] &^= bit
	}
	if sw.busy[p] != 0 {
		sw.open.Add(p)
	} else if sw.open.Remove(p) {
		sw.from = min(sw.from, p)
	}
	if st == free && sw.held[p] != 0 {
		l.enqueue(p)
	}
}

// enqueue notes that another ring has a piece, once: a ring with a seed takes
// none from its queue, however often others come and go.
func (l *ledger) enqueue(p int) {
	if l.queued.Add(p) {
		l.queue = append(l.queue, int32(p))
	}
}

func (l *ledger) list(m *member, p int) {
	l.next[p], l.prev[p] = m.head, -1
	if m.head >= 0 {
		l.prev[m.head] = int32(p)
	}
	m.head = int32(p)
}

func (l *ledger) unlist(m *member, p int) {
	next, prev := l.next[p], l.prev[p]
	if next >= 0 {
		l.prev[next] = prev
	}
	if prev >= 0 {
		l.next[prev] = next
	} else {
		m.head = next
	}
}

// adopt takes in what a joiner says that it has, and what it is fetching.
func (c *Core) adopt(m *member, have []byte, bringing []Run) {
	sw, r := m.swarm, m.ring
	l := r.ledger
	if l == nil {
		return
	}
	// Another's assignment of a piece that the joiner has stands: it is
	// on its way.
	for i, b := range have[:min(len(have), (sw.n+7)/8)] {
		for bit := 0; b != 0; bit, b = bit+1, b<<1 {
			if p := i*8 + bit; b&0x80 != 0 && p < sw.n && (l.state[p] == free || l.state[p] == doubted) {
				c.mark(sw, r, p, held, m)
			}
		}
	}
	if !m.origin {
		return
	}
	for run := range sw.clipped(bringing[:min(len(bringing), 64)]) {
		// Adopt the part of it that is nobody else's.
		for p := run.First; p < run.End(); {
			if l.state[p] != free {
				p++
				continue
			}
			first := p
			for ; p < run.End() && l.state[p] == free; p++ {
				c.mark(sw, r, p, assigned, m)
			}
			c.addStream(m, Run{first, p - first})
		}
	}
}

// clip cuts a run to the pieces that there are.
func (sw *swarm) clip(run Run) Run {
	first := max(run.First, 0)
	if run.Count <= 0 || first >= sw.n || run.First < 0 && run.Count <= -run.First {
		return Run{}
	}
	count := min(run.Count, sw.n)
	return Run{first, min(run.First+count, sw.n) - first}
}

// clipped yields the runs of a message, cut to the pieces that there are, until
// they would be more than there are: then some are named twice, and going on
// would be work without end.
func (sw *swarm) clipped(runs []Run) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		left := sw.n
		for _, run := range runs {
			run = sw.clip(run)
			run.Count = min(run.Count, left)
			left -= run.Count
			if run.Count > 0 && !yield(run) {
				return
			}
		}
	}
}

// have takes in progress, and answers to Ask.
func (c *Core) have(m *member, runs []Run) {
	sw, r := m.swarm, m.ring
	if m.complete {
		return
	}
	c.renew(m)
	if r.ledger == nil {
		return
	}
	l := r.ledger
	for run := range sw.clipped(runs) {
		for p := run.First; p < run.End(); p++ {
			switch l.state[p] {
			case assigned:
				if l.owner[p] != m {
					continue
				}
				c.mark(sw, r, p, held, m)
				c.brought(m, p)
			case free, doubted:
				c.mark(sw, r, p, held, m)
			}
		}
	}
	c.pump(sw)
}

// disown frees what a leaving member owned. Pieces that it was to bring are
// free at once. For those that it had, its neighbours are asked first: pieces
// spread to them before they spread anywhere.
func (c *Core) disown(m *member) {
	sw, r := m.swarm, m.ring
	l := r.ledger
	var lost []int32
	for m.head >= 0 {
		p := m.head
		if l.state[p] == held && len(m.links) > 0 {
			lost = append(lost, p)
			c.mark(sw, r, int(p), doubted, nil)
		} else {
			c.mark(sw, r, int(p), free, nil)
		}
	}
	if len(lost) == 0 {
		return
	}
	runs := runsOf(lost)
	for _, n := range m.links {
		if n.want && n.ring == r {
			c.send(n, &Ask{Blob: sw.blob, Runs: runs})
		}
	}
	c.doubt(sw, r, runs)
}

func (c *Core) doubt(sw *swarm, r *ring, runs []Run) {
	for _, run := range runs {
		sw.doubts = append(sw.doubts, doubt{ring: r, run: run, end: c.now + c.cfg.Doubt})
	}
}

// seedless opens the ledger of a ring that lost its last seed before anything
// was dealt out there: who wants the blob may have got any part of it.
func (c *Core) seedless(sw *swarm, r *ring) {
	if r.ledger != nil {
		if r.rationed {
			c.unration(r)
		}
		return
	}
	c.openLedger(sw, r)
	all := []Run{{0, sw.n}}
	for p := range sw.n {
		c.mark(sw, r, p, doubted, nil)
	}
	for _, m := range r.roll[rollWant] {
		c.send(m, &Ask{Blob: sw.blob, Runs: all})
	}
	c.doubt(sw, r, all)
}

func (c *Core) tickDoubts(sw *swarm) {
	i := 0
	for ; i < len(sw.doubts) && sw.doubts[i].end <= c.now; i++ {
		d := sw.doubts[i]
		l := d.ring.ledger
		if l == nil {
			continue
		}
		for p := d.run.First; p < d.run.End(); p++ {
			if l.state[p] == doubted {
				c.mark(sw, d.ring, p, free, nil)
			}
		}
	}
	sw.doubts = sw.doubts[i:]
}

// maxAsk bounds the runs of an Ask, and so what a peer that comes and goes
// with every other piece makes others hear and the swarm remember.
const maxAsk = 64

// runsOf returns piece indexes as runs, and sorts them in place. When they are
// more than maxAsk, the last one covers all that is left, and what is between.
func runsOf(pieces []int32) []Run {
	slices.Sort(pieces)
	var runs []Run
	for _, p := range pieces {
		if last := len(runs) - 1; last >= 0 && (runs[last].End() == int(p) || len(runs) == maxAsk) {
			runs[last].Count = int(p) + 1 - runs[last].First
		} else {
			runs = append(runs, Run{int(p), 1})
		}
	}
	return runs
}
