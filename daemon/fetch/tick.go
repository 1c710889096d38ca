package fetch

import (
	"context"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

const (
	// downloads is how many neighbours a flight has send at once. A model in
	// which links are shared without loss is at its best with two; on real
	// ones two left a third of the links idle: senders are paced by what they
	// had before, and each change of hands costs a round trip. Time of the
	// last of 8 nodes / ideal, 256 MiB at 200 Mbit/s: 1.6 with two, 1.5 with
	// four, 1.33 with six, 1.4 with ten.
	downloads = 6
	// moreDownloads is how many more it may be while the node's link is not
	// busy: then the transfers are held back at their other ends.
	moreDownloads = 2
	// besideOrigin is how many neighbours send at once to a node that fetches
	// from the origin. The scheduler has three fetch at once, so that each has to give
	// the origin a third of its link: with six neighbours sending it got a
	// seventh, the origin's link stood idle by a fifth, and all waited for it.
	besideOrigin = 2
	// stallAfter is how long a source may bring next to nothing, before its
	// pieces are asked of another; stallBytes is next to nothing.
	stallAfter = time.Second
	stallBytes = 8 << 10
	// firstByte is how long an origin may take to begin.
	firstByte = 3 * time.Second
	// shunFor is how long others are asked before one that stalled.
	shunFor = 5 * time.Second
	// missingAfter is how long nothing is to be had before the scheduler is
	// told and neighbours are asked that it keeps for others, helpAfter before the member goes to the origin by itself,
	// and helpAlone the same when it knows that the origin fails, or that no
	// scheduler is there.
	missingAfter = 2 * time.Second
	helpAfter    = 4 * time.Second
	helpAlone    = 1500 * time.Millisecond
	// rescueBytes is how much a member fetches at once for which it has no
	// assignment, and rescueShare what part of all that is missing, if that is
	// less: others do the same, and it is to learn what they brought.
	rescueBytes = 8 << 20
	rescueShare = 16
	// volunteers is about how many of a swarm that has no scheduler go to the
	// origin at once, drawAfter how often they are drawn.
	volunteers = 2
	drawAfter  = 500 * time.Millisecond
	// enough is how many pieces neighbours must have to give for a member to
	// be no volunteer.
	enough = 8
	// retryOrigin is how long sources that failed are left alone.
	retryOrigin = 2 * time.Second
)

// pace says how many peers are to send at once.
type pace struct {
	limit int
	least int   // 0 at first
	bytes int64 // that came, at
	at    time.Time
	best  float64 // bytes per second, fading
}

// adapt looks at what came since the last time, and makes the limit fit.
func (p *pace) adapt(now time.Time, bytes int64, least int) {
	if p.least != least {
		p.least, p.limit = least, least
	}
	if p.at.IsZero() {
		p.at, p.bytes = now, bytes
		return
	}
	took := now.Sub(p.at).Seconds()
	if took < 0.25 {
		return
	}
	rate := float64(bytes-p.bytes) / took
	p.at, p.bytes = now, bytes
	p.best = max(rate, 0.98*p.best)
	switch {
	case rate < 0.75*p.best:
		p.limit = min(p.limit+1, downloads+moreDownloads)
	case rate > 0.9*p.best:
		p.limit = max(p.limit-1, least)
	}
}

// rescue is the member's own way to the origin, without assignment.
type rescue struct {
	on     bool // a worker is at it
	active bool // one was, and the swarm has brought nothing since
	next   time.Time
	draw   time.Time // no lot before this
	err    error
}

// watch looks after what time brings, until ctx ends. The error is that of
// the origin, when neither it nor the swarm brings the blob.
func (m *Member) watch(ctx context.Context) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if err := m.tick(now); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *Member) tick(now time.Time) error {
	fl := m.fl
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.group == nil {
		return nil // verified
	}
	if err := m.seekLeader(now); err != nil {
		return err
	}
	m.findStalled(now)
	m.findStalledRuns(now)
	for _, l := range m.x.links {
		if l.leaving && l.down == 0 {
			l.Close(errNotWanted)
		}
	}
	for _, n := range m.near {
		switch {
		case n.dialing || now.Before(n.next) || m.x.byID(n.Peer) != nil:
		case n.tries >= dialTries:
			m.unreachable(n)
		default:
			m.dial(n, now)
		}
	}
	least := downloads
	if m.fetching() {
		least = besideOrigin
	}
	m.pace.adapt(now, m.came, least)
	m.renew(now)
	m.stuck = now.Sub(later(m.progress, m.began)) >= missingAfter
	m.schedule()
	return m.help(now)
}

