package outbox

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What comes out is what went in, in order; Push respects the bound, and
// whoever was refused hears of room.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 8).Draw(t, "limit")
		q := New[int](limit)
		var model []int
		next, refused := 0, false
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				room := len(model) < limit
				if q.Push(next) != room {
					t.Fatalf("Push with %d of %d waiting: %v", len(model), limit, !room)
				}
				if room {
					model = append(model, next)
				} else {
					refused = true
				}
				next++
			},
			"add": func(t *rapid.T) {
				n := rapid.IntRange(0, 5).Draw(t, "n")
				for range n {
					q.Add(next)
					model = append(model, next)
					next++
				}
			},
			"take": func(t *rapid.T) {
				if len(model) > 0 {
					select {
					case <-q.Ready():
					default:
						t.Fatal("not ready, with items waiting")
					}
				}
				n := min(rapid.IntRange(1, 5).Draw(t, "n"), len(model))
				if got := q.Take(max(n, 1)); !slices.Equal(got, model[:n]) {
					t.Fatalf("took %v, want %v", got, model[:n])
				}
				model = model[n:]
				if refused && len(model) < limit {
					refused = false
					select {
					case <-q.Room():
					default:
						t.Fatal("room was not signalled")
					}
				}
			},
			"": func(t *rapid.T) {
				if q.Len() != len(model) {
					t.Fatalf("%d wait, want %d", q.Len(), len(model))
				}
			},
		})
	})
}
