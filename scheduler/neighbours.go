package scheduler

import "slices"

// news returns the message that will tell a member, at the end of this step,
// how its neighbours change.
func (c *Core) news(m *member) *Swarm {
	if m.news == nil {
		m.news = &Swarm{Blob: m.swarm.blob}
		c.pending = append(c.pending, m)
	}
	return m.news
}

// neighbour is b as a is told of it.
func (c *Core) neighbour(a, b *member, reserved bool) Neighbour {
	return Neighbour{Peer: b.peer.id, Addr: b.peer.addr, Zone: b.peer.zone,
		Reserved: reserved || a.ring != b.ring || b.reserved}
}

// degree returns how many neighbours a member of the swarm should have and may
// have in its zone.
func (c *Core) degree(sw *swarm) (should, may int) {
	if sw.members >= c.cfg.LargeSwarm {
		return c.cfg.LargeDegree, c.cfg.LargeMaxDegree
	}
	return c.cfg.Degree, c.cfg.MaxDegree
}

func (m *member) degree() int { return len(m.links) - int(m.cross) }

// meet gives a new member its neighbours: drawn by lot from all of the zone,
// so that the swarm has a small diameter however it grew; when those drawn
// have enough of them, it steps between two that are neighbours. Without the
// stepping between, the last to come have half as many as the others, and
// the time of the last node is theirs.
func (c *Core) meet(m *member) {
	should, may := c.degree(m.swarm)
	from := m.ring.roll[rollAll]
	if m.complete {
		from = m.ring.roll[rollWant]
	}
	if len(from) <= should+1 {
		for _, other := range from {
			if other.degree() < may {
				c.link(m, other)
			}
		}
	} else {
		for range 2 * should {
			if m.degree() >= should {
				break
			}
			if other := c.draw(m, from, may); other != nil {
				c.link(m, other)
			}
		}
	}
	// A seed need not have neighbours; who wants the blob must.
	for tries := 0; !m.complete && tries < should && m.degree() < min(should-1, len(from)-1); tries++ {
		c.stepBetween(m, from)
	}
	if m.complete && m.degree() == 0 {
		c.stepBetween(m, from)
	}
	c.reachOut(m)
}

// draw draws two by lot and returns the one with fewer links, or nil if
// neither can be a neighbour.
func (c *Core) draw(m *member, from []*member, limit int) *member {
	var best *member
	crowd := false
	for range 2 {
		other := from[c.rng.IntN(len(from))]
		if other.degree() >= limit || !linkable(m, other) {
			continue
		}
		if c.crowded(m, other) || c.crowded(other, m) {
			crowd = true
			continue
		}
		if best == nil || other.degree() < best.degree() || other.degree() == best.degree() && other.peer.load < best.peer.load {
			best = other
		}
	}
	if crowd = crowd || m.swarm.mixed && best != nil && kin(m, best.peer.who) >= 2; !crowd {
		return best
	}
	// One identity has most peers here: look for another's.
	for range 16 {
		other := from[c.rng.IntN(len(from))]
		if other.degree() >= limit || best != nil && kin(m, other.peer.who) >= kin(m, best.peer.who) || !linkable(m, other) || c.crowded(m, other) || c.crowded(other, m) {
			continue
		}
		best = other
	}
	return best
}

// stepBetween puts a member between two that are neighbours, drawn by lot.
// Their degrees stay, and the swarm stays connected.
func (c *Core) stepBetween(m *member, from []*member) {
	if len(from) == 0 {
		return
	}
	at := c.rng.IntN(len(from))
	for i := range min(len(from), 16) {
		a := from[(at+i)%len(from)]
		if !linkable(m, a) || len(a.links) == 0 || c.crowded(a, m) || c.crowded(m, a) {
			continue
		}
		first := c.rng.IntN(len(a.links))
		for j := range a.links {
			b := a.links[(first+j)%len(a.links)]
			if b.ring == a.ring && linkable(m, b) && !c.crowded(b, m) {
				c.unlink(a, b)
				c.link(m, a)
				c.link(m, b)
				return
			}
		}
	}
}

