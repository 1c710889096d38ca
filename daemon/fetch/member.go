package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// Member is a flight's part in a swarm: it does what the scheduler assigns,
// exchanges the rest with neighbours, and helps itself when neither brings
// anything. Its methods are called by those who bring news of the swarm and
// never wait for a network.
type Member struct {
	fl    *flight
	swarm Swarm
	// wake tells the sender that there is something to send.
	wake chan struct{}
	// news is closed when the size is known, or never will be.
	news chan struct{}

	// Guarded by the flight's mu:
	size      int64
	hopeless  bool // no scheduler will say the size
	asked     bool // a Join was sent
	connected bool // a scheduler is there
	told      bool // it is known whether one is
	refused   bool // the scheduler does not take this member
	early     []any
	out       outbox

	// From begin on:
	wire    Wire
	x       *exchange
	coming  map[int]*download
	pace    pace
	near    map[scheduler.PeerID]*neighbour
	greeted bool // the first Swarm after a Join has come
	// duty are pieces to be brought from the origin, imports those to be
	// brought from a peer. mine are both, and those done: to be reported.
	duty    *piece.Set
	imports map[int]scheduler.PeerID
	mine    *piece.Set
	from    []provenance
	// met are the nodes that the scheduler told of since this flight began.
	met map[scheduler.PeerID]scheduler.Neighbour
	// vouched is the peer whose word a flight that follows goes by.
	vouched provenance

	came       int64 // bytes, from peers and from the origin
	began      time.Time
	progress   time.Time // when the swarm, or the origin for it, last brought anything
	lastBytes  time.Time // when anything at all came
	renewed    time.Time
	missed     time.Time
	rescue     rescue
	stuck      bool      // nothing was to be had for missingAfter
	originErr  error     // of the last attempt
	sourcesOff time.Time // until when sources that failed are left alone
}

// provenance is where a piece came from. It is empty for what this node brought
// from the origin itself, and for what was left from before.
type provenance struct {
	publisher string           // the node that brought it from the origin, by the sender's word
	sender    scheduler.PeerID // the peer that sent it
	name      string           // of the sender, for people
}

// published reports whether the sender said that it brought the piece itself.
func (p provenance) published() bool { return p.publisher == string(p.sender) }

// provenance returns where a piece comes from that a peer sends with a claim. A
// publisher that cannot be is taken for the sender: none, this node itself, or a
// peer that says something else of the piece. The caller holds the flight's mu.
func (m *Member) provenance(l *link, i int, c claim) provenance {
	by := provenance{c.publisher, l.ID(), l.String()}
	p := m.x.byID(scheduler.PeerID(c.publisher))
	if c.publisher == "" || c.publisher == m.fl.fetcher.cfg.Name || p != nil && p.said.Has(i) && m.x.claimOf(p, i).sum != c.sum {
		by.publisher = string(by.sender)
	}
	return by
}

// neighbour is a node that the scheduler, or memory, told of.
type neighbour struct {
	scheduler.Neighbour
	dialing bool
	tries   int
	next    time.Time // of the next attempt
}

// download is a piece on its way from a peer.
type download struct {
	link     *link
	piece    int
	claim    claim
	assigned bool
	began    time.Time
	transfer Transfer // nil until it was asked for
	given    bool     // up: it is to be cancelled
}

const (
	tickEvery = 100 * time.Millisecond
	// sizeWait is how long the scheduler has to find the size of a blob. It
	// has one node ask the origin, for 3 s, and then another.
	sizeWait = 5 * time.Second
	// firstContact is how long a daemon that has just started waits for its
	// schedulers.
	firstContact = time.Second
	// dialGrace is how long a neighbour that has come later has to connect,
	// before this node does: one connection serves both.
	dialGrace = 250 * time.Millisecond
	// redial is how long after a failed attempt the next one comes, doubled
	// each time; dialTries is how many there are.
	redial    = 100 * time.Millisecond
	dialTries = 5
	// maxEarly bounds what is kept of the scheduler's words while the size
	// is not known, maxNear the neighbours.
	maxEarly = 64
	maxNear  = 128
	// maxMet bounds how many nodes are remembered to have been neighbours.
	maxMet = 256
)

