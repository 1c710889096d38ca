package peer

import (
	"slices"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// block is part of a piece, as one REQUEST names it.
type block struct{ index, begin, length int }

func blockOf(m *pp.Message) block {
	return block{int(m.Index), int(m.Begin), int(m.Length)}
}

// checkBlock checks what a peer says of a block.
func (s *Swarm) checkBlock(b block) error {
	if b.index >= s.layout.Count() {
		return violation("block of piece %d of %d", b.index, s.layout.Count())
	}
	_, n := s.layout.Span(b.index)
	if b.length <= 0 || b.length > MaxBlock || int64(b.begin) > n || int64(b.length) > n-int64(b.begin) {
		return violation("block %d+%d of piece %d, which has %d bytes", b.begin, b.length, b.index, n)
	}
	return nil
}

// reject queues a REJECT. The caller holds mu.
func (c *Conn) reject(b block) {
	c.e.stats.rejected.Add(1)
	c.put(pp.Message{Type: pp.Reject, Index: pp.Integer(b.index), Begin: pp.Integer(b.begin), Length: pp.Integer(b.length)})
}

// asked takes a request in or rejects it, and reports which.
func (c *Conn) asked(b block) bool {
	holds := c.s.holds(b.index)
	c.mu.Lock()
	if !holds || c.choking || c.closed || len(c.uploads) >= maxRequests {
		c.reject(b)
		c.mu.Unlock()
		return false
	}
	owned := c.e.slots.owns(c)
	if !c.e.slots.take(c) {
		c.uploads = append(c.uploads, b)
		c.refuse()
		c.mu.Unlock()
		c.e.slots.wait(c).granted()
		return false
	}
	if !owned {
		c.beginTurn()
	}
	c.uploads = append(c.uploads, b)
	c.nudge()
	c.mu.Unlock()
	return true
}

// beginTurn notes that the peer has got a slot. The caller holds mu.
func (c *Conn) beginTurn() { c.served, c.slotAt, c.limited = 0, time.Now(), 0 }

// heldBack notes that a block waited for the upload limit.
func (c *Conn) heldBack(d time.Duration) {
	c.mu.Lock()
	c.limited += d
	c.mu.Unlock()
}

// idled reports that the turn so far was of no use. The caller holds mu.
func (c *Conn) idled() bool { return c.served < little && time.Since(c.slotAt)-c.limited > idleAfter }

// useless reports that the slot moves so little that others should have it. The
// caller holds mu.
func (c *Conn) useless() bool {
	had := time.Since(c.slotAt) - c.limited
	return had > c.e.cfg.Lend && float64(c.served) < leastRate*had.Seconds()
}

// refuse chokes the peer and rejects what it asked for. CHOKE comes first, so
// that a peer that learns of the REJECT knows not to ask again. The caller
// holds mu.
func (c *Conn) refuse() {
	c.choking = true
	c.put(pp.Message{Type: pp.Choke})
	for _, b := range c.uploads {
		c.reject(b)
	}
	c.uploads = c.uploads[:0]
}

// cancelled drops a request that was not begun. BEP 6 wants an answer to
// each; one that was begun answers itself.
func (c *Conn) cancelled(b block) {
	c.mu.Lock()
	i := slices.Index(c.uploads, b)
	if i >= 0 {
		c.uploads = slices.Delete(c.uploads, i, i+1)
		c.reject(b)
	}
	c.mu.Unlock()
	if i >= 0 {
		c.drained()
	}
}

// uninterested takes the peer out of the line. As only who stands in line is
// choked, it may ask again when it likes.
func (c *Conn) uninterested() {
	c.e.slots.unline(c)
	c.mu.Lock()
	if c.choking {
		c.choking = false
		c.put(pp.Message{Type: pp.Unchoke})
	}
	c.mu.Unlock()
	c.drained() // a slot that was kept for it is another's at once
}

// granted tells the peer that it has a slot. It loses it again if it does not
// ask within Keep. A nil Conn is nobody to tell.
func (c *Conn) granted() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginTurn()
	if c.choking {
		c.choking = false
		c.put(pp.Message{Type: pp.Unchoke})
	}
	c.keep.Reset(c.e.cfg.Keep)
}

// drained gives the slot up if the peer asks for nothing.
func (c *Conn) drained() {
	c.mu.Lock()
	idle := len(c.uploads) == 0 && !c.sending
	var next *Conn
	if idle {
		next = c.e.slots.release(c, c.idled())
	}
	c.mu.Unlock()
	next.granted()
}

// lendSlot gives the slot up although a block is being sent, if that takes
// long. It looks once per Lend while blocks are being sent.
func (c *Conn) lendSlot() {
	c.mu.Lock()
	var next *Conn
	left := c.e.cfg.Lend - time.Since(c.sendBegan)
	switch {
	case !c.sending || c.closed:
		c.lending = false
	case left > 0:
		c.lend.Reset(left)
	case c.throttled.Load():
		c.lend.Reset(c.e.cfg.Lend)
	default:
		c.lending = false
		next = c.e.slots.release(c, c.idled())
	}
	c.mu.Unlock()
	next.granted()
}

// nextBlock returns the block to send now, if there is one.
func (c *Conn) nextBlock(last int) (b block, ok bool) {
	c.mu.Lock()
	if len(c.uploads) == 0 {
		c.mu.Unlock()
		return b, false
	}
	b = c.uploads[0]
	if useless := c.useless(); useless || c.turnOver(b.index != last) {
		if next, yielded := c.e.slots.yield(c, c.idled(), useless); yielded {
			c.refuse()
			c.mu.Unlock()
			next.granted()
			return block{}, false
		}
	}
	owned := c.e.slots.owns(c)
	if !c.e.slots.take(c) { // it was lent
		c.refuse()
		c.mu.Unlock()
		c.e.slots.wait(c).granted()
		return block{}, false
	}
	if !owned {
		c.beginTurn()
	}
	c.uploads = c.uploads[1:]
	c.sending, c.sendBegan = true, time.Now()
	if !c.lending {
		c.lending = true
		c.lend.Reset(c.e.cfg.Lend)
	}
	c.mu.Unlock()
	return b, true
}

// turnOver reports whether the peer has had its turn. A piece that was begun is
// finished, but not over and over again. The caller holds mu.
func (c *Conn) turnOver(between bool) bool {
	turn := c.e.cfg.Turn
	if !between {
		turn += c.s.layout.Length()
	}
	return c.served >= turn
}

// sent accounts for a block that was sent.
func (c *Conn) sent(b block) {
	c.e.stats.up.Add(int64(b.length))
	c.mu.Lock()
	c.sending = false
	c.served += int64(b.length)
	drained := len(c.uploads) == 0
	c.mu.Unlock()
	if drained {
		c.drained()
	}
}
