package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// errNotWanted ends connections that are of no use to either side.
var errNotWanted = errors.New("not a neighbour any more")

// neighbours takes in how the member's neighbours change. The caller holds
// the flight's mu.
func (m *Member) neighbours(s *scheduler.Swarm) {
	grace := dialGrace
	if !m.greeted {
		// Who has come later connects to who was there.
		m.greeted, grace = true, 0
	}
	for _, id := range s.Remove {
		delete(m.near, id)
		if l := m.x.byID(id); l != nil {
			l.leaving = true
		}
	}
	for _, n := range s.Add {
		m.approach(n, grace)
	}
}

// approach sees to it that there is a connection to a neighbour, within the
// grace. The caller holds the flight's mu.
func (m *Member) approach(n scheduler.Neighbour, grace time.Duration) {
	if l := m.x.byID(n.Peer); l != nil {
		m.x.name(l)
		l.near = true
		l.reserved, l.leaving = n.Reserved, false
	}
	if len(m.met) < maxMet {
		m.met[n.Peer] = n
	}
	known := m.near[n.Peer]
	if known == nil {
		if len(m.near) >= maxNear || m.fl.fetcher.bans.has(n.Peer) {
			return
		}
		known = &neighbour{next: time.Now().Add(grace)}
		m.near[n.Peer] = known
	}
	known.Neighbour = n
	if grace == 0 {
		m.dial(known, time.Now())
	}
}

// dial connects to a neighbour unless there is a connection, or an attempt
// under way. The caller holds the flight's mu.
func (m *Member) dial(n *neighbour, now time.Time) {
	if n.dialing || m.x.byID(n.Peer) != nil || m.fl.group == nil {
		return
	}
	n.dialing = true
	n.tries++
	n.next = now.Add(redial << min(n.tries-1, 5))
	target, ctx, first := n.Neighbour, m.fl.groupCtx, n.tries == 1
	m.fl.group.Go(func() error {
		err := m.wire.Dial(ctx, target)
		if first {
			err = m.insist(ctx, target, err)
		}
		m.fl.mu.Lock()
		defer m.fl.mu.Unlock()
		n.dialing = false
		if err != nil {
			m.fl.fetcher.cfg.Logger.Debug("neighbour is not reached", "digest", m.fl.digest, "peer", target.Peer, "addr", target.Addr, "try", n.tries, "err", err)
		}
		return nil
	})
}

// insist dials again at once if the first attempt failed: a node that learned
// of the swarm at the same time may not be ready.
func (m *Member) insist(ctx context.Context, n scheduler.Neighbour, err error) error {
	for wait := 4 * time.Millisecond; err != nil && wait < redial; wait *= 4 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		m.fl.mu.Lock()
		there := m.x.byID(n.Peer) != nil
		m.fl.mu.Unlock()
		if there {
			return nil
		}
		err = m.wire.Dial(ctx, n)
	}
	return err
}

// unreachable gives a neighbour up that does not answer. The caller holds the
// flight's mu.
func (m *Member) unreachable(n *neighbour) {
	delete(m.near, n.Peer)
	m.out.push(scheduler.Report{Blob: scheduler.Digest(m.fl.digest), Peer: n.Peer, Reason: scheduler.ReasonDead})
	m.returnImports(n.Peer, scheduler.ReasonDead)
	m.nudge()
}

// returnImports hands back all pieces that were to come from a peer, so that
// others are asked for them. The caller holds the flight's mu.
func (m *Member) returnImports(id scheduler.PeerID, why scheduler.Reason) {
	for i, from := range m.imports {
		if from == id {
			m.returnImport(i, why)
		}
	}
}

// returnImport hands a piece back that was to come from a peer, unless that was
// done. The caller holds the flight's mu.
func (m *Member) returnImport(i int, why scheduler.Reason) {
	if _, assigned := m.imports[i]; !assigned {
		return
	}
	delete(m.imports, i)
	m.out.push(scheduler.GiveBack{Blob: scheduler.Digest(m.fl.digest), Run: scheduler.Run{First: i, Count: 1}, Reason: why})
	m.nudge()
}

