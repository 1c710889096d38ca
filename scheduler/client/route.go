package client

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// pick returns the link among those that a blob belongs to, nil among none:
// the one whose address and the blob's digest hash highest. When one is gone,
// its blobs alone move, each to the one that was second for it.
func (c *Client) pick(among []*link, blob scheduler.Digest) *link {
	if len(among) == 1 { // most clusters have one
		return among[0]
	}
	var best *link
	var most uint64
	for _, l := range among {
		if w := weigh(l.target.Addr, blob); best == nil || w > most || w == most && l.target.Addr < best.target.Addr {
			best, most = l, w
		}
	}
	return best
}

// weigh is part of the protocol: every daemon, of every version, must reach
// the same answer. It is the first eight bytes, big-endian, of the SHA-256 of
// address, one zero byte and digest.
func weigh(addr string, blob scheduler.Digest) uint64 {
	b := make([]byte, 0, 256)
	b = append(append(append(b, addr...), 0), blob...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// happened takes in what a link has to say.
func (c *Client) happened(e event) {
	l := e.link
	if c.links[l.target] != l {
		return // removed meanwhile
	}
	switch {
	case e.err != nil:
		c.tellLost(l, e.err)
		l.tried = true
		lost := l.conn
		l.conn = nil
		c.settle()
		c.unstall(lost)
	case e.msgs != nil:
		if l.conn == e.conn {
			e.conn.awaiting = time.Time{}
			c.received(l, e.msgs)
		}
	default:
		c.tellConnected(l)
		l.tried, l.conn = true, e.conn
		c.settle()
	}
}

// unstall sends the message that waited for a lost stream elsewhere. A Join
// has gone there already, as it then stood.
func (c *Client) unstall(lost *conn) {
	if c.stalled == nil || c.at != lost {
		return
	}
	msg := c.stalled
	c.stalled, c.at = nil, nil
	if _, ok := msg.(scheduler.Join); !ok {
		c.command(msg)
	}
}

// received holds for the consumer what comes from the scheduler to which the
// blob belongs. What another one says is old: it knew the blob before.
func (c *Client) received(l *link, msgs []any) {
	own := make([]any, 0, len(msgs))
	for _, msg := range msgs {
		if blob := subject(msg); blob != "" {
			m := c.joined[blob]
			if c.ownerOf(m, blob) != l {
				continue
			}
			if _, ok := msg.(*scheduler.Refused); ok {
				delete(c.joined, blob)
				c.count()
			}
		}
		own = append(own, msg)
	}
	if len(own) > 0 {
		c.held = append(c.held, delivery{msgs: own})
	}
}

// settle finds out which schedulers there are now, moves what changes hands,
// and tells the consumer if there are none, or some again.
func (c *Client) settle() {
	told := c.decided
	var live []*link
	c.decided = true
	for _, l := range c.links {
		if l.conn != nil {
			live = append(live, l)
		}
		c.decided = c.decided && l.tried
	}
	c.decided = c.decided || told
	if !c.decided {
		return
	}
	slices.SortFunc(live, func(a, b *link) int { return cmp.Compare(a.target.Addr, b.target.Addr) })
	before := c.live
	c.live = live
	c.move(before, live)
	if some := len(live) > 0; !c.spoken || some != c.reachable.Load() {
		c.spoken = true
		c.reachable.Store(some)
		c.held = append(c.held, delivery{reachable: some})
	}
}

// move announces to each scheduler what has become its own, and takes leave
// of those whose own it is no more. What is held whole goes first, so that
// nothing is fetched from an origin that a peer holds.
func (c *Client) move(before, after []*link) {
	if slices.Equal(before, after) {
		return
	}
	inventory := c.consumer.Inventory()
	for _, h := range inventory[:min(len(inventory), c.cfg.MaxBlobs)] {
		if c.joined[h.Blob] != nil {
			continue
		}
		was, is := c.pick(before, h.Blob), c.pick(after, h.Blob)
		if was == is {
			continue
		}
		c.takeLeave(was, h.Blob)
		if is != nil {
			is.conn.queue.Add(scheduler.Complete(h))
		}
	}
	for blob, m := range c.joined {
		is := c.pick(after, blob)
		if is == m.owner {
			continue
		}
		c.takeLeave(m.owner, blob)
		m.owner = is
		if is == nil {
			continue
		}
		join, ok := c.consumer.Rejoin(blob)
		if !ok {
			delete(c.joined, blob)
			continue
		}
		join.Again = join.Again || m.sent
		m.sent = true
		is.conn.queue.Add(join)
		is.conn.expectAnswer()
	}
	c.count()
	for _, l := range after {
		// Others came and went while this one did not read what was
		// announced to it, time and again.
		if l.conn.queue.Len() > c.cfg.Queue+4*c.cfg.MaxBlobs {
			l.conn.end(errStuck)
		}
	}
}

func (c *Client) takeLeave(of *link, blob scheduler.Digest) {
	if of != nil && of.conn != nil && c.links[of.target] == of {
		of.conn.queue.Add(scheduler.Leave{Blob: blob})
	}
}
