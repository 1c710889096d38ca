package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoalproject/shoal/piece"
)

// Conn is a connection to one peer for one blob. It is safe for concurrent
// use.
//
// Its reading goroutine owns everything about what comes in, and calls the
// Handler; its writing goroutine owns the socket's other half and the Reader
// of the content.
type Conn struct {
	e        *Endpoint
	s        *Swarm
	raw      net.Conn // below TLS, for closing without waiting
	nc       net.Conn
	id       ID
	name     string
	party    *party // shared with the peer's other connections
	incoming bool
	began    time.Time
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	opened   chan struct{} // closed when Handler.Opened has returned
	gone     chan struct{} // closed when both goroutines have ended
	wake     chan struct{} // tells the writer that there may be work
	left     int           // messages that the peer may send before they count for its party; the reader's own
	lend     *time.Timer   // calls lendSlot
	keep     *time.Timer   // calls drained, after a slot was granted

	throttled atomic.Bool // a block waits for the upload limit

	share atomic.Int64 // of the blob that the peer has, in thousandths

	received atomic.Int64 // payload, bytes
	heard    atomic.Int64 // when the peer last sent anything, after began
	paid     atomic.Int64 // when it last sent payload, after began

	mu sync.Mutex
	// Guarded by mu:
	closed bool
	err    error
	out    bytes.Buffer // encoded messages to send, but payload
	most   int          // bytes in out at which the peer is taken for dead

	// What the peer may do here:
	choking bool    // it is choked
	uploads []block // asked for and not begun
	sending bool    // a block is being sent, since sendBegan
	lending bool    // lend is set
	served  int64   // bytes since it got its slot, at
	slotAt  time.Time
	limited time.Duration // of that time it was held back by the upload limit

	sendBegan time.Time

	// What the peer is and lets this node do:
	introduced bool // its extension handshake came
	haveID     pp.ExtensionNumber
	lostID     pp.ExtensionNumber
	doneID     pp.ExtensionNumber
	has        *piece.Set
	choked     bool // by the peer
	interested bool // as the peer was told
	transfers  map[int]*Transfer
	waiting    time.Duration // since when something is owed, after began
}

func newConn(s *Swarm, raw, nc net.Conn, id ID, name string, incoming bool) *Conn {
	n := s.layout.Count()
	c := &Conn{
		e: s.e, s: s, raw: raw, nc: nc, id: id, name: name, party: s.e.partyOf(name, raw.RemoteAddr()), incoming: incoming, began: time.Now(),
		opened: make(chan struct{}), gone: make(chan struct{}), wake: make(chan struct{}, 1),
		// What an honest peer has to say of each piece: that it has it, what
		// it hashes to, that it lost it or cannot send it.
		left: 1024 + 4*n,
		// Every sum, and every block that may be rejected, twice over.
		most: 64<<10 + 80*n,
		has:  piece.NewSet(n), choked: true, transfers: make(map[int]*Transfer),
	}
	c.ctx, c.cancel = context.WithCancel(s.e.ctx)
	c.lend = time.AfterFunc(time.Hour, c.lendSlot)
	c.lend.Stop()
	c.keep = time.AfterFunc(time.Hour, c.drained)
	c.keep.Stop()
	return c
}

// ID returns the name that the peer gives itself.
func (c *Conn) ID() ID { return c.id }

// Name returns the name that the peer's certificate proves, or "" without
// TLS.
func (c *Conn) Name() string { return c.name }

// Party returns what the peer's connections are counted by: the name that its
// certificate proves, or without TLS the network of its address.
func (c *Conn) Party() string { return c.party.name }

// Addr returns the address of the peer's end.
func (c *Conn) Addr() net.Addr { return c.raw.RemoteAddr() }

// Incoming reports whether the peer dialed.
func (c *Conn) Incoming() bool { return c.incoming }

// Swarm returns what the connection is for.
func (c *Conn) Swarm() *Swarm { return c.s }

// Done returns a channel that is closed when the connection is gone.
func (c *Conn) Done() <-chan struct{} { return c.gone }

// String names the peer for logs.
func (c *Conn) String() string {
	if c.name != "" {
		return fmt.Sprintf("%s (%s)", c.name, c.raw.RemoteAddr())
	}
	return c.raw.RemoteAddr().String()
}

// Has reports whether the peer claims to hold piece i.
func (c *Conn) Has(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has.Has(i)
}

// gains and loses take note of what the peer says that it has, and report
// whether that is news. The caller holds mu.
func (c *Conn) gains(i int) bool {
	defer c.weigh()
	return c.has.Add(i)
}

func (c *Conn) loses(i int) bool {
	defer c.weigh()
	return c.has.Remove(i)
}

func (c *Conn) weigh() { c.share.Store(int64(c.has.Count()) * 1000 / int64(max(c.has.Len(), 1))) }

// Complete reports whether the peer claims to hold every piece.
func (c *Conn) Complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has.Full()
}

// Received returns how many bytes of payload the peer has sent so far.
func (c *Conn) Received() int64 { return c.received.Load() }

// Choked reports whether the peer has choked this node, so that Request is
// in vain.
func (c *Conn) Choked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.choked
}

