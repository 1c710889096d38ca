package scheduler

import (
	"math/bits"
	"time"

	"github.com/shoalproject/shoal/piece"
)

// swarm is one blob with the peers that hold or want it.
type swarm struct {
	blob Digest
	size int64 // 0: not known yet
	n    int   // pieces; 0 while the size is not known

	rings   []*ring
	members int
	wanters int
	seeds   int // proved or not
	place   int // in Core.blobs
	// first is the identity of the first member; mixed says that there was
	// a member of another one.
	first *identity
	mixed bool
	// hope is until when unproved seeds keep others from the origin, trial
	// when one of them is tried again after that, and trials how often that
	// brought nothing.
	hope, trial time.Duration
	trials      int
	livePos     int // in Core.live, -1 when not there

	// Per piece, one bit per ring; nil while no ring has a ledger.
	held []uint64   // rings in which a peer is known to have it
	busy []uint64   // rings in which it is not free
	open *piece.Set // pieces that are busy in a ring: what is absent is open
	from int        // no piece before this one is open

	streams []*stream
	// brought is the identity that brought a piece from the origin last.
	brought   *identity
	broughtAt time.Duration
	usual     float64       // pieces per second of the stream that was done last
	turn      int           // of the rings that bring pieces from the origin
	settled   time.Duration // no piece leaves the origin before this
	pace      pace
	doubts    []doubt

	prober  *member
	probeBy time.Duration
}

// member is one peer in one swarm. There are as many of these as (peer, blob)
// pairs, so it is kept small.
type member struct {
	peer  *peer
	swarm *swarm
	ring  *ring
	src   *source // nil for one that never wanted the blob

	pos     [rolls]int32 // in the ring's rolls, and in peer.list
	head    int32        // first piece it owns in the ring's ledger, or -1
	streams int16
	imports int16
	cross   int16 // links into other zones
	fails   int8  // times in a row that it did not reach the origin or, complete, did not serve
	pieces  int32 // that its identity is charged for

	want, complete, origin, reserved, gone bool
	// proved: somebody was assigned a piece from this member and got it; own:
	// nobody but a peer of its own identity did.
	proved, own bool

	cool   time.Duration // nothing is assigned to it, or from it, before this
	dry    time.Duration // no run from the origin before this
	missed time.Duration // of its last Missing that was heeded
	links  []*member
	shun   []PeerID // no links with these again
	news   *Swarm
}

// The rolls that a member can stand in. Each is a slice with the member's
// position kept, so that entering, leaving and drawing lots cost O(1).
const (
	rollAll  = iota // may be a neighbour
	rollWant        // wants the blob
	rollAble        // wants it and may ask the origin
	rollSeed        // holds it whole, proved
	rollNew         // says that it holds it whole
	rollPeer        // peer.list
	rolls
)

func enroll(list []*member, roll int, m *member) []*member {
	m.pos[roll] = int32(len(list))
	return append(list, m)
}

func strike(list []*member, roll int, m *member) []*member {
	i, last := m.pos[roll], len(list)-1
	if i < 0 {
		return list
	}
	list[i] = list[last]
	list[i].pos[roll] = i
	list[last] = nil
	m.pos[roll] = -1
	return list[:last]
}

// ring is the members of one zone. Pieces are brought into each ring once.
type ring struct {
	index    int
	zone     string
	roll     [rollPeer][]*member
	ledger   *ledger // nil: nothing is dealt out here
	seedTurn int     // of the seeds that pieces come from
	charged  bool    // its pieces count in Core.pieces
	// rationed: the pieces of the ring's seeds are being dealt out; only
	// who is assigned one may ask a seed for it.
	rationed bool
}

// maxRings is how many zones are told apart in one blob.
const maxRings = 64

func newSwarm(blob Digest, width int) *swarm {
	return &swarm{blob: blob, livePos: -1, pace: pace{width: width}}
}

func (sw *swarm) setSize(size int64) {
	sw.size = size
	sw.n = piece.NewLayout(size).Count()
}

// ringOf returns the ring that members of a zone enter, or nil if it is not
// made yet.
func (sw *swarm) ringOf(zone string) *ring {
	for _, r := range sw.rings {
		if r.zone == zone {
			return r
		}
	}
	if len(sw.rings) == maxRings {
		return sw.rings[maxRings-1]
	}
	return nil
}

func (sw *swarm) ringFor(zone string) *ring {
	if r := sw.ringOf(zone); r != nil {
		return r
	}
	r := &ring{index: len(sw.rings), zone: zone}
	sw.rings = append(sw.rings, r)
	return r
}