var renewEvery = scheduler.DefaultConfig().Renew

func newMember(fl *flight) *Member {
	return &Member{fl: fl, wake: make(chan struct{}, 1), news: make(chan struct{})}
}

// viaSwarm brings the blob by way of its swarm. It reports false if there is
// none to be had, and nothing was begun.
func (fl *flight) viaSwarm(ctx context.Context, want int64) (done bool, err error) {
	cluster := fl.fetcher.cfg.Cluster
	if cluster == nil || fl.solo || fl.private || fl.fetcher.shunned(fl.digest) {
		return false, nil
	}
	m := newMember(fl)
	if m.swarm, err = cluster.Enter(fl.digest, m); err != nil {
		fl.fetcher.cfg.Logger.Warn("blob has no swarm here", "digest", fl.digest, "err", err)
		return false, nil
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.send(ctx)
	}()
	defer func() {
		stop()
		<-ended
		if fl.kept {
			m.publish()
			m.swarm.Seed(fl.size)
		} else {
			m.swarm.Leave()
		}
	}()
	if !m.meet(ctx, cluster) {
		return false, ctx.Err()
	}
	size := m.findSize(ctx)
	if size <= 0 {
		return false, ctx.Err()
	}
	partial, err := fl.fetcher.store.Partial(fl.digest, size)
	if err != nil {
		return true, fl.goDirect(err, size, 0, fl.digest.Algorithm().Hash(), nil)
	}
	content := func() (PartialReader, error) {
		if r, err := partial.Reader(); err == nil {
			return r, nil
		}
		return fl.fetcher.store.Blob(fl.digest)
	}
	p := planFor(partial, size)
	p.whole = true
	m.begin(p.layout.Count()) // peers may come as soon as they are let in
	wire, err := m.swarm.Open(size, nil, content)
	if err != nil {
		fl.fetcher.cfg.Logger.Warn("peers cannot be let in", "digest", fl.digest, "err", err)
		return false, partial.Close()
	}
	fl.mu.Lock()
	m.wire = wire
	fl.mu.Unlock()
	return true, fl.finish(partial, fl.fill(ctx, partial, p, want, nil, m))
}

// publish says of all pieces of the blob, which is verified, that this node answers
// for them: peers that connect from now on hear it, and those of a flight that
// followed at once.
func (m *Member) publish() {
	m.fl.mu.Lock()
	wire, n := m.wire, len(m.from)
	m.fl.mu.Unlock()
	if wire == nil {
		return
	}
	wire.Publish(m.fl.fetcher.cfg.Name, m.fl.follows && n > 0)
}

// meet reports whether there is anybody to share with: a scheduler, or nodes
// known from before.
func (m *Member) meet(ctx context.Context, cluster Cluster) bool {
	timeout := time.NewTimer(firstContact)
	defer timeout.Stop()
	for {
		m.fl.mu.Lock()
		told, connected, changed := m.told, m.connected, m.fl.changed
		m.fl.mu.Unlock()
		if connected {
			return true
		}
		if told {
			break
		}
		select {
		case <-changed:
			continue
		case <-timeout.C:
		case <-ctx.Done():
			return false
		}
		break
	}
	return len(cluster.Known(m.fl.digest)) > 0
}

