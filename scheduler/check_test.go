package scheduler

import (
	"fmt"
	"slices"
)

// check returns what is wrong inside a core: everything that must hold after
// any message.
func check(c *Core) error {
	swarms, live := 0, 0
	for blob, list := range c.blobs {
		for i, sw := range list {
			swarms++
			if sw.blob != blob || sw.place != i || c.swarms[Holding{blob, sw.size}] != sw || sw.size == 0 && len(list) > 1 {
				return fmt.Errorf("blob %s of %d bytes is not where it is looked for", sw.blob, sw.size)
			}
			if sw.livePos >= 0 {
				live++
			}
			if err := checkSwarm(c, sw); err != nil {
				return fmt.Errorf("blob %s of %d bytes: %w", sw.blob, sw.size, err)
			}
		}
	}
	if swarms != len(c.swarms) || live != len(c.live) {
		return fmt.Errorf("counts %d swarms and %d live, has %d and %d", len(c.swarms), len(c.live), swarms, live)
	}
	streams := map[*source]int{}
	byIdentity := map[*source]map[*identity]int{}
	used := map[*identity]identity{}
	for _, p := range c.peers {
		n, load := 0, 0
		u := used[p.who]
		u.peers++
		for _, m := range p.list {
			load += len(m.links)
			if m.complete {
				u.seeds++
			} else {
				u.wants++
				u.pieces += m.swarm.n
			}
			for _, s := range m.swarm.streams {
				if s.m == m {
					n++
				}
				if s.m == m && s.counted {
					streams[m.src]++
					if byIdentity[m.src] == nil {
						byIdentity[m.src] = map[*identity]int{}
					}
					byIdentity[m.src][p.who]++
				}
			}
		}
		used[p.who] = u
		if n != p.streams || load != p.load || len(p.list) != len(p.blobs) {
			return fmt.Errorf("peer %s: streams %d counted as %d, load %d as %d, blobs %d as %d", p.id, n, p.streams, load, p.load, len(p.list), len(p.blobs))
		}
	}
	for name, src := range c.sources {
		if streams[src] != src.streams {
			return fmt.Errorf("source %s: %d streams counted as %d", name, streams[src], src.streams)
		}
		if len(byIdentity[src]) != len(src.by) {
			return fmt.Errorf("source %s: streams of %d identities, counted %d", name, len(byIdentity[src]), len(src.by))
		}
		for who, n := range byIdentity[src] {
			if src.by[who] != n {
				return fmt.Errorf("source %s: %d streams of %s counted as %d", name, n, who.name, src.by[who])
			}
		}
	}
	return checkBudgets(c, used)
}

// checkBudgets returns which budget is exceeded, or counted wrongly.
func checkBudgets(c *Core, used map[*identity]identity) error {
	if len(used) != len(c.identities) {
		return fmt.Errorf("%d identities, %d have peers", len(c.identities), len(used))
	}
	for who, u := range used {
		if c.identities[who.name] != who || who.peers != u.peers || who.wants != u.wants || who.seeds != u.seeds || who.pieces != u.pieces {
			return fmt.Errorf("identity %s: counted %d peers, %d wants, %d seeds, %d pieces; has %+v", who.name, who.peers, who.wants, who.seeds, who.pieces, u)
		}
		if u.peers > c.cfg.IdentityPeers || u.wants > c.cfg.IdentityWants || u.seeds > c.cfg.IdentitySeeds || u.pieces > c.cfg.IdentityPieces {
			return fmt.Errorf("identity %s exceeds its share: %+v", who.name, u)
		}
	}
	pieces, ledgers := 0, 0
	for _, sw := range c.swarms {
		for _, r := range sw.rings {
			if want := len(r.roll[rollWant]) > 0 && sw.n > 0; want != r.charged {
				return fmt.Errorf("blob %s, zone %q: charged %v", sw.blob, r.zone, r.charged)
			}
			if r.charged {
				pieces += sw.n
			}
			if r.ledger != nil {
				ledgers += sw.n
			}
		}
	}
	if pieces != c.pieces || ledgers > pieces || pieces > c.cfg.AllPieces || len(c.swarms) > c.cfg.MaxSwarms || len(c.peers) > c.cfg.MaxPeers {
		return fmt.Errorf("%d pieces counted as %d, %d in ledgers; %d swarms, %d peers", pieces, c.pieces, ledgers, len(c.swarms), len(c.peers))
	}
	return nil
}