// Opened tells of a new connection.
func (m *Member) Opened(p Peer) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	id := p.ID()
	if m.fl.fetcher.bans.has(id) {
		p.Close(fmt.Errorf("peer %s is banned", id))
		return
	}
	n := m.near[id]
	l := m.x.add(p, n != nil)
	if l == nil {
		p.Close(errors.New("too many peers for one blob"))
		return
	}
	if n != nil {
		l.reserved = n.Reserved
		n.tries = 0
	}
}

// Claimed tells what a peer says that it has.
func (m *Member) Claimed(p Peer, pieces []Have) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	if l := m.x.find(p); l != nil {
		m.x.claimed(l, pieces)
		m.vouch(l)
		m.schedule()
	}
}

// Changed tells that a peer choked or unchoked this node, or lost a piece.
func (m *Member) Changed(p Peer) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	l := m.x.find(p)
	if l == nil {
		return
	}
	was := l.choked
	l.choked = p.Choked()
	if l.choked || !was {
		return
	}
	m.schedule()
	if l.down > 0 {
		return
	}
	// A slot was kept for this node: worth one more than there should be.
	if m.busy() < m.pace.limit+2 {
		if _, i := m.x.choose(time.Now(), m.wanted, l, 1, m.bound()); i >= 0 {
			m.request(l, i, false)
		}
	}
	if l.down == 0 {
		p.Unneeded()
	}
}

// Closed tells that a connection is gone.
func (m *Member) Closed(p Peer, reason error) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	l := m.x.find(p)
	if l == nil {
		return
	}
	m.x.remove(l)
	if n := m.near[p.ID()]; n != nil {
		n.next = later(n.next, time.Now().Add(dialGrace))
	}
	m.schedule()
}

// bound reports whether the member leaves reserved neighbours, and what was
// assigned, to the scheduler: not while that one lets it wait for long.
func (m *Member) bound() bool { return m.connected && !m.refused && !m.fl.follows && !m.stuck }

// wanted reports whether a piece is to be had from whoever has it. The caller
// holds the flight's mu.
func (m *Member) wanted(i int) bool {
	if _, assigned := m.imports[i]; assigned && m.bound() {
		return false
	}
	return m.fl.plan.free(i) && !m.fl.plan.claimed.Has(i)
}

// schedule asks for what is to be asked for now: what was assigned first, then
// what is rarest. The caller holds the flight's mu.
func (m *Member) schedule() {
	if m.fl.plan == nil || m.fl.group == nil {
		return
	}
	now := time.Now()
	for i, from := range m.imports {
		if l := m.x.byID(from); l != nil && (!m.x.follows || l.whole()) && m.fl.plan.free(i) && !m.fl.plan.claimed.Has(i) && l.has.Has(i) && l.said.Has(i) && !l.choked && !now.Before(l.shunned) {
			m.request(l, i, true)
		}
	}
	for m.busy() < m.pace.limit {
		l, i := m.x.choose(now, m.wanted, nil, 1, m.bound())
		if l == nil {
			break
		}
		m.request(l, i, false)
	}
	// The next request is there before the last one is answered.
	for _, l := range m.x.links {
		if l.down == 0 || l.down >= perLink {
			continue
		}
		if _, i := m.x.choose(now, m.wanted, l, perLink, m.bound()); i >= 0 {
			m.request(l, i, false)
		}
	}
	m.employ()
}

// busy returns how many peers are sending.
func (m *Member) busy() (n int) {
	for _, l := range m.x.links {
		if l.down > 0 {
			n++
		}
	}
	return n
}

