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
	name   string
	proven bool
	peers  int
	// wants and seeds count the members of its peers: those that want a blob
	// and those that hold one.
	wants, seeds int
	// pieces sums the pieces of the blobs that its members want.
	pieces int
	// met are the identities that were neighbours of its peers, the latest
	// last. They are kept for proven identities only.
	met []string
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
		who = &identity{name: name, proven: h.Proven && h.Identity != ""}
		c.identities[name] = who
	}
	return who
}

// identityName returns the name under which an identity is known. A peer whose
// edge names none answers for itself.
func identityName(id PeerID, identity string) string {
	if identity == "" {
		return "peer " + string(id)
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

// acquaint notes that the peers of two identities are neighbours.
func acquaint(a, b *identity) {
	if a == b || !a.proven || !b.proven {
		return
	}
	a.meets(b.name)
	b.meets(a.name)
}

func (who *identity) meets(name string) {
	if i := slices.Index(who.met, name); i >= 0 {
		who.met = slices.Delete(who.met, i, i+1)
	} else if len(who.met) == maxMet {
		who.met = slices.Delete(who.met, 0, 1)
	}
	who.met = append(who.met, name)
}

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
