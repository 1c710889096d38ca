package store

import (
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

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

// Held is one complete blob of the store.
type Held struct {
	Digest digest.Digest
	Size   int64
	Marked bool // see Store.Mark
}

// Inventory returns the complete blobs, most recently used first, at most
// limit of them.
func (s *Store) Inventory(limit int) []Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make([]Held, 0, min(limit, len(s.index.blobs)))
	for el := s.index.order.Front(); el != nil && len(held) < limit; el = el.Next() {
		if e := el.Value.(*entry); !e.partial {
			held = append(held, Held{e.digest, e.size, e.marked})
		}
	}
	return held
}

// Sums returns the BLAKE3 sums of the blob's pieces, as they were when the
// blob was verified.
func (b *Blob) Sums() []piece.Sum {
	p := b.e.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.sums)
}