// fetching reports whether a run is coming from the origin.
func (m *Member) fetching() bool {
	for _, r := range m.fl.plan.runs {
		if !r.recheck {
			return true
		}
	}
	return false
}

// findStalled takes pieces from peers that bring next to nothing. Of what is
// asked of one peer only the first moves, so peers are judged, not pieces.
func (m *Member) findStalled(now time.Time) {
	for _, l := range m.x.links {
		n := l.Received()
		if n > l.counted {
			m.lastBytes = now
			m.came += n - l.counted
			l.counted = n
		}
		switch {
		case l.down == 0 || l.markAt.IsZero():
			l.mark, l.markAt = n, now
			if l.down == 0 {
				l.markAt = time.Time{}
			}
		case now.Sub(l.markAt) < stallAfter:
		case n-l.mark < stallBytes:
			l.mark, l.markAt = n, now
			m.giveUp(l, now)
		default:
			l.mark, l.markAt = n, now
			m.progress = now
		}
	}
}

// giveUp cancels what is asked of a peer and has waited long enough.
func (m *Member) giveUp(l *link, now time.Time) {
	for _, d := range m.coming {
		if d.link != l || d.given || now.Sub(d.began) < stallAfter {
			continue
		}
		d.given = true
		l.shunned = now.Add(shunFor)
		if d.transfer != nil {
			go d.transfer.Cancel() // takes the locks of the connection
		}
		// It may have been assigned after it was asked for.
		if from, ok := m.imports[d.piece]; d.assigned || ok && from == l.ID() {
			m.returnImport(d.piece, scheduler.ReasonStalled)
		}
		m.fl.fetcher.cfg.Logger.Debug("peer stalls", "digest", m.fl.digest, "peer", l.String(), "piece", d.piece)
	}
}

// findStalledRuns ends what the origin does not go on with, when another may
// have it: a piece that neighbours have, or one that is not this node's to
// bring any more.
func (m *Member) findStalledRuns(now time.Time) {
	for _, r := range m.fl.plan.runs {
		if r.recheck || r.cancel == nil {
			continue
		}
		patience := stallAfter
		if r.fresh {
			patience = firstByte
		}
		if now.Sub(r.moved) < patience || r.next >= r.end {
			continue
		}
		if m.x.holders[r.next] > 0 || !m.duty.Has(r.next) && !r.rescue {
			r.cancel()
		}
	}
}

// renew tells the scheduler that what it assigned is being worked on.
func (m *Member) renew(now time.Time) {
	if now.Sub(m.renewed) < renewEvery {
		return
	}
	working := len(m.imports) > 0
	for _, r := range m.fl.plan.runs {
		working = working || !r.recheck && r.moved.After(m.renewed)
	}
	m.renewed = now
	if working {
		m.out.renew = true
		m.nudge()
	}
}

// help finds out whether the member is stuck, and sees to it that it gets
// what it lacks all the same.
func (m *Member) help(now time.Time) error {
	fl := m.fl
	if fl.plan.have.Full() {
		return nil
	}
	orphan := !m.connected || m.refused
	idle := now.Sub(later(m.progress, m.began))
	if !orphan && idle >= missingAfter && now.Sub(m.missed) >= time.Second {
		m.missed = now
		if runs := m.lacking(); len(runs) > 0 {
			m.out.push(scheduler.Missing{Blob: scheduler.Digest(fl.digest), Runs: runs})
			m.nudge()
		}
	}
	after := helpAfter
	if orphan || m.originErr != nil && !m.anyHolder() {
		after = helpAlone
	}
	switch {
	case m.rescue.on || now.Before(m.rescue.next):
		return nil
	case orphan && !m.obtainable(now):
		// Nobody else will.
	case orphan && m.draws(now):
		// Somebody has to, while others wait for what that one brings.
	case idle < after && !m.rescue.active:
		return nil
	case idle < after:
		m.rescue.active = false // the swarm has woken up
		return nil
	}
	if m.rescue.err != nil && now.Sub(m.lastBytes) >= after && len(m.coming) == 0 {
		return m.fail()
	}
	m.goToOrigin(now)
	return nil
}

// draws reports whether the member is to go to the origin for a swarm without
// a scheduler, whose nodes have little more to give: some do, by lot, and draw
// again after a while.
func (m *Member) draws(now time.Time) bool {
	if now.Before(m.rescue.draw) || m.fetching() || m.stock() >= enough || len(m.lacking()) == 0 {
		return false
	}
	m.rescue.draw = now.Add(drawAfter)
	return m.x.rand.IntN(len(m.x.links)+1) < volunteers
}