// reachOut gives a member a few neighbours in other zones.
func (c *Core) reachOut(m *member) {
	rings := m.swarm.rings
	if len(rings) < 2 || m.complete {
		return
	}
	at := c.rng.IntN(len(rings))
	for i := range rings {
		r := rings[(at+i)%len(rings)]
		if r == m.ring || len(r.roll[rollAll]) == 0 {
			continue
		}
		if int(m.cross) >= c.cfg.Across {
			return
		}
		other := r.roll[rollAll][c.rng.IntN(len(r.roll[rollAll]))]
		if int(other.cross) < 2*c.cfg.Across {
			c.link(m, other)
		}
	}
}

func linkable(a, b *member) bool {
	return a != b && !b.gone && !(a.complete && b.complete) && !slices.Contains(a.links, b) &&
		!slices.Contains(a.shun, b.peer.id) && !slices.Contains(b.shun, a.peer.id)
}

// link makes neighbours of two members and tells them.
func (c *Core) link(a, b *member) {
	if !linkable(a, b) || c.crowded(a, b) || c.crowded(b, a) {
		return
	}
	acquaint(a.peer.who, b.peer.who)
	for _, side := range [2][2]*member{{a, b}, {b, a}} {
		m, other := side[0], side[1]
		m.links = append(m.links, other)
		m.peer.load++
		if other.ring != m.ring {
			m.cross++
		}
		n := c.news(m)
		n.Remove = slices.DeleteFunc(n.Remove, func(id PeerID) bool { return id == other.peer.id })
		n.Add = append(n.Add, c.neighbour(m, other, false))
	}
}

// sever ends a link without a word.
func (c *Core) sever(a, b *member) bool {
	i := slices.Index(a.links, b)
	if i < 0 {
		return false
	}
	a.links = slices.Delete(a.links, i, i+1)
	b.links = slices.Delete(b.links, slices.Index(b.links, a), slices.Index(b.links, a)+1)
	for _, m := range [2]*member{a, b} {
		m.peer.load--
		if a.ring != b.ring {
			m.cross--
		}
	}
	return true
}

// unlink ends a link and tells both.
func (c *Core) unlink(a, b *member) {
	if !c.sever(a, b) {
		return
	}
	for _, side := range [2][2]*member{{a, b}, {b, a}} {
		n := c.news(side[0])
		n.Add = slices.DeleteFunc(n.Add, func(other Neighbour) bool { return other.Peer == side[1].peer.id })
		n.Remove = append(n.Remove, side[1].peer.id)
	}
}

// lapse ends the links of a new seed to other seeds; both ends know.
func (c *Core) lapse(m *member) {
	for i := len(m.links) - 1; i >= 0; i-- {
		if m.links[i].complete {
			c.sever(m, m.links[i])
		}
	}
}

// part ends all links of a leaving member and finds others for those who have
// too few left.
func (c *Core) part(m *member) {
	left := slices.Clone(m.links)
	for _, other := range left {
		c.unlink(m, other)
	}
	for _, other := range left {
		c.topUp(other)
	}
}

// topUp gives a member that wants the blob new neighbours when it has less
// than three quarters of what it should have.
func (c *Core) topUp(m *member) {
	should, may := c.degree(m.swarm)
	if m.gone || !m.want || m.degree() >= should*3/4 {
		return
	}
	all := m.ring.roll[rollAll]
	if len(all) <= should+1 {
		for _, other := range all {
			if other.degree() < may {
				c.link(m, other)
			}
		}
		return
	}
	for range 8 {
		if m.degree() >= should*3/4 {
			return
		}
		if other := c.draw(m, all, may); other != nil {
			c.link(m, other)
		}
	}
}
