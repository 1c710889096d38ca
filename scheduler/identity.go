package scheduler

import (
	"slices"
	"time"
)

// identity is whoever answers for one or more peers: the names of a
// certificate, or an address. A peer chooses its own name and can have as many
// as it likes; an identity costs something. So tables are shared out among
// identities, and votes count by identity.
type identity struct {
	name  string
	peers int
	// wants and seeds count the members of its peers: those that want a blob
	// and those that hold one.
	wants, seeds int
	// pieces sums the pieces of the blobs that its members want.
	pieces int
	// dull is until when it gets no run that another identity could have: it
	// let one pass without bringing anything.
	dull time.Duration
	// met are the identities that were neighbours of its peers, the latest
	// last. They are kept for proven identities only; nil for others.
	met *[]string
}

// maxMet bounds identity.met. A peer has about ten neighbours per blob, and
// an accusation follows within a minute or so of the download.
const maxMet = 256

// identify returns the identity of a peer that says hello, and makes it if it
// is new.
func (c *Core) identify(id PeerID, h Hello) *identity {
	name := identityName(id, h.Identity)
	who := c.identities[name]
	if who == nil {
		who = &identity{name: name}
		if h.Proven && h.Identity != "" {
			who.met = new([]string)
		}
		c.identities[name] = who
	}
	return who
}

// identityName returns the name under which an identity is known. A peer whose
// edge names none answers for itself. (The names that package wire gives have a
// blank in them, and those of peers have none.)
func identityName(id PeerID, identity string) string {
	if identity == "" {
		return string(id)
	}
	return identity
}

// Admits reports whether there is room for a peer: among all, and within its
// identity's share. A peer that is connected already always has room.
func (c *Core) Admits(id PeerID, identity string) bool {
	if p := c.peers[id]; p != nil && p.who.name == identityName(id, identity) {
		return true
	}
	who := c.identities[identityName(id, identity)]
	n := 0
	if who != nil {
		n = who.peers
	}
	return share(n, 1, c.cfg.IdentityPeers, c.cfg.MaxPeers-len(c.peers))
}

// share reports whether an identity that has used so much of a table may use
// add more: no more than its own limit, and no more than is free. The second
// rule leaves room however many identities are greedy: when k of them take all
// they get, one part in k+1 stays free for the others.
func share(used, add, limit, free int) bool { return used+add <= min(limit, free) }

// affords reports whether an identity may have one more member that wants a
// blob of n pieces, and whether its ring needs a ledger for that.
func (c *Core) affords(who *identity, n int, ledger bool) bool {
	free := c.cfg.IdentityPieces
	if ledger {
		free = c.cfg.AllPieces - c.pieces
	}
	return share(who.pieces, n, c.cfg.IdentityPieces, free)
}

// charge enters what a member that wants a blob of known size costs. It is
// called once its ring lists it.
func (c *Core) charge(m *member) {
	m.pieces = int32(m.swarm.n)
	m.peer.who.pieces += m.swarm.n
	if !m.ring.charged {
		m.ring.charged = true
		c.pieces += m.swarm.n
	}
}

// discharge is the opposite of charge. It is called once the ring lists the
// member no more.
func (c *Core) discharge(m *member) {
	m.peer.who.pieces -= int(m.pieces)
	m.pieces = 0
	if r := m.ring; r.charged && len(r.roll[rollWant]) == 0 {
		r.charged = false
		c.pieces -= m.swarm.n
	}
}

// dulled notes that a member had a run and brought nothing of it.
func (c *Core) dulled(m *member) { m.peer.who.dull = c.now + 4*c.cfg.Cool }

// crowded reports whether a member has as many neighbours of another one's
// identity as it should have in all. What it may have beyond that is for
// others, so that no identity can surround it.
func (c *Core) crowded(m, other *member) bool {
	if !m.swarm.mixed {
		return false
	}
	should, _ := c.degree(m.swarm)
	return kin(m, other.peer.who) >= should
}

// kin counts the neighbours of a member that an identity answers for.
func kin(m *member, who *identity) int {
	n := 0
	for _, other := range m.links {
		if other.peer.who == who {
			n++
		}
	}
	return n
}

// reclaim takes back from other identities than a newcomer's, if they have
// several names, what they have beyond one stream each and have not begun: they
// were first to come, and may never bring anything.
func (c *Core) reclaim(sw *swarm, newcomer *identity) {
	for i := len(sw.streams) - 1; i >= 0; i-- {
		s := sw.streams[i]
		who := s.m.peer.who
		if s.got > 0 || who == newcomer || who.peers < 2 || !slices.ContainsFunc(sw.streams[:i], func(o *stream) bool { return o.m.peer.who == who }) {
			continue
		}
		c.take(s, Run{s.next, s.left()})
		c.dropStream(sw, i)
	}
}

// acquaint notes that the peers of two identities are neighbours.
func acquaint(a, b *identity) {
	if a == b || !a.proven() || !b.proven() {
		return
	}
	a.meets(b.name)
	b.meets(a.name)
}

func (who *identity) meets(name string) {
	met := *who.met
	if i := slices.Index(met, name); i >= 0 {
		met = slices.Delete(met, i, i+1)
	} else if len(met) == maxMet {
		met = slices.Delete(met, 0, 1)
	}
	*who.met = append(met, name)
}

// proven reports whether a certificate says who it is.
func (who *identity) proven() bool { return who.met != nil }

// retire forgets an identity that has no peer left.
func (c *Core) retire(who *identity) {
	if who.peers--; who.peers == 0 {
		delete(c.identities, who.name)
	}
}

// accusation is what is known against an identity.
type accusation struct {
	accusers []string // names of identities
	since    time.Duration
	banned   time.Duration // until when; 0: not
}