// admit puts a member on the rolls and sees to it that its ring deals out
// what has to be dealt out.
func (c *Core) admit(m *member) {
	sw, p := m.swarm, m.peer
	for i := range m.pos {
		m.pos[i] = -1
	}
	m.head = -1
	switch {
	case sw.first == nil:
		sw.first = p.who
	case sw.first != p.who && !sw.mixed:
		sw.mixed = true
		c.demote(sw)
	}
	p.list = enroll(p.list, rollPeer, m)
	p.blobs[sw.blob] = m
	r := sw.ringFor(p.zone)
	m.ring = r
	sw.members++
	c.promote(sw)
	if m.complete {
		p.who.seeds++
		sw.seeds++
		r.roll[rollNew] = enroll(r.roll[rollNew], rollNew, m)
		return
	}
	p.who.wants++
	r.roll[rollAll] = enroll(r.roll[rollAll], rollAll, m)
	sw.wanters++
	r.roll[rollWant] = enroll(r.roll[rollWant], rollWant, m)
	if m.origin {
		r.roll[rollAble] = enroll(r.roll[rollAble], rollAble, m)
	}
	if sw.livePos < 0 {
		sw.livePos = len(c.live)
		c.live = append(c.live, sw)
	}
	if sw.n == 0 {
		c.probe(sw)
		return
	}
	if sw.wanters == 1 {
		sw.hope = max(c.now, sw.settled) + c.trust(sw)
	}
	c.charge(m)
	c.deal(sw, r)
	if sw.mixed && m.origin && r.ledger != nil {
		c.reclaim(sw, p.who)
	}
}

// trust is how long seeds from which nobody has got a piece are trusted.
func (c *Core) trust(sw *swarm) time.Duration {
	return c.cfg.Trust + c.cfg.Trust*time.Duration(piece.NewLayout(sw.size).Length())/piece.MaxLength
}

// prove notes that a peer has reported a piece from a member. A seed is one
// that others rely on from then on.
func (c *Core) prove(m, by *member) {
	own := m.peer.who == by.peer.who
	if own && m.swarm.mixed {
		return
	}
	if m.proved {
		m.own = m.own && own
		return
	}
	m.proved, m.own = true, own
	if !m.complete {
		return
	}
	r := m.ring
	r.roll[rollNew] = strike(r.roll[rollNew], rollNew, m)
	r.roll[rollSeed] = enroll(r.roll[rollSeed], rollSeed, m)
	m.swarm.trials, m.swarm.trial = 0, c.now
	c.reserveSeed(m, r.rationed)
	if m.pos[rollAll] < 0 {
		r.roll[rollAll] = enroll(r.roll[rollAll], rollAll, m)
		c.meet(m)
	}
}

// demote takes the trust from seeds that only peers of their own identity
// vouch for. That is enough as long as there is no other identity; then an
// identity could only deceive itself.
func (c *Core) demote(sw *swarm) {
	for _, r := range sw.rings {
		seeds := r.roll[rollSeed]
		for i := len(seeds) - 1; i >= 0; i-- {
			m := seeds[i]
			if !m.own {
				continue
			}
			m.proved, m.own = false, false
			r.roll[rollSeed] = strike(r.roll[rollSeed], rollSeed, m)
			r.roll[rollNew] = enroll(r.roll[rollNew], rollNew, m)
		}
		if len(r.roll[rollSeed]) == 0 && len(r.roll[rollWant]) > 0 && sw.n > 0 {
			c.seedless(sw, r)
		}
	}
}

// unwant takes a member off the rolls of those who want the blob.
func (c *Core) unwant(m *member) {
	sw, r := m.swarm, m.ring
	r.roll[rollWant] = strike(r.roll[rollWant], rollWant, m)
	c.unable(m)
	m.want = false
	m.peer.who.wants--
	c.discharge(m)
	sw.wanters--
	if sw.wanters == 0 {
		last := len(c.live) - 1
		c.live[sw.livePos] = c.live[last]
		c.live[sw.livePos].livePos = sw.livePos
		c.live[last] = nil
		c.live = c.live[:last]
		sw.livePos = -1
		sw.doubts = nil
	}
}

func (c *Core) unable(m *member) {
	m.origin = false
	m.ring.roll[rollAble] = strike(m.ring.roll[rollAble], rollAble, m)
}

// graduate makes a seed of a member that has got the last piece.
func (c *Core) graduate(m *member) {
	sw, r := m.swarm, m.ring
	c.endStreams(m)
	c.endImports(m)
	if l := r.ledger; l != nil {
		for p := m.head; p >= 0; p = l.next[p] {
			if l.state[p] == assigned {
				c.mark(sw, r, int(p), held, m)
			}
		}
	}
	m.complete = true
	c.unwant(m)
	if sw.prober == m {
		sw.prober = nil
	}
	sw.seeds++
	m.peer.who.seeds++
	m.fails = 0
	if m.proved = m.proved && !(m.own && sw.mixed); m.proved {
		r.roll[rollSeed] = enroll(r.roll[rollSeed], rollSeed, m)
	} else {
		r.roll[rollNew] = enroll(r.roll[rollNew], rollNew, m)
	}
	c.lapse(m)
	if len(r.roll[rollWant]) == 0 {
		c.closeLedger(sw, r)
	}
}