// findSize returns the size of the blob, or 0 if nobody says it.
func (m *Member) findSize(ctx context.Context) int64 {
	fl := m.fl
	fl.mu.Lock()
	if most := fl.fetcher.cfg.MaxHint; most == 0 || fl.hint <= most {
		m.size = fl.hint
	}
	if size, pending := fl.fetcher.store.Pending(fl.digest); pending && m.size == 0 {
		m.size = size
	}
	size, connected := m.size, m.connected
	if size == 0 && connected {
		m.join()
	}
	fl.mu.Unlock()
	if size > 0 || !connected {
		return size
	}
	timeout := time.NewTimer(sizeWait)
	defer timeout.Stop()
	select {
	case <-m.news:
	case <-timeout.C:
	case <-ctx.Done():
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return m.size
}

// begin takes the member's part up, once the size is known.
func (m *Member) begin(n int) {
	h := fnv.New64a()
	h.Write([]byte(m.fl.fetcher.cfg.Name + string(m.fl.digest)))
	now := time.Now()
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	m.x = newExchange(n, h.Sum64())
	m.x.follows = m.fl.follows
	m.coming, m.near, m.met = map[int]*download{}, map[scheduler.PeerID]*neighbour{}, map[scheduler.PeerID]scheduler.Neighbour{}
	m.duty, m.mine, m.imports = piece.NewSet(n), piece.NewSet(n), map[int]scheduler.PeerID{}
	m.out.haves = piece.NewSet(n)
	m.from = make([]provenance, n)
	m.began, m.progress, m.lastBytes = now, now, now
	m.pace.limit = downloads
}

// start joins, when the flight is ready for what the scheduler says. The
// caller holds the flight's mu.
func (m *Member) start() {
	if !m.asked && m.connected {
		m.join()
	}
	early := m.early
	m.early = nil
	for _, msg := range early {
		m.heed(msg)
	}
	if !m.connected {
		m.recall()
	}
}

// recall turns to nodes known from before. The caller holds the flight's mu.
func (m *Member) recall() {
	for _, n := range m.fl.fetcher.cfg.Cluster.Known(m.fl.digest) {
		m.approach(n, 0)
	}
}

// join asks the scheduler to take this member in. The caller holds the
// flight's mu.
func (m *Member) join() {
	m.asked, m.greeted = true, false
	m.out.push(m.joining())
	m.nudge()
}

func (m *Member) joining() scheduler.Join {
	return scheduler.Join{
		Blob: scheduler.Digest(m.fl.digest), Size: m.size,
		Origin: !m.fl.follows, Source: m.fl.sources[0].Origin(),
	}
}

// Reachable says whether any scheduler is there.
func (m *Member) Reachable(yes bool) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	was := m.connected
	m.connected, m.told = yes, true
	m.fl.notify()
	switch {
	case m.x == nil:
		if !yes {
			m.giveUpSize()
		}
	case yes && !m.asked:
		m.join()
	case !yes && was:
		m.fl.fetcher.cfg.Logger.Debug("no scheduler; the swarm goes on by itself", "digest", m.fl.digest)
		m.recall()
	}
	m.schedule()
}

func (m *Member) giveUpSize() {
	if m.size == 0 && !m.hopeless {
		m.hopeless = true
		close(m.news)
	}
}

// Rejoin returns the Join that tells another scheduler how things stand. It
// reports false when the member is not joined.
func (m *Member) Rejoin() (scheduler.Join, bool) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	if !m.asked || m.fl.verified || m.fl.over {
		return scheduler.Join{}, false
	}
	j := m.joining()
	m.greeted = false
	if m.x == nil {
		return j, true
	}
	j.Again = true
	if m.fl.plan != nil {
		j.Have = m.fl.plan.have.Bytes()
		for _, r := range m.fl.plan.runs {
			if !r.recheck {
				j.Bringing = append(j.Bringing, scheduler.Run{First: r.next, Count: r.end - r.next})
			}
		}
	}
	// What the scheduler before had assigned is nobody's now, but for what
	// is being brought: that it is told.
	m.imports = map[int]scheduler.PeerID{}
	return j, true
}

