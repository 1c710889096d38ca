package scheduler

import (
	"time"

	"github.com/shoalproject/shoal/piece"
)

// stream is one run that a peer is fetching from the origin: one request, as
// far as the origin is concerned.
type stream struct {
	m         *member
	next, end int // what is left; pieces before next were brought
	opened    time.Duration
	renewed   time.Duration // of the last progress; 0 before the first
	got       int           // pieces brought
	trial     bool          // the first after its source's Hold
	appeal    bool          // opened during one, to find out
	counted   bool          // against Config.SourceStreams
}

func (s *stream) left() int { return s.end - s.next }

// pace finds out whether more streams bring more.
type pace struct {
	width    int // streams to have
	got      int // pieces brought since at
	at       time.Duration
	rate     float64 // pieces per second before the trial
	trying   bool    // width was raised by one, to see
	notUntil time.Duration
}

const (
	// paceWindow is how long a rate is measured, paceMin how many pieces
	// that takes at least.
	paceWindow = 2 * time.Second
	paceMin    = 16
	// paceWorth is how long a blob must have to go for one more request to
	// be worth the trial. 256 MiB at 200 Mbit/s take 11 s and are not.
	paceWorth = 12.0
	// paceGain is what one more stream has to bring to stay.
	paceGain = 1.1
	// laggardAfter is how long a stream runs before it is compared.
	laggardAfter = 1500 * time.Millisecond
	// paceRest is how long the question is settled.
	paceRest = 30 * time.Second
)

// pumpOrigin hands open pieces out, as long as fewer streams are at work than
// should be.
func (c *Core) pumpOrigin(sw *swarm) {
	if sw.open == nil || c.now < sw.settled {
		return
	}
	for {
		active := 0
		for _, s := range sw.streams {
			if s.left() > c.cfg.Lookahead {
				active++
			}
		}
		if active >= sw.pace.width {
			return
		}
		run := c.openRun(sw)
		if run.Count == 0 {
			if !c.split(sw, active) {
				return
			}
			continue
		}
		if s := c.extendable(sw, run.First); s != nil {
			c.grant(s.m, run)
			s.end = run.End()
			continue
		}
		m := c.pickFetcher(sw)
		if m == nil {
			return
		}
		c.grant(m, run)
		c.addStream(m, run)
	}
}

// openRun returns the first open pieces, as many as one stream should get.
func (c *Core) openRun(sw *swarm) Run {
	first := sw.open.NextAbsent(sw.from)
	sw.from = first
	if first >= sw.n {
		return Run{}
	}
	quota := c.quota(sw)
	if sw.n <= c.cfg.SmallPieces || first > 0 && sw.able() == 1 {
		// One alone has had the time of its first run to be joined by
		// others; the rest is one request.
		quota = sw.n
	}
	end, most := first, quota+quota/2
	for end < sw.n && sw.busy[end] == 0 && end-first <= most {
		end++
	}
	if end-first > most {
		end = first + quota // what is left is worth a request of its own
	}
	return Run{first, end - first}
}

// quota is how many pieces one stream gets.
func (c *Core) quota(sw *swarm) int {
	least := min(c.cfg.MinRun/piece.NewLayout(sw.size).Length(), int64(sw.n))
	return min(max(ceil(sw.n, c.cfg.Runs), int(least)), ceil(sw.n, c.cfg.Streams))
}

func ceil(a, b int) int { return (a + b - 1) / b }

// able counts those who may ask the origin.
func (sw *swarm) able() int {
	n := 0
	for _, r := range sw.rings {
		n += len(r.roll[rollAble])
	}
	return n
}

// extendable returns the stream that can go on with the piece at first
// without a new request.
func (c *Core) extendable(sw *swarm, first int) *stream {
	for _, s := range sw.streams {
		if s.end == first && s.left() <= c.cfg.Lookahead && max(s.m.cool, s.m.dry) <= c.now && s.m.origin && !c.onHold(s.m) {
			return s
		}
	}
	return nil
}

// grant assigns a run from the origin.
func (c *Core) grant(m *member, run Run) {
	for p := run.First; p < run.End(); p++ {
		c.mark(m.swarm, m.ring, p, assigned, m)
	}
	c.send(m, &Assign{Blob: m.swarm.blob, Run: run})
}

func (c *Core) addStream(m *member, run Run) {
	sw := m.swarm
	s := &stream{m: m, next: run.First, end: run.End(), opened: c.now, trial: m.src.trial}
	if c.now < m.src.until {
		s.trial, s.appeal = false, true
		m.src.appeal = c.now + c.cfg.Cool
	}
	sw.streams = append(sw.streams, s)
	m.streams++
	m.peer.streams++
	c.count(s, true)
}

