package scheduler

import (
	"slices"
	"time"
)

// charge is what is known against a peer.
type charge struct {
	accusers []PeerID
	since    time.Duration
	banned   time.Duration // until when; 0: not
}

// maxShun bounds how many peers one member remembers not to be linked with.
const maxShun = 8

// missingRest is how often a Missing of one peer is heeded, missingMost how
// many pieces of it.
const (
	missingRest = time.Second
	missingMost = 8
)

func (c *Core) banned(id PeerID) bool {
	ch := c.charges[id]
	return ch != nil && ch.banned > c.now
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
		c.accuse(by.id, accused)
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

// accuse bans a peer that enough others call a liar.
func (c *Core) accuse(by PeerID, p *peer) {
	ch := c.charges[p.id]
	if ch == nil {
		if len(c.charges) >= c.cfg.MaxPeers {
			return
		}
		ch = &charge{since: c.now}
		c.charges[p.id] = ch
		c.charged = append(c.charged, p.id)
	}
	if ch.banned > c.now || slices.Contains(ch.accusers, by) {
		return
	}
	ch.accusers = append(ch.accusers, by)
	if len(ch.accusers) < c.cfg.BanVotes {
		return
	}
	ch.banned = c.now + c.cfg.BanFor
	ch.since = c.now
	c.epoch++
	ban := &Ban{Peer: p.id, For: c.cfg.BanFor}
	p.epoch = c.epoch
	c.sendPeer(p, ban)
	for _, m := range p.list {
		for _, n := range m.links {
			if n.peer.epoch != c.epoch {
				n.peer.epoch = c.epoch
				c.send(n, ban)
			}
		}
	}
	for len(p.list) > 0 {
		c.leave(p.list[len(p.list)-1])
	}
}

// tickCharges forgets charges that are as old as a ban is long.
func (c *Core) tickCharges() {
	i := 0
	for ; i < len(c.charged); i++ {
		ch := c.charges[c.charged[i]]
		if c.now < max(ch.since+c.cfg.BanFor, ch.banned) {
			break
		}
		delete(c.charges, c.charged[i])
	}
	c.charged = c.charged[i:]
}

// missing helps a peer to pieces that it cannot find: it gets the one that is
// known to hold them, and more neighbours.
func (c *Core) missing(m *member, runs []Run) {
	sw, r := m.swarm, m.ring
	if !m.want || sw.n == 0 || c.now < m.missed+missingRest {
		return
	}
	m.missed = c.now
	l := r.ledger
	budget := missingMost
	for _, run := range runs[:min(len(runs), missingMost)] {
		run = sw.clip(run)
		for p := run.First; p < run.End() && budget > 0; p++ {
			budget--
			var from *member
			switch {
			case l == nil:
				from = c.importSource(sw, r, p)
			case l.state[p] != held:
				continue
			case l.owner[p] == m: // it has lost it
				c.mark(sw, r, p, free, nil)
				continue
			default:
				from = l.owner[p]
			}
			if from != nil && from != m && !slices.Contains(m.shun, from.peer.id) {
				c.send(m, &Assign{Blob: sw.blob, Run: Run{p, 1}, From: c.neighbour(m, from, true)})
			} else if l != nil && from != nil && from != m {
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
