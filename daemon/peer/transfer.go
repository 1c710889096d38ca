package peer

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

var (
	// ErrRejected is the error of a transfer that the peer refused, and of
	// Request while the peer has choked this node. Handler.Changed tells
	// when that is over.
	ErrRejected = errors.New("peer: request rejected")
	// ErrAbsent is the error of Request for a piece that the peer does not
	// claim to hold.
	ErrAbsent = errors.New("peer: peer does not have the piece")
	// ErrFull is the error of Request when Config.Queue pieces have been
	// asked for on the connection, or when the same piece was and its end is
	// not yet certain.
	ErrFull = errors.New("peer: too much is asked for on this connection")
	// ErrCancelled is the error of a transfer after Cancel.
	ErrCancelled = errors.New("peer: transfer cancelled")
)

// Transfer is one piece on its way from one peer.
type Transfer struct {
	c     *Conn
	index int
	size  int64
	block int
	done  chan struct{}

	// Guarded by the mutex of the connection:
	owed []bool    // by block: asked for, not received nor rejected
	left int       // how many are owed
	next int       // block that is to come
	died time.Time // when it was over with blocks owed, which the peer may not know yet

	mu sync.Mutex
	// Guarded by mu, which is held while w is written to:
	w    io.Writer
	over bool
	err  error

	received atomic.Int64
}

// Request asks the peer for piece i. Its bytes are written to w in order, as
// they come, from the connection's own goroutine, and never after Done is
// closed. They are not verified; the piece is complete when Done is closed
// and Err is nil. Nothing else is received from the peer while w is slow.
//
// The error is ErrAbsent, ErrRejected, ErrFull, or a *LostError.
func (c *Conn) Request(i int, w io.Writer) (*Transfer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, busy := c.transfers[i]
	switch {
	case c.closed || c.transfers == nil:
		return nil, &LostError{Peer: c.String(), Err: c.err}
	case !c.has.Has(i):
		return nil, ErrAbsent
	case c.choked:
		return nil, ErrRejected
	case busy || len(c.transfers) >= c.e.cfg.Queue:
		return nil, ErrFull
	}
	_, size := c.s.layout.Span(i)
	t := &Transfer{c: c, index: i, size: size, block: c.e.cfg.Block, w: w, done: make(chan struct{})}
	blocks := int((size + int64(t.block) - 1) / int64(t.block))
	if c.owed()+blocks > maxRequests {
		return nil, ErrFull
	}
	if !c.interested {
		c.interested = true
		c.put(pp.Message{Type: pp.Interested})
	}
	if len(c.transfers) == 0 {
		c.waiting = time.Since(c.began)
	}
	t.owed, t.left = make([]bool, blocks), blocks
	for k := range t.owed {
		t.owed[k] = true
		c.put(t.message(pp.Request, k))
	}
	c.transfers[i] = t
	return t, nil
}

// owed returns how many blocks are owed. The caller holds mu.
func (c *Conn) owed() (n int) {
	for _, t := range c.transfers {
		n += t.left
	}
	return n
}

// Unneeded tells the peer that nothing will be asked of it until the next
// Request, so that it does not keep a slot for this node.
func (c *Conn) Unneeded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interested && !c.closed {
		c.interested = false
		c.put(pp.Message{Type: pp.NotInterested})
	}
}

// Progress returns how many bytes of payload the peer has sent so far, and
// for how long it has sent none although something is asked of it: 0 if
// nothing is.
func (c *Conn) Progress() (bytes int64, stalled time.Duration) {
	c.mu.Lock()
	owes, waiting := len(c.transfers) > 0, c.waiting
	c.mu.Unlock()
	bytes = c.received.Load()
	if owes {
		stalled = time.Since(c.began) - max(waiting, time.Duration(c.paid.Load()))
	}
	return bytes, stalled
}

// Conn returns the connection that the piece comes from.
func (t *Transfer) Conn() *Conn { return t.c }

// Index returns the index of the piece.
func (t *Transfer) Index() int { return t.index }

// Done returns a channel that is closed when the transfer is over.
func (t *Transfer) Done() <-chan struct{} { return t.done }

// Err returns nil if the piece is complete, or not over yet. Else it is
// ErrRejected, ErrCancelled, a *LostError, or the error of the writer.
func (t *Transfer) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Received returns how many bytes have been written to the writer.
// It does not wait for the writer.
func (t *Transfer) Received() int64 { return t.received.Load() }