// count enters a stream among those of its source, or takes it out: one that
// brings nothing keeps no other from the origin.
func (c *Core) count(s *stream, on bool) {
	if s.counted == on {
		return
	}
	s.counted = on
	src, who := s.m.src, s.m.peer.who
	if on {
		src.streams++
		src.by[who]++
		return
	}
	src.streams--
	if src.by[who]--; src.by[who] == 0 {
		delete(src.by, who)
	}
}

func (c *Core) dropStream(sw *swarm, i int) {
	s := sw.streams[i]
	sw.streams = append(sw.streams[:i], sw.streams[i+1:]...)
	s.m.streams--
	s.m.peer.streams--
	c.count(s, false)
}

// endStreams drops all streams of a member, not what it was assigned.
func (c *Core) endStreams(m *member) {
	for i := len(m.swarm.streams) - 1; i >= 0 && m.streams > 0; i-- {
		if m.swarm.streams[i].m == m {
			c.dropStream(m.swarm, i)
		}
	}
}

// pickFetcher chooses who asks the origin next: the zones in turn, and in a
// zone, of three drawn by lot, the one whose peer has the fewest streams.
func (c *Core) pickFetcher(sw *swarm) *member {
	for range sw.rings {
		r := sw.rings[sw.turn%len(sw.rings)]
		sw.turn++
		able := r.roll[rollAble]
		// Where nothing is dealt out, all go to the zone's seeds by themselves.
		if len(able) == 0 || sw.n > 0 && r.ledger == nil {
			continue
		}
		var best *member
		for range 3 {
			m := able[c.rng.IntN(len(able))]
			if c.mayFetch(m) && (best == nil || m.peer.streams < best.peer.streams) {
				best = m
			}
		}
		for i, from := 0, c.rng.IntN(len(able)); best == nil && i < min(len(able), 64); i++ {
			if m := able[(from+i)%len(able)]; c.mayFetch(m) {
				best = m
			}
		}
		if best != nil && sw.mixed && best.peer.who.peers > 1 && (best.peer.who.dull > c.now || sw.fetches(best.peer.who) > 0) {
			best = c.fairFetcher(sw, able, best)
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// fairFetcher looks for a better one than best: of an identity that has not
// let a run pass lately, and that has fewer streams of the blob.
func (c *Core) fairFetcher(sw *swarm, able []*member, best *member) *member {
	const look = 256
	dull, streams := best.peer.who.dull > c.now, sw.fetches(best.peer.who)
	for i, from := 0, c.rng.IntN(len(able)); i < min(len(able), look); i++ {
		m := able[(from+i)%len(able)]
		d, n := m.peer.who.dull > c.now, sw.fetches(m.peer.who)
		if (dull && !d || d == dull && n < streams) && c.mayFetch(m) {
			best, dull, streams = m, d, n
		}
	}
	return best
}

// fetches counts the streams of a blob that an identity has.
func (sw *swarm) fetches(who *identity) int {
	n := 0
	for _, s := range sw.streams {
		if s.m.peer.who == who {
			n++
		}
	}
	return n
}

func (c *Core) mayFetch(m *member) bool {
	if max(m.cool, m.dry) > c.now || c.onHold(m) || c.full(m) {
		return false
	}
	for _, s := range m.swarm.streams {
		if s.m == m && s.left() > c.cfg.Lookahead {
			return false
		}
	}
	return true
}

// split opens the tail of the longest run for a peer that has no stream, and
// reports whether it did. Cutting a stream short costs what is on its way and
// one more request, so it is done only when few streams are at work, or when
// one more is on trial.
func (c *Core) split(sw *swarm, active int) bool {
	if active >= c.cfg.SplitBelow && sw.pace.width <= c.cfg.Streams {
		return false
	}
	var long *stream
	for _, s := range sw.streams {
		if long == nil || s.left() > long.left() {
			long = s
		}
	}
	if long == nil || long.left() < max(c.cfg.SmallPieces, sw.n/8) || !long.worthCutting(c.now) || c.pickFetcher(sw) == nil {
		return false
	}
	// Each part as long as its stream is fast, as far as that is known.
	keep := 0.5
	if slow, all := long.rate(c.now), sw.meanRate(c.now); slow > 0 && all > slow {
		keep = max(slow/(slow+all), 0.1)
	}
	cut := long.next + max(int(float64(long.left())*keep), c.cfg.Lookahead+1)
	tail := Run{cut, long.end - cut}
	if tail.Count <= 0 {
		return false
	}
	c.take(long, tail)
	return true
}

// worthCutting reports whether others may bring what is left so much sooner
// that it outweighs what is on its way, which then has left the origin in vain:
// megabytes in the buffers of both ends, where the receiver is the slower one.
// Of little that is left that is much, so it takes a stream that has been slow
// for a while and would be for long.
func (s *stream) worthCutting(now time.Duration) bool {
	remaining := s.remaining(now)
	if int64(s.left())*piece.NewLayout(s.m.swarm.size).Length() < cutBytes {
		return now-s.opened >= cutLittleAfter && remaining >= cutLittle
	}
	return remaining >= cutMuch
}

const (
	// cutBytes is how much is much to be left.
	cutBytes = 6 << 20
	cutMuch  = 3 * time.Second

	cutLittle      = 10 * time.Second
	cutLittleAfter = 4 * time.Second
)

// remaining is how long a stream will take for what is left: unknown, and 0,
// while it has brought nothing.
func (s *stream) remaining(now time.Duration) time.Duration {
	if s.got == 0 {
		return 0
	}
	return time.Duration(float64(s.left()) / s.rate(now) * float64(time.Second))
}

// take revokes the tail of a stream's run and makes it free.
func (c *Core) take(s *stream, tail Run) {
	for p := tail.First; p < tail.End(); p++ {
		if l := s.m.ring.ledger; l.state[p] == assigned && l.owner[p] == s.m {
			c.mark(s.m.swarm, s.m.ring, p, free, nil)
		}
	}
	s.end = tail.First
	c.send(s.m, &Revoke{Blob: s.m.swarm.blob, Run: tail})
}

func (s *stream) rate(now time.Duration) float64 {
	return float64(s.got) / max(now-s.opened, time.Millisecond).Seconds()
}

func (sw *swarm) meanRate(now time.Duration) float64 {
	sum := 0.0
	for _, s := range sw.streams {
		sum += s.rate(now)
	}
	return sum / float64(len(sw.streams))
}

// brought notes that an assigned piece has come in, from wherever.
func (c *Core) brought(m *member, p int) {
	sw := m.swarm
	l := m.ring.ledger
	for i, s := range sw.streams {
		if s.m != m || p < s.next || p >= s.end {
			continue
		}
		s.got++
		sw.pace.got++
		sw.brought, sw.broughtAt = m.peer.who, c.now
		if s.appeal {
			s.appeal = false
			c.lift(m.src)
		}
		for s.next < s.end && (l.state[s.next] != assigned || l.owner[s.next] != m) {
			s.next++
		}
		if s.left() == 0 {
			if c.now >= s.opened+laggardAfter {
				sw.usual = s.rate(c.now)
			}
			c.dropStream(sw, i)
		}
		return
	}
	c.imported(m, p)
}

// renew extends all that a member is assigned.
func (c *Core) renew(m *member) {
	sw := m.swarm
	if m.streams > 0 {
		m.fails = 0
		for _, s := range sw.streams {
			if s.m == m {
				s.renewed = c.now
				c.count(s, true)
				if s.trial {
					s.trial, m.src.trial = false, false
				}
			}
		}
	}
	if l := m.ring.ledger; m.imports > 0 && l != nil {
		for i := range l.imports {
			if l.imports[i].to == m {
				l.imports[i].renewed = c.now
			}
		}
	}
}

// tickStreams takes runs from peers that make no progress, or much less than
// the others, if somebody else may try, and measures the pace.
func (c *Core) tickStreams(sw *swarm) {
	silent := 0
	for _, s := range sw.streams {
		if c.expired(s) {
			silent++
		}
	}
	able := sw.able()
	for i := len(sw.streams) - 1; i >= 0; i-- {
		s := sw.streams[i]
		switch {
		case able == 1:
			// Nobody else may try. It keeps its run, but not its place.
			if c.expired(s) {
				c.count(s, false)
			}
		case c.expired(s):
			// When all are silent it is the origin that stalls, most
			// likely, and others would wait as well; so they get longer.
			if silent > 1 && silent == len(sw.streams) && c.now < s.renewed+c.cfg.Cool {
				continue
			}
			s.m.cool = c.now + c.cfg.Cool
			if s.got == 0 {
				c.dulled(s.m)
			}
			c.take(s, Run{s.next, s.left()})
			c.dropStream(sw, i)
		case c.idle(sw, s):
			c.dulled(s.m)
			s.m.cool = c.now + 4*c.cfg.Cool
			c.take(s, Run{s.next, s.left()})
			c.dropStream(sw, i)
		case s.left() > c.cfg.SmallPieces/2 && c.laggard(sw, s):
			// What it brings leaves it as slowly, so it keeps next to
			// nothing.
			s.m.cool = c.now + 4*c.cfg.Cool
			keep := s.next + c.cfg.Lookahead
			c.take(s, Run{keep, s.end - keep})
		}
	}
	c.measure(sw)
}

// laggard reports whether a stream is slower than half the mean of the others
// and of the one that was done last: at the end there may be no others. One
// that will soon be done all the same is left alone.
func (c *Core) laggard(sw *swarm, s *stream) bool {
	if c.now < s.opened+laggardAfter || s.renewed == 0 || s.m.cool > c.now || s.got > 0 && !s.worthCutting(c.now) {
		return false
	}
	others, n := sw.usual, 0
	if sw.usual > 0 {
		n++
	}
	for _, o := range sw.streams {
		if o != s && c.now >= o.opened+laggardAfter {
			others += o.rate(c.now)
			n++
		}
	}
	return n > 0 && others > 0 && s.rate(c.now) < others/float64(n)/2
}

// idle reports whether a stream has brought nothing for so long that those of
// another identity have brought some, whatever its owner says of progress. It
// is for identities with several names: each could have a run pass in turn. A
// peer that is alone with its identity may just be slow (see laggard).
func (c *Core) idle(sw *swarm, s *stream) bool {
	if s.got > 0 || c.now < s.opened+laggardAfter || !sw.mixed || s.m.peer.who.peers < 2 {
		return false
	}
	for _, o := range sw.streams {
		if o.m.peer.who != s.m.peer.who && o.got > 0 && o.opened >= s.opened {
			return true
		}
	}
	return sw.brought != nil && sw.brought != s.m.peer.who && sw.broughtAt > s.opened+laggardAfter/2
}

func (c *Core) expired(s *stream) bool { return c.overdue(s.opened, s.renewed) }

func (c *Core) overdue(opened, renewed time.Duration) bool {
	if renewed == 0 {
		return c.now >= opened+c.cfg.FirstByte
	}
	return c.now >= renewed+c.cfg.Lease
}

// measure compares the rate before and after one more stream.
func (c *Core) measure(sw *swarm) {
	p := &sw.pace
	if len(sw.streams) == 0 {
		p.at, p.got = c.now, 0
		return
	}
	if c.now-p.at < paceWindow || p.got < paceMin && !p.trying {
		return
	}
	rate := float64(p.got) / (c.now - p.at).Seconds()
	p.at, p.got = c.now, 0
	if p.trying {
		p.trying = false
		if rate < p.rate*paceGain {
			p.width--
			p.notUntil = c.now + paceRest
			return
		}
	}
	left := sw.n - sw.open.Count()
	for _, s := range sw.streams {
		left += s.left()
	}
	if c.now >= p.notUntil && p.width < c.cfg.MaxStreams && len(sw.streams) >= p.width && float64(left) > rate*paceWorth {
		p.rate, p.trying = rate, true
		p.width++
	}
}

// giveBack takes in that a peer will not bring what it was assigned.
func (c *Core) giveBack(m *member, g GiveBack) {
	sw, r := m.swarm, m.ring
	switch g.Reason {
	case ReasonRefused:
		c.unable(m)
	case ReasonUnreachable:
		// The origin; or the peer that it was to import a piece from.
		if m.streams > 0 || sw.prober == m {
			m.dry = c.now + c.cfg.Cool<<m.fails
			m.fails = min(m.fails+1, 5)
		}
	case ReasonRateLimited:
		if m.src != nil {
			c.hold(m.src, m.peer.who, g.RetryAfter)
		}
	default:
		m.cool = c.now + c.cfg.Cool
	}
	if sw.prober == m {
		sw.prober = nil
		c.probe(sw)
	}
	if run := sw.clip(g.Run); run.Count > 0 && r.ledger != nil {
		c.release(m, run, g.Reason)
	}
	c.pump(sw)
}

// release frees those pieces of a run that are assigned to a member.
func (c *Core) release(m *member, run Run, why Reason) {
	sw, l := m.swarm, m.ring.ledger
	for p := run.First; p < run.End(); p++ {
		if l.state[p] == assigned && l.owner[p] == m {
			c.mark(sw, m.ring, p, free, nil)
			c.released(m, p, why)
		}
	}
	for i := len(sw.streams) - 1; i >= 0; i-- {
		s := sw.streams[i]
		if s.m != m {
			continue
		}
		mine := func(p int) bool { return l.state[p] == assigned && l.owner[p] == m }
		for s.next < s.end && !mine(s.next) {
			s.next++
		}
		for s.next < s.end && !mine(s.end-1) {
			s.end--
		}
		if s.left() == 0 {
			c.dropStream(sw, i)
		}
	}
}
