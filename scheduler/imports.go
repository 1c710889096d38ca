package scheduler

import "time"

// imported is a piece on its way into a ring, from a seed or another zone.
type imported struct {
	piece    int
	to, from *member
	opened   time.Duration
	renewed  time.Duration
	unproved bool // nobody had got a piece from that seed by then
}

// importBytes is how much of a seed's or a zone's link is asked for ahead, at
// most: eight pieces of 1 MiB, two of 8 MiB. A piece more than the link needs
// to be busy is a piece that comes later for all.
const importBytes = 8 << 20

// pumpImports assigns pieces that are to come from seeds or other zones.
func (c *Core) pumpImports(sw *swarm, r *ring) {
	l := r.ledger
	if l.free == 0 || c.now < sw.settled {
		return
	}
	window := c.importWindow(sw, r)
	for len(l.imports) < window {
		to := c.pickImporter(r, window)
		if to == nil {
			return
		}
		p, from := c.nextImport(sw, r)
		if from == nil {
			return
		}
		c.mark(sw, r, p, assigned, to)
		im := imported{piece: p, to: to, from: from, opened: c.now, unproved: from.complete && !from.proved}
		l.imports = append(l.imports, im)
		if im.unproved {
			l.unproved++
		}
		to.imports++
		c.send(to, &Assign{Blob: sw.blob, Run: Run{p, 1}, From: c.neighbour(to, from, true)})
	}
}

// importWindow is how many pieces may be on their way into a ring: so many per
// seed of the zone, or so many through the link from other zones.
func (c *Core) importWindow(sw *swarm, r *ring) int {
	length := int(sw.size) / sw.n
	window := min(max(importBytes/max(length, 1), 2), c.cfg.Imports)
	return window * min(max(len(r.roll[rollSeed]), 1), 16)
}

// lender returns a seed that lends its pieces to a ring, or nil: a seed of the
// ring itself first. Seeds that are dealing serve their own ring alone: others
// take each piece from the peer to which it was dealt, so that it leaves the
// seed once and not once per zone.
func (c *Core) lender(sw *swarm, r *ring) *member {
	if sw.seeds == 0 {
		return nil
	}
	hope := c.now < sw.hope
	proved := c.anySeed(r, rollSeed)
	if m := c.candidate(sw, r, hope, proved != nil); m != nil {
		return m
	}
	if proved != nil {
		return proved
	}
	for roll := rollSeed; roll == rollSeed || roll == rollNew && hope; roll++ {
		for _, other := range sw.rings {
			if other == r || other.ledger != nil {
				continue
			}
			if m := c.anySeed(other, roll); m != nil {
				return m
			}
		}
	}
	return nil
}

// candidate returns a seed of the ring from which nobody has got a piece, if
// one may be asked now. While there is hope they are asked for half of what is
// imported, and for all of it without proved seeds. Later one of them gets a
// chance now and then, for one piece, if others bring the rest.
func (c *Core) candidate(sw *swarm, r *ring, hope, proved bool) *member {
	switch {
	case hope && (!proved || r.ledger.unproved < c.cfg.Imports/2):
		return c.anySeed(r, rollNew)
	case !hope && proved:
		return c.secondChance(sw, r, r)
	}
	return nil
}

// secondChance returns a seed of one ring that another may ask although there
// is no hope of it, or nil. It is asked less often each time that it was in
// vain.
func (c *Core) secondChance(sw *swarm, of, r *ring) *member {
	if c.now < sw.trial || r.ledger.unproved > 0 {
		return nil
	}
	m := c.anySeed(of, rollNew)
	if m != nil {
		sw.trials = min(sw.trials+1, 6)
		sw.trial = c.now + c.trust(sw)<<sw.trials
	}
	return m
}

// nextImport returns a piece that is free in the ring and a peer that has it:
// a seed, or one that brought it into another ring. The peer is nil if there
// is none, or if all seeds stalled lately; the next tick tries again.
func (c *Core) nextImport(sw *swarm, r *ring) (int, *member) {
	l := r.ledger
	first := l.nextFree()
	if first < 0 {
		return -1, nil
	}
	if from := c.lender(sw, r); from != nil {
		return first, from
	}
	for len(l.queue) > 0 {
		p := int(l.queue[0])
		l.queue = l.queue[1:]
		l.queued.Remove(p)
		if l.state[p] == free && sw.held[p] != 0 {
			return p, c.holder(sw, r, p)
		}
	}
	if c.now < sw.hope {
		return -1, nil
	}
	for _, other := range sw.rings {
		if m := c.secondChance(sw, other, r); m != nil {
			return first, m
		}
	}
	return -1, nil
}

// nextFree returns the first piece that is free, or -1.
func (l *ledger) nextFree() int {
	for ; l.cursor < len(l.state); l.cursor++ {
		if l.state[l.cursor] == free {
			return l.cursor
		}
	}
	return -1
}

// holder returns a peer that brought a piece into another ring, or nil.
func (c *Core) holder(sw *swarm, r *ring, p int) *member {
	if rings := sw.held[p] &^ (1 << r.index); rings != 0 {
		i := nthBit(rings, c.rng.IntN(bitCount(rings)))
		return sw.rings[i].ledger.owner[p]
	}
	return nil
}

// anySeed returns one of a ring's seeds on a roll, each in turn, leaving out
// those that stalled lately.
func (c *Core) anySeed(r *ring, roll int) *member {
	seeds := r.roll[roll]
	for range min(len(seeds), 8) {
		r.seedTurn++
		if m := seeds[r.seedTurn%len(seeds)]; m.cool <= c.now {
			return m
		}
	}
	return nil
}

// pickImporter returns the next of those who want the blob, each in turn, so
// that distinct peers get distinct pieces.
func (c *Core) pickImporter(r *ring, window int) *member {
	want := r.roll[rollWant]
	most := max((window+len(want)-1)/max(len(want), 1), 2)
	for range min(len(want), 8) {
		r.ledger.turn++
		if m := want[r.ledger.turn%len(want)]; int(m.imports) < most && m.cool <= c.now {
			return m
		}
	}
	return nil
}

// imported notes that a piece has come into a ring.
func (c *Core) imported(m *member, p int) {
	l := m.ring.ledger
	for i, im := range l.imports {
		if im.piece == p && im.to == m {
			c.dropImport(m.ring, i)
			if im.from.complete {
				im.from.fails = 0
			}
			c.prove(im.from, m)
			return
		}
	}
}

// stalled leaves a source of imports out for a while, longer each time in a
// row.
func (c *Core) stalled(from *member) {
	if !from.complete {
		from.cool = c.now + c.cfg.Cool
		return
	}
	from.cool = c.now + c.cfg.Cool<<from.fails
	from.fails = min(from.fails+1, 5)
}

// released notes that a piece which was to be imported will not be. A source
// that stalled is left out for a while.
func (c *Core) released(m *member, p int, why Reason) {
	l := m.ring.ledger
	for i, im := range l.imports {
		if im.piece == p && im.to == m {
			if why == ReasonStalled || why == ReasonDead || why == ReasonUnreachable {
				c.stalled(im.from)
				m.cool = 0 // not its fault
			}
			c.dropImport(m.ring, i)
			return
		}
	}
}

func (c *Core) dropImport(r *ring, i int) {
	l := r.ledger
	l.imports[i].to.imports--
	if l.imports[i].unproved {
		l.unproved--
	}
	l.imports = append(l.imports[:i], l.imports[i+1:]...)
}

// endImports drops what is on its way to a member, not its assignment.
func (c *Core) endImports(m *member) {
	l := m.ring.ledger
	if l == nil || m.imports == 0 {
		return
	}
	for i := len(l.imports) - 1; i >= 0; i-- {
		if l.imports[i].to == m {
			c.dropImport(m.ring, i)
		}
	}
}

// abandonImports takes back what was to come from a member that is leaving.
func (c *Core) abandonImports(m *member) {
	for _, r := range m.swarm.rings {
		if r.ledger == nil {
			continue
		}
		for i := len(r.ledger.imports) - 1; i >= 0; i-- {
			if r.ledger.imports[i].from == m {
				c.takeImport(r, i)
			}
		}
	}
}

func (c *Core) takeImport(r *ring, i int) {
	im := r.ledger.imports[i]
	c.dropImport(r, i)
	c.mark(im.to.swarm, r, im.piece, free, nil)
	c.send(im.to, &Revoke{Blob: im.to.swarm.blob, Run: Run{im.piece, 1}})
}

// tickImports takes pieces back from peers that say nothing, and those that a
// seed which nobody knows has not sent in time.
func (c *Core) tickImports(sw *swarm) {
	for _, r := range sw.rings {
		if r.ledger == nil {
			continue
		}
		for i := len(r.ledger.imports) - 1; i >= 0; i-- {
			im := r.ledger.imports[i]
			if im.from.complete && !im.from.proved && c.now >= im.opened+c.trust(sw) {
				c.stalled(im.from)
				c.takeImport(r, i)
			} else if c.overdue(im.opened, im.renewed) {
				im.to.cool = c.now + c.cfg.Cool
				c.takeImport(r, i)
			}
		}
	}
}

// ration reserves the seeds of a ring for what is assigned from them.
func (c *Core) ration(r *ring) {
	r.rationed = true
	c.reserve(r, true)
}

// unration opens the seeds to all: each of their pieces has a second holder
// now.
func (c *Core) unration(r *ring) {
	r.rationed = false
	if r.ledger != nil {
		r.ledger.seeded = false
	}
	c.reserve(r, false)
}

func (c *Core) reserve(r *ring, on bool) {
	for _, seed := range r.roll[rollSeed] {
		c.reserveSeed(seed, on)
	}
}

func (c *Core) reserveSeed(seed *member, on bool) {
	if seed.reserved == on {
		return
	}
	seed.reserved = on
	for _, m := range seed.links {
		if m.ring == seed.ring {
			n := c.news(m)
			n.Add = append(n.Add, c.neighbour(m, seed, on))
		}
	}
}