// stock counts what is yet to be asked for of what neighbours have.
func (m *Member) stock() (pieces int) {
	for i, n := range m.x.holders {
		if n > 0 && m.wanted(i) {
			pieces++
		}
	}
	return pieces
}

// fail makes all readers fail: there is nobody left to ask.
func (m *Member) fail() error {
	for _, s := range m.fl.sources {
		if s.err == nil {
			s.err = m.rescue.err
		}
	}
	m.fl.notify()
	return m.rescue.err
}

// lacking returns pieces that no neighbour has and nobody is bringing here.
func (m *Member) lacking() (runs []scheduler.Run) {
	const most = 8
	for i := range m.x.n {
		if len(runs) == most {
			break
		}
		if m.x.holders[i] == 0 && m.wanted(i) && !m.duty.Has(i) {
			runs = append(runs, scheduler.Run{First: i, Count: 1})
		}
	}
	return runs
}

// anyHolder reports whether any neighbour has anything that is missing.
func (m *Member) anyHolder() bool {
	for i, n := range m.x.holders {
		if n > 0 && !m.fl.plan.have.Has(i) {
			return true
		}
	}
	return false
}

// obtainable reports whether something is coming, or may come soon, without
// help.
func (m *Member) obtainable(now time.Time) bool {
	if len(m.coming) > 0 && now.Sub(m.lastBytes) < helpAlone {
		return true
	}
	for _, r := range m.fl.plan.runs {
		if !r.rescue && now.Sub(r.moved) < firstByte {
			return true
		}
	}
	if now.Sub(m.began) < dialGrace && len(m.near) > 0 {
		return true // to see who is there
	}
	return m.anyHolder() && now.Sub(later(m.progress, m.began)) < helpAlone
}

// unheld returns the pieces that nobody is bringing here and no neighbour has,
// or, if there are none, those that neighbours have.
func (m *Member) unheld() []int {
	var nowhere, elsewhere []int
	for i, holders := range m.x.holders {
		switch {
		case !m.fl.plan.free(i) || m.fl.plan.claimed.Has(i):
		case holders == 0:
			nowhere = append(nowhere, i)
		default:
			elsewhere = append(elsewhere, i)
		}
	}
	if len(nowhere) > 0 {
		return nowhere
	}
	return elsewhere
}

// goToOrigin fetches some of what is missing, drawn by lot from all of it, so
// that others who do the same fetch something else.
func (m *Member) goToOrigin(now time.Time) {
	fl := m.fl
	if fl.workers >= fl.fetcher.cfg.Workers {
		return
	}
	lacking := m.unheld()
	if len(lacking) == 0 {
		return
	}
	k := m.x.rand.IntN(len(lacking))
	most := max(min(int(rescueBytes/fl.plan.layout.Length()), len(lacking)/rescueShare), 1)
	first := lacking[k]
	end := first + 1
	for k++; k < len(lacking) && lacking[k] == end && end-first < most; k++ {
		end++
	}
	fl.fetcher.cfg.Logger.Debug("asking the origin for what nobody assigned", "digest", fl.digest,
		"first", first, "pieces", end-first, "idle", now.Sub(later(m.progress, m.began)), "connected", m.connected, "origin", m.originErr)
	fl.retrySources()
	m.rescue.on, m.rescue.active = true, true
	r := fl.plan.begin(first, end)
	r.rescue = true
	fl.spawn(r, nil)
}

// released takes note of the end of a worker's run. The caller holds the
// flight's mu.
func (m *Member) released(r *run, err error) {
	now := time.Now()
	fl := m.fl
	if r.rescue {
		m.rescue.on, m.rescue.err = false, err
		m.rescue.next = now
		if err != nil {
			m.rescue.next = now.Add(tickEvery * 3)
		}
	}
	if err != nil {
		m.originErr = err
		if !r.rescue {
			m.handBack(r, err)
		}
	} else {
		m.originErr = nil
	}
	if fl.pick() == nil {
		// None is left; all are tried again after a while.
		m.sourcesOff = later(m.sourcesOff, now.Add(retryOrigin))
		fl.retrySources()
	}
}

// handBack returns what is left of a run to the scheduler.
func (m *Member) handBack(r *run, err error) {
	count := 0
	for i := r.next; i < r.end; i++ {
		if m.duty.Remove(i) {
			count++
		}
	}
	if count == 0 {
		return
	}
	m.out.push(giveBack(m.fl, scheduler.Run{First: r.next, Count: r.end - r.next}, err))
	m.nudge()
	m.fl.fetcher.cfg.Logger.Warn("origin does not serve; run is handed back", "digest", m.fl.digest, "pieces", count, "err", err)
}
