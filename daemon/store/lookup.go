package store

import "github.com/opencontainers/go-digest"

// Stat returns the size in bytes of the complete blob d, if there is one. It
// looks at the index only and does not count as a use.
func (s *Store) Stat(d digest.Digest) (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.index.blobs[d]; e != nil {
		return e.size, true
	}
	return 0, false
}

// Pending returns the size in bytes of the unfinished blob d, if there is
// one, which Partial would go on with.
func (s *Store) Pending(d digest.Digest) (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.index.partials[d]; e != nil {
		return e.size, true
	}
	return 0, false
}