// Tell takes a message of the scheduler: a *scheduler.Swarm, Assign, Revoke,
// Ask, Probe, Hold or Refused.
func (m *Member) Tell(msg any) {
	m.fl.mu.Lock()
	defer m.fl.mu.Unlock()
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		if m.size == 0 && msg.Size > 0 {
			m.size = msg.Size
			close(m.news)
		}
	case *scheduler.Probe:
		go m.probe()
		return
	case *scheduler.Refused:
		if msg.Reason != scheduler.ReasonBanned {
			m.fl.fetcher.cfg.Logger.Warn("scheduler refuses the blob", "digest", m.fl.digest, "reason", msg.Reason)
		}
		m.refused = true
		m.giveUpSize()
		return
	}
	if m.fl.plan == nil {
		if len(m.early) < maxEarly {
			m.early = append(m.early, msg)
		}
		return
	}
	m.heed(msg)
	m.schedule()
}

// heed does what the scheduler says. The caller holds the flight's mu.
func (m *Member) heed(msg any) {
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		m.neighbours(msg)
	case *scheduler.Assign:
		m.assigned(msg)
	case *scheduler.Revoke:
		first, end := m.clip(msg.Run)
		for i := first; i < end; i++ {
			m.duty.Remove(i)
			delete(m.imports, i)
		}
		m.fl.plan.revoke(first, end)
	case *scheduler.Ask:
		for _, r := range msg.Runs {
			first, end := m.clip(r)
			for i := first; i < end; i++ {
				if m.fl.plan.have.Has(i) {
					m.out.haves.Add(i)
				}
			}
		}
		m.out.renew = true // an answer, even if it is no
		m.nudge()
	case *scheduler.Hold:
		if msg.Source == m.fl.sources[0].Origin() {
			m.sourcesOff = later(m.sourcesOff, time.Now().Add(msg.For))
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// clip returns the part of a run that there is.
func (m *Member) clip(r scheduler.Run) (first, end int) {
	first = min(max(r.First, 0), m.x.n)
	return first, first + min(max(r.Count, 0), m.x.n-first)
}

func (m *Member) assigned(a *scheduler.Assign) {
	first, end := m.clip(a.Run)
	banned := a.From.Peer != "" && m.fl.fetcher.bans.has(a.From.Peer)
	if a.From.Peer == "" {
		m.progress = time.Now() // what a peer is to bring counts when it comes
	}
	for i := first; i < end; i++ {
		m.mine.Add(i)
		switch {
		case m.fl.plan.have.Has(i):
			m.out.haves.Add(i)
			m.nudge()
		case a.From.Peer == "":
			m.duty.Add(i)
		case banned:
			m.imports[i] = a.From.Peer
			m.returnImport(i, scheduler.ReasonStalled)
		default:
			m.imports[i] = a.From.Peer
		}
	}
	if a.From.Peer != "" && !banned {
		m.approach(a.From, 0)
	}
}

// probe finds out the size for the swarm.
func (m *Member) probe() {
	fl := m.fl
	fl.mu.Lock()
	src := fl.pick()
	fl.mu.Unlock()
	var msg scheduler.In
	err := errNoSource
	var size int64
	if src != nil {
		size, err = src.Size(fl.fetcher.ctx, fl.digest)
	}
	if err == nil {
		msg = scheduler.Sized{Blob: scheduler.Digest(fl.digest), Size: size}
	} else {
		msg = giveBack(fl, scheduler.Run{}, err)
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	m.out.push(msg)
	m.nudge()
	if err != nil {
		// What the origin says to this node's callers it had better say
		// itself, and at once.
		m.giveUpSize()
	}
}

var errNoSource = errors.New("no source is left")

// giveBack says in the scheduler's words why an origin did not serve.
func giveBack(fl *flight, run scheduler.Run, err error) scheduler.GiveBack {
	g := scheduler.GiveBack{Blob: scheduler.Digest(fl.digest), Run: run, Reason: scheduler.ReasonUnreachable}
	var because interface {
		Because() (scheduler.Reason, time.Duration)
	}
	if errors.As(err, &because) {
		g.Reason, g.RetryAfter = because.Because()
	}
	return g
}

// arrived takes note of a piece that is there, be it from the origin, a peer
// or an earlier process. The caller holds the flight's mu.
func (m *Member) arrived(i int, sum piece.Sum, by provenance, rescued bool) {
	now := time.Now()
	m.lastBytes = now
	if !rescued {
		m.progress = now
	}
	m.from[i] = by
	m.duty.Remove(i)
	delete(m.imports, i)
	if m.mine.Has(i) {
		m.out.haves.Add(i)
		m.nudge()
	}
	publisher := by.publisher
	if publisher == "" {
		publisher = m.fl.fetcher.cfg.Name
	}
	m.wire.Have(Have{Index: i, Sum: sum, Known: true, Publisher: publisher})
}

// outbox is what waits to be sent to the scheduler. It is bounded: progress
// is one set, and of the rest a blob has little to say.
type outbox struct {
	msgs  []scheduler.In
	haves *piece.Set
	renew bool
}

const maxOutbox = 256

func (o *outbox) push(msg scheduler.In) {
	if len(o.msgs) < maxOutbox {
		o.msgs = append(o.msgs, msg)
	}
}

// take returns what is to be sent now, progress first: what is handed back is
// less what was brought of it.
func (o *outbox) take(blob scheduler.Digest) []scheduler.In {
	var msgs []scheduler.In
	if len(o.msgs) > 0 {
		if _, join := o.msgs[0].(scheduler.Join); join {
			msgs, o.msgs = append(msgs, o.msgs[0]), o.msgs[1:]
		}
	}
	if o.renew || o.haves != nil && o.haves.Count() > 0 {
		msgs = append(msgs, scheduler.Have{Blob: blob, Runs: runsOf(o.haves)})
		o.renew = false
		if o.haves != nil && o.haves.Count() > 0 {
			o.haves = piece.NewSet(o.haves.Len())
		}
	}
	msgs = append(msgs, o.msgs...)
	o.msgs = nil
	return msgs
}

// runsOf returns the members of a set as runs.
func runsOf(s *piece.Set) (runs []scheduler.Run) {
	if s == nil || s.Count() == 0 {
		return nil
	}
	for i := range s.Len() {
		if !s.Has(i) {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].End() == i {
			runs[last].Count++
		} else {
			runs = append(runs, scheduler.Run{First: i, Count: 1})
		}
	}
	return runs
}

func (m *Member) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// send sends what is in the outbox, until ctx ends. It is the only one that
// may wait for the scheduler.
func (m *Member) send(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		m.fl.mu.Lock()
		msgs := m.out.take(scheduler.Digest(m.fl.digest))
		m.fl.mu.Unlock()
		for _, msg := range msgs {
			m.swarm.Send(ctx, msg)
		}
	}
}

// accuse takes note that a peer sent other bytes than it had said itself, and keeps
// away from it. The scheduler is told of a lie only where names are proved: else
// only that the two do not get on. The caller holds the flight's mu.
func (m *Member) accuse(l *link, what error) {
	f, id := m.fl.fetcher, l.ID()
	away, _ := f.bans.strike(id, m.fl.digest, true)
	away, reason := max(away, strikeFor), scheduler.ReasonStalled
	if f.cfg.Proven {
		away, reason = banFor, scheduler.ReasonLiar
	}
	if id != "" {
		f.bans.add(id, away)
	}
	f.stats.liars.Add(1)
	f.cfg.Logger.Error("peer lied; keeping away from it", "digest", m.fl.digest, "peer", l.String(), "id", id, "for", away, "cause", what)
	m.out.push(scheduler.Report{Blob: scheduler.Digest(m.fl.digest), Peer: id, Reason: reason})
	m.nudge()
}

// wrongPieceError says that a peer's bytes are not what it said they are.
type wrongPieceError struct {
	piece int
	err   error
}

func (e *wrongPieceError) Error() string { return fmt.Sprintf("piece %d: %v", e.piece, e.err) }
func (e *wrongPieceError) Unwrap() error { return e.err }
