package storetest

import "github.com/opencontainers/go-digest"

// Stat returns the size in bytes of the complete blob d, if there is one.
func (m *Memory) Stat(d digest.Digest) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.blobs[d]
	if c == nil {
		return 0, false
	}
	return int64(len(c.b)), true
}

// Pending returns the size in bytes of the unfinished blob d, if there is one.
func (m *Memory) Pending(d digest.Digest) (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.partials[d]
	if p == nil {
		return 0, false
	}
	return p.layout.Size(), true
}
