package piece

import "math/bits"

// Set is a fixed-size set of piece indexes, stored as the bitfield of BEP 3:
// the high bit of the first byte is piece 0, and spare bits at the end are
// zero. The zero value is the empty set over no pieces. A Set is not safe for
// concurrent use.
type Set struct {
	bits  []byte
	n     int
	count int
}

// NewSet returns an empty set over the indexes [0, n).
func NewSet(n int) *Set {
	return &Set{bits: make([]byte, (n+7)/8), n: n}
}

// Len returns the number of indexes that the set ranges over.
func (s *Set) Len() int { return s.n }

// Count returns the number of indexes in the set.
func (s *Set) Count() int { return s.count }

// Full reports whether every index is in the set.
func (s *Set) Full() bool { return s.count == s.n }

// Has reports whether i is in the set. An index out of range is not.
func (s *Set) Has(i int) bool {
	return i >= 0 && i < s.n && s.bits[i/8]&(0x80>>(i%8)) != 0
}

// Add puts i into the set and reports whether it was absent. It panics if i
// is out of range.
func (s *Set) Add(i int) bool {
	if i < 0 || i >= s.n {
		panic("piece: index out of range")
	}
	if s.Has(i) {
		return false
	}
	s.bits[i/8] |= 0x80 >> (i % 8)
	s.count++
	return true
}

// Remove takes i out of the set and reports whether it was present.
func (s *Set) Remove(i int) bool {
	if !s.Has(i) {
		return false
	}
	s.bits[i/8] &^= 0x80 >> (i % 8)
	s.count--
	return true
}

// NextAbsent returns the first index at or after i that is not in the set,
// or Len if there is none.
func (s *Set) NextAbsent(i int) int {
	for i < s.n {
		// The bits from i on, inverted: the first one set is absent.
		if b := ^s.bits[i/8] << (i % 8); b != 0 {
			return min(i+bits.LeadingZeros8(b), s.n)
		}
		i += 8 - i%8
	}
	return s.n
}

// Bytes returns the set as a bitfield of BEP 3.
func (s *Set) Bytes() []byte { return append([]byte(nil), s.bits...) }