// leave takes a member out: what it was to bring comes free at once; what it
// is known to have is free once nobody answers for it.
func (c *Core) leave(m *member) {
	sw, r, p := m.swarm, m.ring, m.peer
	m.gone = true
	c.endStreams(m)
	c.endImports(m)
	c.abandonImports(m)
	if m.head >= 0 {
		c.disown(m)
	}
	p.list = strike(p.list, rollPeer, m)
	delete(p.blobs, sw.blob)
	r.roll[rollAll] = strike(r.roll[rollAll], rollAll, m)
	sw.members--
	if m.src != nil {
		m.src.refs--
	}
	if m.want {
		c.unwant(m)
	}
	if m.complete {
		sw.seeds--
		p.who.seeds--
		r.roll[rollSeed] = strike(r.roll[rollSeed], rollSeed, m)
		r.roll[rollNew] = strike(r.roll[rollNew], rollNew, m)
	}
	c.part(m)
	if sw.members == 0 {
		c.forget(sw)
		return
	}
	if sw.prober == m {
		sw.prober = nil
		c.probe(sw)
	}
	if len(r.roll[rollWant]) == 0 {
		c.closeLedger(sw, r)
	} else if m.proved && len(r.roll[rollSeed]) == 0 {
		c.seedless(sw, r)
	}
	c.pump(sw)
}

// pump hands out all that can be handed out now.
func (c *Core) pump(sw *swarm) {
	if sw.wanters == 0 || sw.n == 0 {
		return
	}
	if !c.served(sw) {
		c.pumpOrigin(sw)
	}
	for _, r := range sw.rings {
		if r.ledger == nil {
			continue
		}
		c.pumpImports(sw, r)
		if r.rationed && r.ledger.free == 0 && len(r.ledger.imports) == 0 {
			c.unration(r)
		}
	}
}

// served reports whether there is a seed to bring pieces from. Those that
// stalled lately are none, and after a while those from which nobody has got
// a piece: a peer that says that it has the blob, and sends nothing, must not
// keep the others from the origin.
func (c *Core) served(sw *swarm) bool {
	for _, r := range sw.rings {
		if ready(r.roll[rollSeed], c.now) || c.now < sw.hope && ready(r.roll[rollNew], c.now) {
			return true
		}
	}
	return false
}

// ready reports whether one of the seeds has not stalled lately.
func ready(seeds []*member, now time.Duration) bool {
	const look = 64 // so that it costs little where all stall
	for _, m := range seeds[:min(len(seeds), look)] {
		if m.cool <= now {
			return true
		}
	}
	return false
}

// probe asks one member for the size, if it is not known and none is asked.
func (c *Core) probe(sw *swarm) {
	if sw.n != 0 || sw.prober != nil {
		return
	}
	if m := c.pickFetcher(sw); m != nil {
		sw.prober = m
		sw.probeBy = c.now + c.cfg.FirstByte
		c.send(m, &Probe{Blob: sw.blob})
	}
}

func (c *Core) tickProbe(sw *swarm) {
	if sw.n != 0 {
		return
	}
	if m := sw.prober; m != nil && c.now >= sw.probeBy {
		m.cool = c.now + c.cfg.Cool
		sw.prober = nil
	}
	c.probe(sw)
}

func (c *Core) sized(m *member, size int64) {
	sw := m.swarm
	if sw.n != 0 || size <= 0 || piece.NewLayout(size).Count() > c.cfg.MaxPieces {
		return
	}
	c.resize(sw, size)
}

// resize tells all who wait for it the size of the blob, and begins.
func (c *Core) resize(sw *swarm, size int64) {
	delete(c.swarms, Holding{sw.blob, 0})
	c.swarms[Holding{sw.blob, size}] = sw
	sw.setSize(size)
	sw.prober = nil
	sw.hope = max(c.now, sw.settled) + c.trust(sw)
	var over []*member // those whose identity has no room for so many pieces
	for _, r := range sw.rings {
		for _, m := range r.roll[rollWant] {
			c.news(m)
			if !c.affords(m.peer.who, sw.n, !r.charged) {
				over = append(over, m)
				continue
			}
			c.charge(m)
		}
	}
	for _, m := range over {
		c.refuse(m.peer, sw.blob, ReasonFull)
		c.leave(m)
	}
	for _, r := range sw.rings {
		c.deal(sw, r)
	}
	c.pump(sw)
}

// nthBit returns the index of the i-th set bit.
func nthBit(mask uint64, i int) int {
	for ; i > 0; i-- {
		mask &= mask - 1
	}
	return bits.TrailingZeros64(mask)
}

func bitCount(mask uint64) int { return bits.OnesCount64(mask) }
