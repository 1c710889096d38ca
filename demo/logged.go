package demo

import (
	"strings"
	"sync"
)

// logged keeps what a node logs.
type logged struct {
	mu sync.Mutex
	// Guarded by mu:
	text strings.Builder
}

// maxLogged bounds it: one line would do.
const maxLogged = 64 << 10

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < maxLogged {
		l.text.Write(p)
	}
	return len(p), nil
}

// names reports whether a line is about a peer.
func (l *logged) names(peer string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), " id="+peer+" ")
}
