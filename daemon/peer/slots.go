package peer

import (
	"slices"
	"sync"
)

// slots says who may upload. A connection is idle, waits in line, or owns one
// of a limited number of slots. Methods that free a slot return the connection
// that got it, which must then be told by its granted method, with no lock
// held.
type slots struct {
	mu sync.Mutex
	// Guarded by mu:
	limit  int
	owners map[*Conn]struct{} // more than limit for a while after it was lowered
	line   []*Conn            // no owners, none twice
}

func newSlots(limit int) *slots {
	return &slots{limit: limit, owners: make(map[*Conn]struct{})}
}

// resize changes how many slots there are. Who owns one keeps it until its
// turn ends.
func (s *slots) resize(limit int) (next []*Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	for c := s.passLocked(); c != nil; c = s.passLocked() {
		next = append(next, c)
	}
	return next
}

// take reports whether c owns a slot, after giving it one if one is free.
func (s *slots) take(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; ok {
		return true
	}
	if len(s.owners) >= s.limit {
		return false
	}
	s.owners[c] = struct{}{}
	s.unlineLocked(c)
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

// release ends c's ownership, if it has one.
func (s *slots) release(c *Conn) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; !ok {
		return nil
	}
	delete(s.owners, c)
	return s.passLocked()
}

// yield is release if somebody waits, puts c at the end of the line, and
// reports whether it did.
func (s *slots) yield(c *Conn) (next *Conn, yielded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; !ok || len(s.line) == 0 {
		return nil, false
	}
	delete(s.owners, c)
	next = s.passLocked()
	s.line = append(s.line, c)
	return next, true
}

// leave takes c out altogether.
func (s *slots) leave(c *Conn) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlineLocked(c)
	if _, ok := s.owners[c]; !ok {
		return nil
	}
	delete(s.owners, c)
	return s.passLocked()
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

// passLocked gives a slot that nobody owns, if there is one, to who in line has
// least of its blob, of several the first. What counts is when the last has
// everything.
func (s *slots) passLocked() *Conn {
	if len(s.line) == 0 || len(s.owners) >= s.limit {
		return nil
	}
	i := 0
	for j, c := range s.line {
		if c.share.Load() < s.line[i].share.Load() {
			i = j
		}
	}
	next := s.line[i]
	s.line = slices.Delete(s.line, i, i+1)
	s.owners[next] = struct{}{}
	return next
}
