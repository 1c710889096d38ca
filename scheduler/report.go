package scheduler

import (
	"slices"
	"time"
)

// maxShun bounds how many peers one member remembers not to be linked with.
const maxShun = 8

// missingRest is how often a Missing of one peer is heeded, missingMost how
// many pieces of it.
const (
	missingRest = time.Second
	missingMost = 8
)

func (c *Core) banned(who *identity) bool {
	a := c.accused[who.name]
	return a != nil && a.banned > c.now
}

// report takes in an accusation. Whatever it says, two neighbours are kept
// apart: if it is a lie, that costs the liar a neighbour. Who lied, and who found
// it out, may have left the swarm since: wrong sums show by the digest of the
// whole.
func (c *Core) report(by *peer, rep Report) {
	accused := c.peers[rep.Peer]
	if accused == nil || accused == by {
		return
	}
	m, a := by.blobs[rep.Blob], accused.blobs[rep.Blob]
	if m != nil && a != nil && m.swarm == a.swarm {
		c.estrange(m, a)
	}
	if rep.Reason == ReasonLiar {
		c.accuse(by.who, accused.who)
	}
	if m != nil {
		c.pump(m.swarm)
	}
}

// estrange ends all that is between two members.
func (c *Core) estrange(m, a *member) {
	if !slices.Contains(m.shun, a.peer.id) {
		if len(m.shun) == maxShun {
			m.shun = slices.Delete(m.shun, 0, 1)
		}
		m.shun = append(m.shun, a.peer.id)
	}
	if l := m.ring.ledger; l != nil {
		for i := len(l.imports) - 1; i >= 0; i-- {
			if im := l.imports[i]; im.to == m && im.from == a {
				a.cool = c.now + c.cfg.Cool
				c.takeImport(m.ring, i)
			}
		}
	}
	c.unlink(m, a)
	c.topUp(m)
	c.topUp(a)
}

// accuse bans an identity that enough others call a liar. Only certificates
// count, on both sides: an address has as many names as it likes, and one that
// is shared would be banned for all. Only an identity that had the accused as
// a neighbour can have been harmed by it. And no more than a third of the
// identities are banned: when most are accused, it is the accusers who lie, or
// something else is wrong.
func (c *Core) accuse(by, who *identity) {
	if by == who || !by.proven() || !who.proven() || !slices.Contains(*by.met, who.name) {
		return
	}
	a := c.accused[who.name]
	if a == nil {
		if len(c.accused) >= c.cfg.MaxPeers {
			return
		}
		a = &accusation{since: c.now}
		c.accused[who.name] = a
		c.accusedAt = append(c.accusedAt, who.name)
	}
	if a.banned > c.now || slices.Contains(a.accusers, by.name) {
		return
	}
	if len(a.accusers) < c.cfg.BanVotes {
		a.accusers = append(a.accusers, by.name)
	}
	if len(a.accusers) < c.cfg.BanVotes || 3*(c.bans()+1) > len(c.identities) {
		return
	}
	a.banned, a.since = c.now+c.cfg.BanFor, c.now
	for _, id := range c.peersOf(who) {
		c.ban(c.peers[id])
	}
}

// bans counts the identities that are banned.
func (c *Core) bans() int {
	n := 0
	for _, name := range c.accusedAt {
		if c.accused[name].banned > c.now {
			n++
		}
	}
	return n
}

// peersOf returns the peers of an identity, in order.
func (c *Core) peersOf(who *identity) []PeerID {
	var ids []PeerID
	for id, p := range c.peers {
		if p.who == who {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// ban tells a peer and its neighbours, and takes it out of all swarms.
func (c *Core) ban(p *peer) {
	msg := &Ban{Peer: p.id, For: c.cfg.BanFor}
	c.epoch++
	p.epoch = c.epoch
	c.sendPeer(p, msg)
	for _, m := range p.list {
		for _, n := range m.links {
			if n.peer.epoch != c.epoch {
				n.peer.epoch = c.epoch
				c.send(n, msg)
			}
		}
	}
	for len(p.list) > 0 {
		c.leave(p.list[len(p.list)-1])
	}
}

// tickAccused forgets accusations that are as old as a ban is long.
func (c *Core) tickAccused() {
	i := 0
	for ; i < len(c.accusedAt); i++ {
		a := c.accused[c.accusedAt[i]]
		if c.now < max(a.since+c.cfg.BanFor, a.banned) {
			break
		}
		delete(c.accused, c.accusedAt[i])
	}
	c.accusedAt = c.accusedAt[i:]
}

// missing helps a peer to pieces that it cannot find: it gets the one that is
// known to hold them, and more neighbours.
func (c *Core) missing(m *member, runs []Run) {
	sw, r := m.swarm, m.ring
	if !m.want || sw.n == 0 || c.now < m.missed+missingRest {
		return
	}
	m.missed = c.now
	if r.ledger == nil {
		// Everybody was to fetch from the seeds, and one cannot.
		c.seedless(sw, r)
	}
	l := r.ledger
	budget := missingMost
	for _, run := range runs[:min(len(runs), missingMost)] {
		run = sw.clip(run)
		for p := run.First; p < run.End() && budget > 0; p++ {
			budget--
			if l.state[p] != held {
				continue
			}
			from := l.owner[p]
			if from == m { // it has lost it
				c.mark(sw, r, p, free, nil)
				continue
			}
			if !slices.Contains(m.shun, from.peer.id) {
				c.send(m, &Assign{Blob: sw.blob, Run: Run{p, 1}, From: c.neighbour(m, from, true)})
			} else {
				// Known to hold it, and known not to serve it.
				c.mark(sw, r, p, free, nil)
			}
		}
	}
	_, may := c.degree(sw)
	for range 2 {
		if m.degree() >= may+2 {
			break
		}
		if other := c.draw(m, r.roll[rollAll], may); other != nil {
			c.link(m, other)
		}
	}
	c.pump(sw)
}
