package peer

import (
	"slices"
	"sync"
)

// slots says who may upload. A connection is idle, waits in line, or owns one
// of a fixed number of slots. Methods that free a slot return the connection
// that got it, which must then be told by its granted method, with no lock
// held.
type slots struct {
	mu sync.Mutex
	// Guarded by mu:
	free   int
	owners map[*Conn]struct{}
	line   []*Conn // no owners, none twice
}

func newSlots(n int) *slots {
	return &slots{free: n, owners: make(map[*Conn]struct{})}
}

// take reports whether c owns a slot, after giving it one if one is free.
func (s *slots) take(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; ok {
		return true
	}
	if s.free == 0 {
		return false
	}
	s.free--
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
	if s.free == 0 {
		return nil
	}
	s.free--
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

// yield is release if somebody waits, and puts c at the end of the line.
func (s *slots) yield(c *Conn) (next *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.owners[c]; !ok || len(s.line) == 0 {
		return nil
	}
	delete(s.owners, c)
	next = s.passLocked()
	s.line = append(s.line, c)
	return next
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

// passLocked gives a slot that nobody owns to who in line has least of its
// blob, of several the first. What counts is when the last has everything.
func (s *slots) passLocked() *Conn {
	if len(s.line) == 0 {
		s.free++
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
