package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Endpoint is one node on the peer wire. It is safe for concurrent use.
type Endpoint struct {
	cfg   Config
	slots *slots
	stats counters
	ctx   context.Context // of all connections; ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup // one for each connection, from accept or dial on

	// queued is how many bytes wait to be written to all peers.
	queued atomic.Int64
	// parties are those of now and of lately, by name.
	parties *lru.Cache[string, *party]

	mu sync.Mutex
	// Guarded by mu:
	swarms    map[InfoHash]*Swarm
	conns     *budget // dialed, or accepted from peers that have proved who they are
	strangers *budget // accepted, and nothing proved yet
	closed    bool
}

type counters struct {
	up, down, wasted                    atomic.Int64
	accepted, dialed, turnedAway, kicks atomic.Int64
	rejected                            atomic.Int64
}

// Stats are running totals since New, but for Conns and Swarms.
type Stats struct {
	// Uploaded and Downloaded count bytes of payload. Wasted counts those
	// of Downloaded that came after their transfer was over.
	Uploaded, Downloaded, Wasted int64
	// Accepted and Dialed count connections that got through their
	// handshake, TurnedAway those that were over a limit, or were closed to
	// make room for another.
	Accepted, Dialed, TurnedAway int64
	// Violations counts connections closed for what the peer sent or failed
	// to send.
	Violations int64
	// Rejected counts requests that were answered with a REJECT.
	Rejected int64
	// Conns and Swarms are how many there are now, Strangers the connections
	// on which the peer has not finished its handshake.
	Conns, Swarms, Strangers int64
}

// New returns an Endpoint. Close releases it.
func New(cfg Config) (*Endpoint, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	parties, err := lru.New[string, *party](maxParties)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Endpoint{
		cfg: cfg, slots: newSlots(cfg.Slots), ctx: ctx, stop: stop, parties: parties,
		swarms: make(map[InfoHash]*Swarm),
		conns:  newBudget(cfg.Conns, cfg.PerParty), strangers: newBudget(cfg.Strangers, cfg.StrangersPerNet),
	}, nil
}

// ID returns the name by which this node goes on the wire.
func (e *Endpoint) ID() ID { return e.cfg.ID }

// Stats returns what the Endpoint has done so far.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	conns, swarms, strangers := e.conns.total, len(e.swarms), e.strangers.total
	e.mu.Unlock()
	return Stats{
		Uploaded: e.stats.up.Load(), Downloaded: e.stats.down.Load(), Wasted: e.stats.wasted.Load(),
		Accepted: e.stats.accepted.Load(), Dialed: e.stats.dialed.Load(), TurnedAway: e.stats.turnedAway.Load(),
		Violations: e.stats.kicks.Load(), Rejected: e.stats.rejected.Load(),
		Conns: int64(conns), Swarms: int64(swarms), Strangers: int64(strangers),
	}
}

// Serve accepts connections from l until ctx or the Endpoint ends, closes l,
// and returns nil. The error is that of a listener that broke. Connections
// live on until Close. For want of descriptors it waits and goes on.
func (e *Endpoint) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	stopToo := context.AfterFunc(e.ctx, func() { l.Close() })
	defer stopToo()
	defer l.Close()
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if ctx.Err() != nil || e.ctx.Err() != nil {
			if err == nil {
				nc.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("peer: accepting at %s: %w", l.Addr(), err)
		}
		if err != nil {
			// Out of descriptors or memory, or the peer was gone already.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			e.cfg.Logger.Warn("cannot accept a peer", "err", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			case <-e.ctx.Done():
			}
			continue
		}
		pause = 0
		e.accept(nc)
	}
}

// SetSlots changes how many connections are uploaded to at once, at least one.
// Those that have a slot keep it until their turn ends.
func (e *Endpoint) SetSlots(n int) {
	for _, c := range e.slots.resize(max(n, 1)) {
		c.granted()
	}
}

// Close closes all swarms and connections and waits for their goroutines. It
// must not be called by a Handler.
func (e *Endpoint) Close() {
	e.mu.Lock()
	e.closed = true
	swarms := make([]*Swarm, 0, len(e.swarms))
	for _, s := range e.swarms {
		swarms = append(swarms, s)
	}
	e.mu.Unlock()
	e.stop()
	for _, s := range swarms {
		s.Close()
	}
	e.wg.Wait()
}

// accept runs a connection that a peer opened, in a goroutine of its own. It
// counts as a stranger until the peer has proved who it is.
func (e *Endpoint) accept(nc net.Conn) {
	t := &ticket{party: networkOf(addrOf(nc.RemoteAddr())), accepted: true, evict: func(error) { nc.Close() }}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		nc.Close()
		return
	}
	out := e.strangers.admitOldest(t)
	e.wg.Add(1)
	e.mu.Unlock()
	e.evict(out)
	go func() {
		defer e.wg.Done()
		e.welcome(nc, t)
	}()
}

