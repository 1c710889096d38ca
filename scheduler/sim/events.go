package sim

import (
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

type kind uint8

const (
	evFinish    kind = iota // transfer a ends
	evVerified              // peer a has checked piece b
	evHave                  // the neighbours of peer a learn of piece b
	evToCore                // a message of peer a arrives at the scheduler
	evToPeer                // a message of the scheduler arrives at peer a
	evTick                  // the scheduler's clock
	evStart                 // peer a is started
	evBegin                 // peer a opens a request to the origin; b counts
	evRequest               // an assigned request of peer b arrives at a
	evRenew                 // peer a reports progress
	evIdle                  // peer a looks whether it is stuck
	evChurn                 // a peer is lost and another comes
	evRestart               // the scheduler is replaced
	evReconnect             // peer a finds the new scheduler
	evOrigin                // the origin's link changes to rate b·1000
)

// event is something that happens at a time. Events of one time happen in the
// order in which they were foretold.
type event struct {
	at      time.Duration
	seq     uint64
	kind    kind
	version uint32
	a, b    int32
	in      scheduler.In
	out     any
}

// at puts an event in the heap.
func (w *world) at(t time.Duration, e event) {
	e.at, e.seq = t, w.seq
	w.seq++
	h := append(w.heap, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !before(&e, &h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = e
	w.heap = h
}

func (w *world) after(d time.Duration, e event) { w.at(w.now+d, e) }

func (w *world) pop() event {
	h := w.heap
	top, last := h[0], h[len(h)-1]
	h[len(h)-1] = event{}
	h = h[:len(h)-1]
	w.heap = h
	i := 0
	for {
		least := i
		e := &last
		for c := 4*i + 1; c <= 4*i+4 && c < len(h); c++ {
			if before(&h[c], e) {
				least, e = c, &h[c]
			}
		}
		if least == i {
			break
		}
		h[i] = h[least]
		i = least
	}
	if len(h) > 0 {
		h[i] = last
	}
	return top
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }
