package scheduler

import "time"

// imported is a piece on its way into a ring, from a seed or another zone.
type imported struct {
	piece    int
	to, from *member
	opened   time.Duration
	renewed  time.Duration
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
		p := c.nextImport(sw, r)
		if p < 0 {
			return
		}
		from := c.importSource(sw, r, p)
		if from == nil {
			return // all seeds stalled lately; the next tick tries again
		}
		c.mark(sw, r, p, assigned, to)
		l.imports = append(l.imports, imported{piece: p, to: to, from: from, opened: c.now})
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

// lender returns a ring with seeds whose pieces are not being dealt out, the
// ring itself first. Seeds that are dealing serve their own ring alone:
// others take each piece from whom it was dealt to, so that it leaves the
// seed once and not once per zone.
func (sw *swarm) lender(r *ring) *ring {
	if sw.seeds == 0 || len(r.roll[rollSeed]) > 0 {
		if sw.seeds == 0 {
			return nil
		}
		return r
	}
	for _, other := range sw.rings {
		if len(other.roll[rollSeed]) > 0 && other.ledger == nil {
			return other
		}
	}
	return nil
}

// nextImport returns a piece that is free in the ring and to be had from a
// seed or from another ring, or -1.
func (c *Core) nextImport(sw *swarm, r *ring) int {
	l := r.ledger
	if sw.lender(r) != nil {
		for ; l.cursor < sw.n; l.cursor++ {
			if l.state[l.cursor] == free {
				return l.cursor
			}
		}
		return -1
	}
	for len(l.queue) > 0 {
		p := int(l.queue[0])
		l.queue = l.queue[1:]
		l.queued.Remove(p)
		if l.state[p] == free && sw.held[p] != 0 {
			return p
		}
	}
	return -1
}

// importSource chooses whom to ask for a piece: seeds that lend it, else one
// that brought it into another zone.
func (c *Core) importSource(sw *swarm, r *ring, p int) *member {
	if lender := sw.lender(r); lender != nil {
		if m := c.anySeed(lender); m != nil {
			return m
		}
	}
	if sw.held == nil {
		return nil
	}
	if rings := sw.held[p] &^ (1 << r.index); rings != 0 {
		i := nthBit(rings, c.rng.IntN(bitCount(rings)))
		return sw.rings[i].ledger.owner[p]
	}
	return nil
}

// anySeed returns one of a ring's seeds, each in turn, leaving out those that
// stalled lately.
func (c *Core) anySeed(r *ring) *member {
	seeds := r.roll[rollSeed]
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
			return
		}
	}
}

// released notes that a piece which was to be imported will not be. A source
// that stalled is left out for a while.
func (c *Core) released(m *member, p int, why Reason) {
	l := m.ring.ledger
	for i, im := range l.imports {
		if im.piece == p && im.to == m {
			if why == ReasonStalled || why == ReasonDead || why == ReasonUnreachable {
				im.from.cool = c.now + c.cfg.Cool
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

// tickImports takes pieces back from peers that say nothing.
func (c *Core) tickImports(sw *swarm) {
	for _, r := range sw.rings {
		if r.ledger == nil {
			continue
		}
		for i := len(r.ledger.imports) - 1; i >= 0; i-- {
			im := r.ledger.imports[i]
			if c.overdue(im.opened, im.renewed) {
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
	c.reserve(r, false)
}

func (c *Core) reserve(r *ring, on bool) {
	for _, seed := range r.roll[rollSeed] {
		if seed.reserved == on {
			continue
		}
		seed.reserved = on
		for _, m := range seed.links {
			if m.ring == r {
				n := c.news(m)
				n.Add = append(n.Add, c.neighbour(m, seed, on))
			}
		}
	}
}