func checkSwarm(c *Core, sw *swarm) error {
	members, wanters, seeds := 0, 0, 0
	busy, holders := make([]uint64, sw.n), make([]uint64, sw.n)
	ledgers := 0
	for _, r := range sw.rings {
		members += len(r.roll[rollWant]) + len(r.roll[rollSeed]) + len(r.roll[rollNew])
		wanters += len(r.roll[rollWant])
		seeds += len(r.roll[rollSeed]) + len(r.roll[rollNew])
		for _, m := range r.roll[rollAll] {
			if err := checkMember(c, m); err != nil {
				return fmt.Errorf("peer %s: %w", m.peer.id, err)
			}
		}
		l := r.ledger
		if l == nil {
			if n := len(r.roll[rollWant]); sw.n > 0 && n > 0 && len(r.roll[rollSeed]) == 0 {
				return fmt.Errorf("zone %s: %d want it, no seed, no ledger", r.zone, n)
			}
			continue
		}
		ledgers++
		free := 0
		for p, st := range l.state {
			owner := l.owner[p]
			if (st == assigned || st == held) != (owner != nil) || owner != nil && (owner.gone || owner.ring != r) {
				return fmt.Errorf("piece %d: state %d with owner %v", p, st, owner)
			}
			bit := uint64(1) << r.index
			switch st {
			case 0:
				free++
			case held:
				holders[p] |= bit
			case assigned:
				// One that lost a piece again may be told twice.
				if bearers(sw, r, p) == 0 {
					return fmt.Errorf("piece %d is assigned to %s, and not on its way", p, owner.peer.id)
				}
			case doubted:
				if !slices.ContainsFunc(sw.doubts, func(d doubt) bool { return d.ring == r && p >= d.run.First && p < d.run.End() }) {
					return fmt.Errorf("piece %d is in doubt for ever", p)
				}
			}
			if st != 0 {
				busy[p] |= bit
			}
		}
		if len(l.queue) != l.queued.Count() {
			return fmt.Errorf("zone %s: %d pieces queued, %d of them once", r.zone, len(l.queue), l.queued.Count())
		}
		if free != l.free {
			return fmt.Errorf("%d pieces free, counted %d", free, l.free)
		}
		for p, st := range l.state {
			// Free here and held elsewhere: it must be found again.
			if st == 0 && holders[p] != 0 && seeds == 0 && sw.held[p] != 0 && !slices.Contains(l.queue, int32(p)) {
				return fmt.Errorf("zone %s: piece %d is held elsewhere and forgotten here", r.zone, p)
			}
			if st == 0 && p < l.cursor {
				return fmt.Errorf("zone %s: free piece %d is before the cursor", r.zone, p)
			}
		}
	}
	if members != sw.members || wanters != sw.wanters || seeds != sw.seeds {
		return fmt.Errorf("members %d counted as %d, wanters %d as %d, seeds %d as %d", members, sw.members, wanters, sw.wanters, seeds, sw.seeds)
	}
	if ledgers > 0 {
		for p := range sw.n {
			if busy[p] != sw.busy[p] || holders[p] != sw.held[p] || (busy[p] != 0) != sw.open.Has(p) {
				return fmt.Errorf("piece %d: masks %b %b, want %b %b", p, sw.busy[p], sw.held[p], busy[p], holders[p])
			}
			if busy[p] == 0 && p < sw.from {
				return fmt.Errorf("piece %d is open before %d", p, sw.from)
			}
		}
	}
	return nil
}

// bearers counts the streams and imports that are to bring a piece to a ring.
func bearers(sw *swarm, r *ring, p int) int {
	n := 0
	owner := r.ledger.owner[p]
	for _, s := range sw.streams {
		if s.m == owner && p >= s.next && p < s.end {
			n++
		}
	}
	for _, im := range r.ledger.imports {
		if im.piece == p && im.to == owner {
			n++
		}
	}
	return n
}

func checkMember(c *Core, m *member) error {
	cross := 0
	if m.complete && m.proved != (m.pos[rollSeed] >= 0) || m.complete && m.proved == (m.pos[rollNew] >= 0) {
		return fmt.Errorf("complete and proved: %v, on roll %d or %d", m.proved, m.pos[rollSeed], m.pos[rollNew])
	}
	for i, other := range m.links {
		switch {
		case other == m || other.gone || other.swarm != m.swarm:
			return fmt.Errorf("link to itself, to one gone, or to another swarm")
		case slices.Contains(m.links[:i], other):
			return fmt.Errorf("two links to %s", other.peer.id)
		case !slices.Contains(other.links, m):
			return fmt.Errorf("%s does not link back", other.peer.id)
		case m.complete && other.complete:
			return fmt.Errorf("linked to %s, both complete", other.peer.id)
		}
		if other.ring != m.ring {
			cross++
		}
	}
	most := max(c.cfg.MaxDegree, c.cfg.LargeMaxDegree) + 2
	if cross != int(m.cross) || m.degree() > most || cross > 3*c.cfg.Across {
		return fmt.Errorf("%d links, %d across (counted %d)", len(m.links), cross, m.cross)
	}
	return nil
}
