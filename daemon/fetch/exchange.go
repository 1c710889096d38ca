package fetch

import (
	"math/rand/v2"
	"time"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// exchange is what a flight knows of its neighbours. It chooses which piece to
// ask of whom. It is pure: the flight calls it under its lock and tells it the
// time.
type exchange struct {
	n     int
	rand  *rand.Rand
	links []*link
	// holders counts, by piece, the named links that have it.
	holders []int
	// claims is what each piece hashes to, as was said first. What a link says
	// otherwise stands with the link.
	claims []claim
	names  map[string]string // publishers, so that each name is kept once
	// follows: only peers are asked that answer for the whole blob.
	follows bool
}

// claim is what somebody said that a piece hashes to.
type claim struct {
	sum       piece.Sum
	known     bool
	publisher string
}

// link is a connection to a peer.
type link struct {
	Peer
	has *piece.Set
	// said are the pieces that it said a sum for: only these are asked of it.
	said *piece.Set
	// answers are the pieces that it named itself the publisher of.
	answers *piece.Set
	// other holds claims of this peer that differ from the first ones.
	other map[int]claim
	// named: a scheduler has told of the node. Nothing is asked of others.
	named bool
	// near: it is a neighbour in this swarm, for which places are kept.
	near bool
	// reserved: to be asked for assigned pieces only, while a scheduler is
	// there.
	reserved bool
	// leaving: no neighbour any more. Nothing is asked of it.
	leaving bool
	choked  bool
	// down counts the transfers from it.
	down int
	// shunned: it made no progress lately. Others are asked first until then.
	shunned time.Time
	// counted is how many bytes have come from it, mark what it was at markAt.
	counted, mark int64
	markAt        time.Time
}

const (
	// maxLinks bounds the connections of one swarm. A scheduler gives a peer
	// at most some twenty neighbours.
	maxLinks = 64
	// maxOthers is how many of them may be with peers that are no neighbours
	// of this node here: whoever dials could take all places otherwise.
	// maxOfParty is how many of these one identity may have. Both are more than
	// a swarm of one machine has before the scheduler has told of everybody.
	maxOthers  = maxLinks / 2
	maxOfParty = 16
	// perLink is how many pieces are asked of one peer at once: while one
	// comes, the request for the next is there already.
	perLink = 2
	// maxNames bounds the publishers that are told apart.
	maxNames = 1 << 14
)

func newExchange(n int, seed uint64) *exchange {
	return &exchange{n: n, rand: rand.New(rand.NewPCG(seed, 0x0ddba11)), holders: make([]int, n), claims: make([]claim, n), names: map[string]string{}}
}

// add takes in a new connection, and returns nil if there are too many. near
// says that the peer is a neighbour here: half of the places are for such peers
// alone.
func (x *exchange) add(p Peer, near bool) *link {
	if len(x.links) >= maxLinks || !near && !x.admits(p) {
		return nil
	}
	l := &link{Peer: p, named: p.Named() && p.ID() != "", near: near, has: piece.NewSet(x.n), said: piece.NewSet(x.n), answers: piece.NewSet(x.n), choked: p.Choked()}
	x.links = append(x.links, l)
	return l
}

// admits reports whether there is a place for a peer that is no neighbour.
func (x *exchange) admits(p Peer) bool {
	others, ofParty := 0, 0
	for _, l := range x.links {
		if l.near {
			continue
		}
		others++
		if l.Party() == p.Party() {
			ofParty++
		}
	}
	return others < maxOthers && ofParty < maxOfParty
}

func (x *exchange) find(p Peer) *link {
	for _, l := range x.links {
		if l.Peer == p {
			return l
		}
	}
	return nil
}

// byID returns the link to a node, or nil.
func (x *exchange) byID(id scheduler.PeerID) *link {
	for _, l := range x.links {
		if id != "" && l.ID() == id {
			return l
		}
	}
	return nil
}

// remove forgets a link.
func (x *exchange) remove(l *link) {
	for i, other := range x.links {
		if other == l {
			x.links = append(x.links[:i], x.links[i+1:]...)
			break
		}
	}
	x.count(l, -1)
}

// name takes note that a scheduler has told of a peer.
func (x *exchange) name(l *link) {
	if !l.named {
		l.named = true
		x.count(l, 1)
	}
}

// count adds delta for each piece of a link to what holders counts.
func (x *exchange) count(l *link, delta int) {
	if !l.named {
		return
	}
	for i := range x.n {
		if l.has.Has(i) {
			x.holders[i] += delta
		}
	}
}

// claimed takes in what a peer says that it has.
func (x *exchange) claimed(l *link, pieces []Have) {
	for _, h := range pieces {
		if h.Index < 0 || h.Index >= x.n {
			continue
		}
		if l.has.Add(h.Index) && l.named {
			x.holders[h.Index]++
		}
		if !h.Known {
			continue
		}
		l.said.Add(h.Index)
		if id := l.ID(); id != "" && h.Publisher == string(id) {
			l.answers.Add(h.Index)
		}
		c := claim{sum: h.Sum, known: true, publisher: x.intern(h.Publisher)}
		switch first := &x.claims[h.Index]; {
		case !first.known:
			*first = c
		case first.sum != h.Sum:
			if l.other == nil {
				l.other = map[int]claim{}
			}
			l.other[h.Index] = c
		default:
			delete(l.other, h.Index)
		}
	}
}

// recount looks again at what a peer has, after it lost something.
func (x *exchange) recount(l *link) {
	for i := range x.n {
		if l.has.Has(i) && !l.Has(i) {
			l.has.Remove(i)
			if l.named {
				x.holders[i]--
			}
		}
	}
}

func (x *exchange) intern(name string) string {
	if known, ok := x.names[name]; ok {
		return known
	}
	if len(x.names) >= maxNames {
		return ""
	}
	x.names[name] = name
	return name
}

// claimOf returns what a peer said that a piece hashes to.
func (x *exchange) claimOf(l *link, i int) claim {
	if c, ok := l.other[i]; ok {
		return c
	}
	return x.claims[i]
}

// choose picks the rarest of the pieces that are wanted and that somebody may
// be asked for, and who is to be asked. It returns nil if there is none.
// With only set, that peer alone is considered; peers of whom as many pieces as
// depth are asked are not.
func (x *exchange) choose(now time.Time, wanted func(i int) bool, only *link, depth int, bound bool) (*link, int) {
	var best *link
	piece, rarity, ties := -1, 0, 0
	for i, holders := range x.holders {
		rare := min(holders, common)
		if holders == 0 || best != nil && (rare > rarity || rare == common && rarity == common) || !wanted(i) {
			continue
		}
		l := x.source(now, i, only, depth, bound)
		if l == nil {
			continue
		}
		if best == nil || rare < rarity {
			rarity, ties = rare, 0
		}
		// Ties by lot: whoever picks the first of them picks what all the
		// others pick.
		if ties++; ties == 1 || x.rand.IntN(ties) == 0 {
			best, piece = l, i
		}
	}
	return best, piece
}

// common is how many neighbours have a piece that is not rare any more. Such
// pieces are asked for in order: only what comes in order can be hashed and
// read, and rarest first, to the end, would leave gaps near the beginning
// until then.
const common = 3

// source returns whom to ask for a piece: the one that is asked for least, and
// of these rather one that lacks pieces itself than one that has them all:
// what only a seed has is asked of it often enough.
func (x *exchange) source(now time.Time, i int, only *link, depth int, bound bool) *link {
	var best *link
	ties := 0
	for _, l := range x.links {
		if only != nil && l != only || !x.serves(now, l, i, depth, bound) || best != nil && l.rank() > best.rank() {
			continue
		}
		if best == nil || l.rank() < best.rank() {
			ties = 0
		}
		if ties++; ties == 1 || x.rand.IntN(ties) == 0 {
			best = l
		}
	}
	return best
}

// whole reports whether a peer says that it has all of the blob, and answers for
// each piece, as one does that has verified it.
func (l *link) whole() bool { return l.named && l.has.Full() && l.answers.Full() }

func (l *link) rank() int {
	if l.has.Full() {
		return 2*l.down + 1
	}
	return 2 * l.down
}

// serves reports whether a peer may be asked for a piece now.
func (x *exchange) serves(now time.Time, l *link, i, depth int, bound bool) bool {
	if x.follows && !l.whole() {
		return false
	}
	return l.named && l.has.Has(i) && l.said.Has(i) && !l.choked && !l.leaving && !(l.reserved && bound) && l.down < depth && !now.Before(l.shunned)
}