// Cancel ends the transfer. When it returns, the writer is not in use any
// more. What the peer has begun to send still arrives, and is thrown away, for
// CancelTimeout at most.
func (t *Transfer) Cancel() {
	if t.end(ErrCancelled) {
		t.c.abandon(t)
	}
}

// end makes the transfer over and reports whether it was not before.
func (t *Transfer) end(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.over, t.err, t.w = true, err, nil
	close(t.done)
	return true
}

// abandon cancels what a transfer that is over is still owed.
func (c *Conn) abandon(t *Transfer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.die()
	if c.closed || c.transfers[t.index] != t {
		return
	}
	for k, owed := range t.owed {
		if owed {
			c.put(t.message(pp.Cancel, k))
		}
	}
}

// die notes that nobody waits for what is still owed. The caller holds the
// mutex of the connection.
func (t *Transfer) die() {
	if t.died.IsZero() {
		t.died = time.Now()
	}
}

// overdue returns since when the peer owes blocks that nobody waits for any
// more: zero if it owes none.
func (c *Conn) overdue() (since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transfers {
		if !t.died.IsZero() && (since.IsZero() || t.died.Before(since)) {
			since = t.died
		}
	}
	return since
}

func (t *Transfer) message(kind pp.MessageType, k int) pp.Message {
	begin, n := t.span(k)
	return pp.Message{Type: kind, Index: pp.Integer(t.index), Begin: pp.Integer(begin), Length: pp.Integer(n)}
}

// span returns where block k begins in the piece, and its length.
func (t *Transfer) span(k int) (begin, n int64) {
	begin = int64(k) * int64(t.block)
	return begin, min(int64(t.block), t.size-begin)
}

// find returns the transfer and block that a message is about, if it is owed.
// The caller holds mu.
func (c *Conn) find(b block) (t *Transfer, k int, err error) {
	t = c.transfers[b.index]
	if t == nil || b.begin%t.block != 0 || b.begin/t.block >= len(t.owed) || !t.owed[b.begin/t.block] {
		return nil, 0, violation("block %d+%d of piece %d was not asked for", b.begin, b.length, b.index)
	}
	k = b.begin / t.block
	if _, n := t.span(k); int64(b.length) != n {
		return nil, 0, violation("block %d of piece %d has %d bytes, not %d", b.begin, b.index, b.length, n)
	}
	return t, k, nil
}

// expect returns the transfer that a block belongs to which begins to arrive.
// It must be the next of its piece; of one that nobody waits for any more,
// any.
func (c *Conn) expect(b block) (*Transfer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, k, err := c.find(b)
	if err == nil && t.died.IsZero() && k != t.next {
		err = violation("block %d of piece %d comes out of turn", b.begin, b.index)
	}
	return t, err
}

// write hands bytes of a block to whoever wants them.
func (t *Transfer) write(b []byte) {
	t.mu.Lock()
	if t.over {
		t.mu.Unlock()
		t.c.e.stats.wasted.Add(int64(len(b)))
		return
	}
	_, err := t.w.Write(b)
	t.received.Add(int64(len(b)))
	t.mu.Unlock()
	if err != nil && t.end(fmt.Errorf("peer: keeping piece %d: %w", t.index, err)) {
		t.c.abandon(t)
	}
}

// arrived accounts for a block that arrived, and ends the transfer with the
// last one.
func (c *Conn) arrived(b block) {
	c.mu.Lock()
	t, k, err := c.find(b)
	if err != nil {
		c.mu.Unlock() // only after Close
		return
	}
	complete := c.settle(t, k)
	t.next++
	c.mu.Unlock()
	if complete {
		t.end(nil)
	}
}

// settle accounts for a block that is owed no more, and reports whether it
// was the last. The caller holds mu.
func (c *Conn) settle(t *Transfer, k int) (last bool) {
	t.owed[k] = false
	t.left--
	if t.left == 0 {
		delete(c.transfers, t.index)
	}
	return t.left == 0
}

// rejected ends the transfer of a block that the peer will not send.
func (c *Conn) rejected(b block) error {
	c.mu.Lock()
	t, k, err := c.find(b)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	// Who rejects one block of a piece rejects all that follow, or sends
	// them in vain.
	t.die()
	c.settle(t, k)
	c.mu.Unlock()
	t.end(ErrRejected)
	return nil
}
