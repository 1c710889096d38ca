// Package outbox is a bounded queue of messages between one goroutine that
// must not wait and one that writes them to a connection.
//
// It knows order and number; it must not know what the messages are.
package outbox

import (
	"slices"
	"sync"
)

// Queue is a first-in, first-out queue. It costs next to nothing while it is
// empty: a scheduler has one per daemon. Its methods may be called
// concurrently.
type Queue[T any] struct {
	limit int
	ready chan struct{}
	room  chan struct{}

	// mu guards items and full.
	mu    sync.Mutex
	items []T
	full  bool // Push was refused since room was last signalled
}

// New returns an empty queue in which Push lets at most limit items wait.
func New[T any](limit int) *Queue[T] {
	return &Queue[T]{limit: limit, ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// Push appends an item and reports whether there was room for it.
func (q *Queue[T]) Push(item T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) >= q.limit {
		q.full = true
		return false
	}
	q.append(item)
	return true
}

// Add appends items whether there is room or not. The caller bounds them.
func (q *Queue[T]) Add(items ...T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.append(items...)
}

func (q *Queue[T]) append(items ...T) {
	q.items = append(q.items, items...)
	if len(q.items) > 0 {
		signal(q.ready)
	}
}

// Ready is sent to when there is something to take.
func (q *Queue[T]) Ready() <-chan struct{} { return q.ready }

// Room is sent to when a Push that was refused may be tried again.
func (q *Queue[T]) Room() <-chan struct{} { return q.room }

// Take removes the first items, at most most of them, and returns them.
func (q *Queue[T]) Take(most int) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	var taken []T
	if len(q.items) <= most {
		taken, q.items = q.items, nil
	} else {
		taken = slices.Clone(q.items[:most])
		rest := copy(q.items, q.items[most:])
		clear(q.items[rest:])
		q.items = q.items[:rest]
		signal(q.ready)
	}
	if q.full && len(q.items) < q.limit {
		q.full = false
		signal(q.room)
	}
	return taken
}

// Len returns how many items wait.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