// Close ends the connection for a reason, which is logged and which transfers
// and Handler.Closed get. It does not wait. Only the first call counts.
func (c *Conn) Close(reason error) {
	if reason == nil {
		reason = ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(reason)
}

func (c *Conn) closeLocked(reason error) {
	if !c.closed {
		c.closed, c.err = true, reason
		c.cancel()
		c.raw.Close() // below TLS: its farewell could block
	}
}

// LostError says that a connection is gone, and why.
type LostError struct {
	Peer string
	Err  error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("peer: connection to %s lost: %v", e.Peer, e.Err)
}
func (e *LostError) Unwrap() error { return e.Err }

func (c *Conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &LostError{Peer: c.String(), Err: c.err}
}

// supersedes says which of two connections of one peer stays. Where both
// sides dialed, both must come to the same answer: the one that the smaller
// ID dialed. Where the peer dialed twice, the first stays while it is alive,
// so that nobody who borrows an ID can cut the other off; but one that has
// been silent may be half of a connection whose other half is gone.
func (c *Conn) supersedes(old *Conn) bool {
	if c.incoming != old.incoming {
		mine := bytes.Compare(c.e.cfg.ID[:], c.id[:]) < 0
		return c.incoming != mine
	}
	return c.name == old.name && old.since(&old.heard) > silence
}

// silence is how long a connection says nothing before another of the same
// peer may take its place.
const silence = 10 * time.Second

func (c *Conn) mark(at *atomic.Int64) { at.Store(int64(time.Since(c.began))) }

func (c *Conn) since(at *atomic.Int64) time.Duration {
	return time.Since(c.began) - time.Duration(at.Load())
}

// run is the life of the connection, after the handshake of BEP 3.
func (c *Conn) run() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.Close(c.write())
	}()
	err := c.read()
	c.mu.Lock()
	if c.closed {
		err = c.err // what it was closed for, not that it was
	}
	c.mu.Unlock()
	c.e.blame(err)
	c.Close(err)
	<-written
	c.finish()
}

// finish lets go of all that the connection has.
func (c *Conn) finish() {
	c.lend.Stop()
	c.keep.Stop()
	reason := c.reason()
	c.mu.Lock()
	idle := c.idled()
	c.mu.Unlock()
	c.e.slots.leave(c, idle).granted()
	c.mu.Lock()
	c.uploads = nil
	c.dequeue()
	failed := c.transfers
	c.transfers = nil
	c.mu.Unlock()
	for _, t := range failed {
		t.end(reason)
	}
	c.s.leave(c)
	select {
	case <-c.opened:
		c.s.handler.Closed(c, reason)
	default:
	}
	var v *ViolationError
	if errors.As(reason, &v) {
		c.e.cfg.Logger.Warn("peer broke the protocol", "peer", c.String(), "digest", c.s.digest, "err", v)
	} else {
		c.e.cfg.Logger.Debug("peer is gone", "peer", c.String(), "digest", c.s.digest, "err", reason)
	}
	close(c.gone)
}

// put queues a message. The caller holds mu.
func (c *Conn) put(m pp.Message) {
	if c.closed {
		return // nothing is written any more
	}
	before := c.out.Len()
	// Neither an unknown type nor the buffer can make this fail.
	_ = m.WriteTo(&c.out)
	party, total := c.queue(c.out.Len() - before)
	if c.out.Len() > c.most || party > partyQueue || total > totalQueue {
		c.closeLocked(violation("peer does not read what it is sent"))
	}
	c.nudge()
}

// queue accounts for n bytes more, or fewer, that wait to be written.
func (c *Conn) queue(n int) (party, total int64) {
	return c.party.queued.Add(int64(n)), c.e.queued.Add(int64(n))
}

// dequeue throws away what waits to be written on a closed connection. The
// caller holds mu.
func (c *Conn) dequeue() {
	c.queue(-c.out.Len())
	c.out = bytes.Buffer{}
}

// nudge wakes the writer.
func (c *Conn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// greet queues what the node has of the blob. Everybody may ask.
func (c *Conn) greet(have *piece.Set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case have.Count() == 0:
		c.put(pp.Message{Type: pp.HaveNone})
	case have.Full():
		c.put(pp.Message{Type: pp.HaveAll})
	default:
		bits := make([]bool, have.Len())
		for i := range bits {
			bits[i] = have.Has(i)
		}
		c.put(pp.Message{Type: pp.Bitfield, Bitfield: bits})
	}
	c.put(pp.Message{Type: pp.Unchoke})
}

// pushHave tells the peer of a piece unless it has that itself. Its sum
// follows with all others if the peer has not said yet how to send it. After
// the last one the peer is told that there is no more.
func (c *Conn) pushHave(h Have, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last {
		defer c.sayDone()
	}
	switch {
	case c.has.Has(h.Index):
	case c.haveID != 0 && h.Known:
		c.put(extended(c.haveID, appendSums(nil, h.Publisher, h)))
	default:
		c.put(pp.Message{Type: pp.Have, Index: pp.Integer(h.Index)})
	}
}

func (c *Conn) pushLost(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lostID != 0 {
		c.put(extended(c.lostID, appendIndex(nil, i)))
	}
	kept := c.uploads[:0]
	for _, b := range c.uploads {
		if b.index == i {
			c.reject(b)
			continue
		}
		kept = append(kept, b)
	}
	c.uploads = kept
}
