package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is one node on the peer wire. It is safe for concurrent use.
type Endpoint struct {
	cfg   Config
	slots *slots
	stats counters
	ctx   context.Context // of all connections; ends with Close
	stop  context.CancelFunc
	wg    sync.WaitGroup // one for each connection, from accept or dial on

	mu sync.Mutex
	// Guarded by mu:
	swarms map[InfoHash]*Swarm
	conns  int                // accepted or dialed, and not gone
	hosts  map[netip.Addr]int // conns by address
	closed bool
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
	// handshake, TurnedAway those that were over a limit.
	Accepted, Dialed, TurnedAway int64
	// Violations counts connections closed for what the peer sent or failed
	// to send.
	Violations int64
	// Rejected counts requests that were answered with a REJECT.
	Rejected int64
	// Conns and Swarms are how many there are now.
	Conns, Swarms int64
}

// New returns an Endpoint. Close releases it.
func New(cfg Config) (*Endpoint, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Endpoint{
		cfg: cfg, slots: newSlots(cfg.Slots), ctx: ctx, stop: stop,
		swarms: make(map[InfoHash]*Swarm), hosts: make(map[netip.Addr]int),
	}, nil
}

// ID returns the name by which this node goes on the wire.
func (e *Endpoint) ID() ID { return e.cfg.ID }

// Stats returns what the Endpoint has done so far.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	conns, swarms := e.conns, len(e.swarms)
	e.mu.Unlock()
	return Stats{
		Uploaded: e.stats.up.Load(), Downloaded: e.stats.down.Load(), Wasted: e.stats.wasted.Load(),
		Accepted: e.stats.accepted.Load(), Dialed: e.stats.dialed.Load(), TurnedAway: e.stats.turnedAway.Load(),
		Violations: e.stats.kicks.Load(), Rejected: e.stats.rejected.Load(),
		Conns: int64(conns), Swarms: int64(swarms),
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
		host := addrOf(nc.RemoteAddr())
		if err := e.enter(host); err != nil {
			e.cfg.Logger.Debug("peer turned away", "peer", nc.RemoteAddr(), "err", err)
			nc.Close()
			continue
		}
		go func() {
			defer e.exit(host)
			e.welcome(nc)
		}()
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

// addrOf returns the IP address of a peer. That of what is no TCP address is
// the zero Addr, and such connections count as from one host.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// enter counts a connection in, unless there are too many.
func (e *Endpoint) enter(host netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return ErrClosed
	case e.conns >= e.cfg.Conns:
		e.stats.turnedAway.Add(1)
		return fmt.Errorf("%w: %d", ErrTooMany, e.conns)
	case e.hosts[host] >= e.cfg.PerHost:
		e.stats.turnedAway.Add(1)
		return fmt.Errorf("%w: %d with %s", ErrTooMany, e.hosts[host], host)
	}
	e.conns++
	e.hosts[host]++
	e.wg.Add(1)
	return nil
}

func (e *Endpoint) exit(host netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns--
	if e.hosts[host]--; e.hosts[host] == 0 {
		delete(e.hosts, host)
	}
	e.wg.Done()
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

// welcome runs a connection that was accepted.
func (e *Endpoint) welcome(nc net.Conn) {
	c, err := e.receive(nc)
	if err != nil {
		nc.Close()
		e.cfg.Logger.Debug("peer not let in", "peer", nc.RemoteAddr(), "err", err)
		return
	}
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
	from := addrOf(nc.RemoteAddr())
	if err := s.e.enter(from); err != nil {
		nc.Close()
		return nil, err
	}
	c, err := s.introduce(ctx, nc, name)
	if err != nil {
		nc.Close()
		s.e.exit(from)
		return nil, fmt.Errorf("peer: dialing %s: %w", nc.RemoteAddr(), err)
	}
	s.e.stats.dialed.Add(1)
	go func() {
		defer s.e.exit(from)
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
