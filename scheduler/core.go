package scheduler

import (
	"math/rand/v2"
	"time"

	"github.com/shoalproject/shoal/piece"
)

// Core is the state of all swarms that one scheduler has. It is not safe for
// concurrent use: one goroutine owns it.
type Core struct {
	cfg Config
	rng *rand.Rand
	now time.Duration

	// Maps are for looking up only. What is walked through is a slice, so
	// that the order is the same in every run.
	peers   map[PeerID]*peer
	swarms  map[Holding]*swarm  // by blob and size, 0: not known
	blobs   map[Digest][]*swarm // by blob, the first as a rule the largest
	live    []*swarm            // with members that want the blob
	sources map[string]*source
	// identities are those of the peers that are connected.
	identities map[string]*identity
	accused    map[string]*accusation // by the name of an identity
	accusedAt  []string               // the keys of accused, oldest first
	pieces     int                    // of the rings that want a blob, summed

	epoch   uint64    // counts broadcasts
	pending []*member // with news of neighbours that are not yet in out
	out     []Out
	batch   []Out // out of the step before, to be used again
}

// peer is one connected daemon.
type peer struct {
	id         PeerID
	who        *identity
	addr, zone string
	blobs      map[Digest]*member
	list       []*member // the values of blobs
	streams    int       // runs from origins, over all blobs
	load       int       // links, over all blobs
	epoch      uint64    // the last broadcast that reached it
}

// New returns a core without peers. It panics if the configuration is not
// valid.
func New(cfg Config) *Core {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	return &Core{
		cfg:     cfg,
		rng:     rand.New(rand.NewPCG(cfg.Seed, 0x5ca1ab1e)),
		peers:   map[PeerID]*peer{},
		swarms:  map[Holding]*swarm{},
		blobs:   map[Digest][]*swarm{},
		sources: map[string]*source{},

		identities: map[string]*identity{},
		accused:    map[string]*accusation{},
	}
}

// Step takes in one message and returns the messages that it causes, in
// order. The time is monotonic and counts from any origin. The slice is valid
// until the next call; the messages in it are the caller's.
func (c *Core) Step(now time.Duration, from PeerID, msg In) []Out {
	c.begin(now)
	p := c.peers[from]
	if hello, ok := msg.(Hello); ok {
		c.hello(p, from, hello)
		return c.flush()
	}
	if p == nil {
		return nil
	}
	switch msg := msg.(type) {
	case Bye:
		c.disconnect(p)
	case Join:
		c.join(p, msg)
	case Complete:
		c.complete(p, msg.Blob, msg.Size)
	case Sized:
		if m := p.blobs[msg.Blob]; m != nil {
			c.sized(m, msg.Size)
		}
	case Have:
		if m := p.blobs[msg.Blob]; m != nil {
			c.have(m, msg.Runs)
		}
	case GiveBack:
		if m := p.blobs[msg.Blob]; m != nil {
			c.giveBack(m, msg)
		}
	case Leave:
		if m := p.blobs[msg.Blob]; m != nil {
			c.leave(m)
		}
	case Report:
		c.report(p, msg)
	case Missing:
		if m := p.blobs[msg.Blob]; m != nil {
			c.missing(m, msg.Runs)
		}
	}
	return c.flush()
}

// Tick lets time pass: it finds what has stalled, ends what has a term, and
// hands out what was held back. Call it every 100 to 250 ms. The slice is
// valid until the next call.
func (c *Core) Tick(now time.Duration) []Out {
	c.begin(now)
	for i := 0; i < len(c.live); i++ {
		sw := c.live[i]
		c.tickProbe(sw)
		c.tickDoubts(sw)
		c.tickStreams(sw)
		c.tickImports(sw)
		c.pump(sw)
	}
	c.tickAccused()
	c.tickSources()
	return c.flush()
}

func (c *Core) begin(now time.Duration) {
	c.now = max(c.now, now)
	clear(c.out)
	c.out = c.out[:0]
}

func (c *Core) send(m *member, msg any) { c.sendPeer(m.peer, msg) }

func (c *Core) sendPeer(p *peer, msg any) { c.out = append(c.out, Out{To: p.id, Msg: msg}) }

// flush ends a step: news of neighbours, one message for each peer, go before
// all else, so that a peer knows of a swarm before it is assigned anything.
func (c *Core) flush() []Out {
	if len(c.pending) == 0 {
		return c.out
	}
	rest := len(c.out)
	for i, m := range c.pending {
		if m.news != nil && !m.gone {
			m.news.Size = m.swarm.size
			c.send(m, m.news)
		}
		m.news = nil
		c.pending[i] = nil
	}
	c.pending = c.pending[:0]
	c.batch = append(append(c.batch[:0], c.out[rest:]...), c.out[:rest]...)
	c.out, c.batch = c.batch, c.out
	clear(c.batch)
	return c.out
}

func (c *Core) hello(p *peer, id PeerID, h Hello) {
	if p != nil {
		c.disconnect(p)
	}
	if !c.Admits(id, h.Identity) {
		c.out = append(c.out, Out{To: id, Msg: &Refused{Reason: ReasonFull}})
		return
	}
	p = &peer{id: id, who: c.identify(id, h), addr: h.Addr, zone: h.Zone, blobs: map[Digest]*member{}}
	p.who.peers++
	c.peers[id] = p
	for _, b := range h.Inventory {
		c.complete(p, b.Blob, b.Size)
	}
}

func (c *Core) disconnect(p *peer) {
	for len(p.list) > 0 {
		c.leave(p.list[len(p.list)-1])
	}
	delete(c.peers, p.id)
	c.retire(p.who)
}

