package client

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// known is what a scheduler knows of this daemon after what it was told.
func known(msgs []scheduler.In) map[scheduler.Digest]bool {
	blobs := map[scheduler.Digest]bool{}
	for _, msg := range msgs {
		blob, _ := blobOf(msg)
		switch msg.(type) {
		case scheduler.Join, scheduler.Complete:
			blobs[blob] = true
		case scheduler.Leave:
			delete(blobs, blob)
		}
	}
	return blobs
}

// Schedulers die, return and fall silent at random, while blobs are joined and
// left. When that ends, each scheduler that is there knows exactly the blobs
// that are its own, and every blob is known to one.
func TestWhateverHappens(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { whatever(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

func whatever(t *testing.T, rng *rand.Rand) {
	f := newFakes()
	addrs := []string{"a:1", "b:1", "c:1"}
	l := &listener{}
	wanted := map[scheduler.Digest]bool{}
	for i := range 30 {
		l.holdings = append(l.holdings, scheduler.Holding{Blob: digest(i), Size: 5})
		wanted[digest(i)] = true
	}
	for _, a := range addrs {
		f.down[a] = rng.IntN(3) == 0
	}
	c, stop := start(t, Config{Schedulers: addrs, Open: f.open, Queue: 4}, l)
	defer stop()
	next := 1000
	for range 60 {
		addr := addrs[rng.IntN(len(addrs))]
		switch rng.IntN(6) {
		case 0:
			f.mu.Lock()
			s := f.streams[addr]
			f.down[addr] = true
			f.mu.Unlock()
			if s != nil {
				s.Close()
			}
		case 1:
			f.set(f.down, addr, false)
		case 2:
			f.set(f.mute, addr, rng.IntN(2) == 0)
		case 3, 4:
			next++
			wanted[digest(next)] = true
			_ = c.Send(t.Context(), scheduler.Join{Blob: digest(next), Size: 5}) // ErrUnreachable is right, too
		case 5:
			if next > 1000 && wanted[digest(next)] {
				delete(wanted, digest(next))
				if err := c.Send(t.Context(), scheduler.Leave{Blob: digest(next)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if rng.IntN(2) == 0 {
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
		}
	}
	// One at least is there in the end.
	f.set(f.down, addrs[rng.IntN(len(addrs))], false)
	for _, a := range addrs {
		f.set(f.mute, a, false)
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()

	var live []*link
	for _, a := range addrs {
		if !f.down[a] {
			live = append(live, &link{target: Target{Addr: a}})
		}
	}
	total := 0
	for _, there := range live {
		for blob := range known(f.told(there.target.Addr)) {
			total++
			if !wanted[blob] {
				t.Errorf("%s knows of %s, which nobody wants", there.target.Addr, blob)
			}
			if owner := c.pick(live, blob); owner != there {
				t.Errorf("%s knows of %s, which is %s's", there.target.Addr, blob, owner.target.Addr)
			}
		}
	}
	if total != len(wanted) {
		t.Errorf("%d blobs are known, want %d", total, len(wanted))
	}
	if n := len(l.reachable); n == 0 || !l.reachable[n-1] {
		t.Errorf("reachable: %v", l.reachable)
	}
	for i := 1; i < len(l.reachable); i++ {
		if l.reachable[i] == l.reachable[i-1] {
			t.Errorf("told the same twice: %v", l.reachable)
		}
	}
}