// evict closes the connection that had to make room, if one had to.
func (e *Endpoint) evict(out *ticket) {
	if out == nil {
		return
	}
	e.stats.turnedAway.Add(1)
	e.cfg.Logger.Debug("closing a peer's connection to make room", "party", out.party)
	out.evict(errEvicted)
}

// errEvicted ends a connection whose place is needed for a peer with fewer.
var errEvicted = errors.New("peer: closed to make room for a peer that has fewer connections")

// enter counts a connection in, unless there are too many. After exit it is
// gone.
func (e *Endpoint) enter(t *ticket) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return ErrClosed
	}
	out, err := e.conns.admit(t)
	if err == nil {
		e.wg.Add(1)
	}
	e.mu.Unlock()
	if err != nil {
		e.stats.turnedAway.Add(1)
		return err
	}
	e.evict(out)
	return nil
}

// promote gives back the place of a stranger that is none any more.
func (e *Endpoint) promote(t *ticket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.strangers.remove(t)
}

func (e *Endpoint) exit(t *ticket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns.remove(t)
	e.wg.Done()
}

// partyOf returns what the connections of one identity share: that of the name
// that a certificate proves, or without one that of the address.
func (e *Endpoint) partyOf(name string, a net.Addr) *party {
	if name == "" {
		name = networkOf(addrOf(a))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.parties.Get(name)
	if !ok {
		p = newParty(name)
		e.parties.Add(name, p)
	}
	return p
}

// ErrTooMany says that a limit on connections was reached.
var ErrTooMany = errors.New("peer: too many connections")

// lookup returns the swarm that a peer asks for.
func (e *Endpoint) lookup(h InfoHash) (*Swarm, error) {
	e.mu.Lock()
	s := e.swarms[h]
	e.mu.Unlock()
	if s != nil {
		return s, nil
	}
	if e.cfg.Finder == nil {
		return nil, errUnknown
	}
	b, err := e.cfg.Finder.Find(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnknown, err)
	}
	if s, err = e.newSwarm(b); err != nil {
		return nil, err
	}
	if s.hash != h {
		return nil, fmt.Errorf("peer: asked for infohash %s, the finder found that of %s", h, b.Digest)
	}
	s.found.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if other := e.swarms[h]; other != nil {
		return other, nil
	}
	e.swarms[h] = s
	return s, nil
}

var errUnknown = errors.New("peer: no such blob here")

// welcome runs a connection that was accepted. t is its place among the
// strangers.
func (e *Endpoint) welcome(nc net.Conn, t *ticket) {
	c, place, err := e.receive(nc, t)
	if err != nil {
		e.promote(t)
		nc.Close()
		e.cfg.Logger.Debug("peer not let in", "peer", nc.RemoteAddr(), "err", err)
		return
	}
	defer e.exit(place)
	e.stats.accepted.Add(1)
	c.run()
}

// Dial connects to a peer for the blob and returns when Handler.Opened has.
// With TLS the peer's certificate must be for name or, if name is empty, for
// the host of addr. A name that turns out to stand for no other node is
// ErrForbiddenAddress. ctx bounds the connecting only.
func (s *Swarm) Dial(ctx context.Context, addr, name string) (*Conn, error) {
	e := s.e
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("peer: dialing %q: %w", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(e.ctx, cancel)
	defer stop()
	nc, err := (&net.Dialer{Control: guard(host)}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	if name == "" {
		name = host
	}
	return s.dialed(ctx, nc, name)
}

// dialed introduces this node on a connection that it opened.
func (s *Swarm) dialed(ctx context.Context, nc net.Conn, name string) (*Conn, error) {
	place := &ticket{party: name}
	if s.e.cfg.TLS == nil {
		place.party = networkOf(addrOf(nc.RemoteAddr()))
	}
	if err := s.e.enter(place); err != nil {
		nc.Close()
		return nil, err
	}
	c, err := s.introduce(ctx, nc, name)
	if err != nil {
		nc.Close()
		s.e.exit(place)
		return nil, fmt.Errorf("peer: dialing %s: %w", nc.RemoteAddr(), err)
	}
	s.e.stats.dialed.Add(1)
	go func() {
		defer s.e.exit(place)
		c.run()
	}()
	select {
	case <-c.opened:
		return c, nil
	case <-c.gone:
		return nil, c.reason()
	case <-ctx.Done():
		c.Close(ctx.Err())
		return nil, fmt.Errorf("peer: dialing %s: %w", nc.RemoteAddr(), ctx.Err())
	}
}
