package peer

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// slots says which connections may be uploaded to. A connection is idle, waits
// in line, or owns one of a limited number of slots. Slots are shared out among
// parties, not connections: one party may own all of them, but gives them up,
// turn by turn, to parties that wait and own fewer. Methods that free a slot
// return the connection that got it, which must then be told by its granted
// method, with no lock held.
type slots struct {
	mu sync.Mutex
	// Guarded by mu:
	limit  int
	owners map[*Conn]struct{} // more than limit for a while after it was lowered
	line   []*Conn            // no owners, none twice
	turns  int64              // slots given so far
}

const (
	// A turn is idle that took longer than idleAfter and moved less than little,
	// in bytes. A party that had one waits idleTurns turns longer, and has but
	// idleSlots slots meanwhile, so that others find a free one at once.
	idleAfter = 100 * time.Millisecond
	little    = 64 << 10
	idleTurns = 16
	idleSlots = 1
	// leastRate is what a slot must move, in bytes per second, to be kept while
	// others wait.
	leastRate = 64 << 10
)

func newSlots(limit int) *slots {
	return &slots{limit: limit, owners: make(map[*Conn]struct{})}
}

// resize changes how many slots there are. A connection that owns one keeps it
// until its turn ends.
func (s *slots) resize(limit int) (next []*Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	for c := s.passLocked(); c != nil; c = s.passLocked() {
		next = append(next, c)
	}
	return next
}

// owns reports whether c owns a slot.
func (s *slots) owns(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.owners[c]
	return ok
}

// take reports whether c owns a slot, after giving it one if one is free.
func (s *slots) take(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; ok {
		return true
	}
	if len(s.owners) >= s.limit || !s.mayLocked(c.party) {
		return false
	}
	s.unlineLocked(c)
	s.giveLocked(c)
	return true
}

// wait puts c at the end of the line, unless it owns a slot or gets one that
// has become free.
func (s *slots) wait(c *Conn) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; ok || slices.Contains(s.line, c) {
		return nil
	}
	s.line = append(s.line, c)
	return s.passLocked()
}

// release ends c's ownership, if it has one. idle says that its turn was.
func (s *slots) release(c *Conn, idle bool) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.endLocked(c, idle) {
		return nil
	}
	return s.passLocked()
}

// yield is release if somebody waits who has a better claim to the slot, puts c
// at the end of the line, and reports whether it did. With any, whoever waits
// has the better claim.
func (s *slots) yield(c *Conn, idle bool, any bool) (next *Conn, yielded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; !ok || len(s.line) == 0 {
		return nil, false
	}
	i := s.firstLocked()
	if i < 0 {
		return nil, false
	}
	if first := s.line[i].party; !any && first != c.party && first.owned >= c.party.owned {
		return nil, false
	}
	s.endLocked(c, idle)
	next = s.passLocked()
	s.line = append(s.line, c)
	return next, true
}

// leave takes c out altogether.
func (s *slots) leave(c *Conn, idle bool) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlineLocked(c)
	if !s.endLocked(c, idle) {
		return nil
	}
	return s.passLocked()
}

// giveLocked makes c an owner.
func (s *slots) giveLocked(c *Conn) {
	s.owners[c] = struct{}{}
	s.turns++
	c.party.owned++
	c.party.turn = max(c.party.turn, s.turns)
}

// endLocked ends c's ownership and reports whether it had one.
func (s *slots) endLocked(c *Conn, idle bool) bool {
	if _, ok := s.owners[c]; !ok {
		return false
	}
	delete(s.owners, c)
	c.party.owned--
	if idle {
		c.party.turn = max(c.party.turn, s.turns+idleTurns)
	}
	return true
}

// unline takes c out of the line.
func (s *slots) unline(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlineLocked(c)
}

func (s *slots) unlineLocked(c *Conn) {
	if i := slices.Index(s.line, c); i >= 0 {
		s.line = slices.Delete(s.line, i, i+1)
	}
}

// passLocked gives a free slot, if there is one, to the first in line.
func (s *slots) passLocked() *Conn {
	if len(s.line) == 0 || len(s.owners) >= s.limit {
		return nil
	}
	i := s.firstLocked()
	if i < 0 {
		return nil
	}
	next := s.line[i]
	s.line = slices.Delete(s.line, i, i+1)
	s.giveLocked(next)
	return next
}

// mayLocked reports whether a party may have one more slot.
func (s *slots) mayLocked(p *party) bool { return p.turn <= s.turns || p.owned < idleSlots }

// firstLocked returns the index in the line of the connection that is next, or
// -1: of the party that owns the fewest slots, of several the one whose last turn
// is longest ago; of that party's connections the one whose peer has least of its
// blob, since what counts is when the last has everything; of several the one
// that has waited longest.
func (s *slots) firstLocked() int {
	best := -1
	for i, c := range s.line {
		if !s.mayLocked(c.party) {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		first := s.line[best]
		if order := cmp.Or(
			cmp.Compare(c.party.owned, first.party.owned),
			cmp.Compare(c.party.turn, first.party.turn),
			cmp.Compare(c.share.Load(), first.share.Load()),
		); order < 0 {
			best = i
		}
	}
	return best
}