// request asks a peer for a piece. The caller holds the flight's mu.
func (m *Member) request(l *link, i int, assigned bool) {
	d := &download{link: l, piece: i, claim: m.x.claimOf(l, i), assigned: assigned, began: time.Now()}
	m.coming[i] = d
	m.fl.plan.lent.Add(i)
	l.down++
	ctx := m.fl.groupCtx
	m.fl.group.Go(func() error { return m.ended(d, m.receive(ctx, d)) })
}

// receive gets one piece.
func (m *Member) receive(ctx context.Context, d *download) error {
	out, err := m.fl.partial.Piece(d.piece)
	if err != nil {
		return err
	}
	defer out.Discard()
	t, err := d.link.Request(d.piece, out)
	if err != nil {
		return err
	}
	m.fl.mu.Lock()
	d.transfer = t
	given := d.given
	m.fl.mu.Unlock()
	if given {
		t.Cancel()
	}
	select {
	case <-t.Done():
	case <-ctx.Done():
		t.Cancel()
		return ctx.Err()
	}
	if err := t.Err(); err != nil {
		return err
	}
	return out.CommitSum(d.claim.sum)
}

// ended takes note of how a download ended. The error is one of the store,
// which ends the flight.
func (m *Member) ended(d *download, err error) error {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	l := d.link
	delete(m.coming, d.piece)
	m.fl.plan.lent.Remove(d.piece)
	l.down--
	now := time.Now()
	switch {
	case err == nil:
		_, n := m.fl.plan.layout.Span(d.piece)
		m.fl.fetcher.stats.peerBytes.Add(n)
		m.fl.plan.have.Add(d.piece)
		m.arrived(d.piece, d.claim.sum, m.provenance(l, d.piece, d.claim), false)
		m.fl.notify()
	case errors.Is(err, ErrUnavailable):
		return err
	case errors.Is(err, ErrWrongPiece):
		// The scheduler takes pieces that come back after the report for a fault
		// of this node.
		m.returnImports(l.ID(), scheduler.ReasonStalled)
		delete(m.near, l.ID())
		m.accuse(l, &wrongPieceError{d.piece, err})
		l.Close(fmt.Errorf("it sent a wrong piece: %v", err)) // other pieces from it are lost, not wrong
		m.x.remove(l)
	default:
		l.choked = l.Choked()
		if !l.choked && !d.given {
			// It lost the piece, or is about to go: not again at once.
			l.shunned = later(l.shunned, now.Add(tickEvery))
			m.x.recount(l)
			if d.assigned && d.transfer == nil {
				// It owes the piece from before, and would for long.
				m.returnImport(d.piece, scheduler.ReasonStalled)
			}
		}
	}
	m.schedule()
	return nil
}

// recheck puts a worker on pieces that were left from before: without, nobody
// would, and those who read wait for them. The caller holds the flight's mu.
func (m *Member) recheck() {
	fl := m.fl
	if fl.follows && m.vouched.sender == "" {
		return // one of them is wrong
	}
	if fl.plan.claimed.Count() == 0 || fl.workers >= fl.fetcher.cfg.Workers {
		return
	}
	for _, r := range fl.plan.runs {
		if r.recheck {
			return // one reads as fast as the disk
		}
	}
	for i := range m.x.n {
		if fl.plan.claimed.Has(i) && fl.plan.free(i) {
			fl.spawn(fl.plan.begin(i, m.x.n), nil)
			return
		}
	}
}

// employ puts workers on what is to be brought from the origin. The caller
// holds the flight's mu.
func (m *Member) employ() {
	m.recheck()
	if m.duty.Count() == 0 || time.Now().Before(m.sourcesOff) {
		return
	}
	fl := m.fl
	for i := range m.x.n {
		if fl.workers >= fl.fetcher.cfg.Workers {
			return
		}
		if !m.duty.Has(i) || !fl.plan.free(i) || fl.plan.claimed.Has(i) {
			continue
		}
		end := i + 1
		for m.duty.Has(end) {
			end++
		}
		fl.spawn(fl.plan.begin(i, end), nil)
	}
}