func (c *Core) refuse(p *peer, blob Digest, why Reason) {
	c.sendPeer(p, &Refused{Blob: blob, Reason: why})
}

func (c *Core) join(p *peer, j Join) {
	if m := p.blobs[j.Blob]; m != nil {
		c.leave(m)
	}
	switch {
	case c.banned(p.who):
		c.refuse(p, j.Blob, ReasonBanned)
		return
	case len(p.list) >= c.cfg.MaxBlobs || p.who.wants >= c.cfg.IdentityWants:
		c.refuse(p, j.Blob, ReasonFull)
		return
	}
	sw, why := c.swarmFor(p, j.Blob, j.Size)
	if sw == nil {
		c.refuse(p, j.Blob, why)
		return
	}
	if r := sw.ringOf(p.zone); !c.affords(p.who, sw.n, r == nil || !r.charged) {
		c.refuse(p, j.Blob, ReasonFull)
		if sw.members == 0 {
			c.forget(sw)
		}
		return
	}
	if j.Again && sw.wanters == 0 {
		sw.settled = c.now + c.cfg.Settle
	}
	m := &member{peer: p, swarm: sw, want: true, origin: j.Origin, src: c.source(j.Source)}
	m.src.refs++
	c.admit(m)
	if j.Again {
		c.adopt(m, j.Have, j.Bringing)
	}
	c.news(m) // also without neighbours: the answer to Join
	c.meet(m)
	c.pump(sw)
}

// complete takes in that p holds the blob whole, whether it joined or not.
func (c *Core) complete(p *peer, blob Digest, size int64) {
	m := p.blobs[blob]
	if m != nil && m.swarm.size == 0 && size > 0 {
		c.sized(m, size)
		m = p.blobs[blob] // gone if its identity has no room for so many pieces
	}
	if m == nil || m.swarm.size != size {
		if m != nil {
			c.leave(m)
		}
		if size <= 0 || len(p.list) >= c.cfg.MaxBlobs || p.who.seeds >= c.cfg.IdentitySeeds || c.banned(p.who) {
			return
		}
		sw, _ := c.swarmFor(p, blob, size)
		if sw == nil {
			return
		}
		// It gets neighbours once somebody has got a piece from it: see prove.
		m = &member{peer: p, swarm: sw, complete: true}
		c.admit(m)
		c.pump(sw)
		return
	}
	if m.complete {
		return
	}
	if p.who.seeds >= c.cfg.IdentitySeeds {
		c.leave(m)
		return
	}
	c.graduate(m)
	c.pump(m.swarm)
}

// swarmFor finds or makes the swarm for a blob. Each size that anybody states
// has a swarm of its own, so that a lie about it harms only who believes it; and
// as nobody is in two swarms of one blob, there are no more than peers. Who
// knows no size is with the most.
func (c *Core) swarmFor(p *peer, blob Digest, size int64) (*swarm, Reason) {
	if size < 0 || size > 0 && piece.NewLayout(size).Count() > c.cfg.MaxPieces {
		return nil, ReasonInvalid
	}
	if sw := c.swarms[Holding{blob, size}]; sw != nil {
		return sw, 0
	}
	if same := c.blobs[blob]; len(same) > 0 {
		switch first := same[0]; {
		case size == 0:
			return first, 0
		case first.size == 0: // and the only one: nobody has stated any
			c.resize(first, size)
			if c.swarms[Holding{blob, size}] == first {
				return first, 0
			}
			// All who were in it had no room for so many pieces.
		}
	}
	if !share(p.who.wants+p.who.seeds, 1, c.cfg.MaxSwarms, c.cfg.MaxSwarms-len(c.swarms)) {
		return nil, ReasonFull
	}
	sw := newSwarm(blob, c.cfg.Streams)
	if size > 0 {
		sw.setSize(size)
	}
	c.swarms[Holding{blob, size}] = sw
	sw.place = len(c.blobs[blob])
	c.blobs[blob] = append(c.blobs[blob], sw)
	return sw, 0
}

// promote puts a swarm that has grown before the others of its blob, if it is
// larger than the first.
func (c *Core) promote(sw *swarm) {
	same := c.blobs[sw.blob]
	if first := same[0]; sw.members > first.members {
		same[0], same[sw.place] = sw, first
		sw.place, first.place = 0, sw.place
	}
}

// forget drops a swarm in which nobody is left.
func (c *Core) forget(sw *swarm) {
	delete(c.swarms, Holding{sw.blob, sw.size})
	same := c.blobs[sw.blob]
	last := len(same) - 1
	same[sw.place] = same[last]
	same[sw.place].place = sw.place
	same[last] = nil
	if last == 0 {
		delete(c.blobs, sw.blob)
	} else {
		c.blobs[sw.blob] = same[:last]
	}
}

// Stats counts what a core holds.
type Stats struct {
	Peers, Swarms, Members, Streams, Holds, Bans int
	// Identities answer for the peers, and Pieces are those that the tables
	// of all swarms have room for.
	Identities, Pieces int
}

// Stats returns the counts of the moment.
func (c *Core) Stats() Stats {
	s := Stats{Peers: len(c.peers), Swarms: len(c.swarms), Identities: len(c.identities), Pieces: c.pieces}
	for _, p := range c.peers {
		s.Members += len(p.list)
		s.Streams += p.streams
	}
	for _, src := range c.sources {
		if src.until > c.now {
			s.Holds++
		}
	}
	for _, a := range c.accused {
		if a.banned > c.now {
			s.Bans++
		}
	}
	return s
}
