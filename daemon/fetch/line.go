package fetch

import (
	"context"
	"sync"
)

// fairShare is how many places one registry may hold for each place that is
// free: of 64 places one registry gets 48, two get 27 each, three 19 each, and
// some are always left for the next one (the dynamic threshold of Choudhury
// and Hahne, "Dynamic queue length thresholds for shared-memory packet
// switches", with alpha = 3).
const fairShare = 3

// line gives out places to blobs, with a fair share for each registry.
type line struct {
	mu sync.Mutex // guards all below
	// free is the number of places that nobody holds.
	free int
	// held counts the places of each registry. It has no entry for none.
	held map[string]int
	// changed is closed when a place comes free.
	changed chan struct{}
}

func newLine(places int) *line {
	return &line{free: places, held: map[string]int{}, changed: make(chan struct{})}
}

// enter waits for a place. The error is that of ctx.
func (l *line) enter(ctx context.Context, registry string) error {
	for {
		l.mu.Lock()
		if l.free > 0 && l.held[registry] < fairShare*l.free {
			l.free--
			l.held[registry]++
			l.mu.Unlock()
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave gives a place back.
func (l *line) leave(registry string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free++
	if l.held[registry]--; l.held[registry] == 0 {
		delete(l.held, registry)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}
