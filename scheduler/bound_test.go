package scheduler

import (
	"fmt"
	"testing"
)

// A message that names pieces again and again costs no more than one that names
// each once.
func TestPiecesNamedTwice(t *testing.T) {
	const n = 16
	sw := newSwarm("B", 1)
	sw.setSize(size("16"))
	runs := []Run{{-3, 5}, {n, 1}, {4, 0}}
	for range 1000 {
		runs = append(runs, Run{0, n + 1})
	}
	sum := 0
	for run := range sw.clipped(runs) {
		if run.First < 0 || run.Count < 1 || run.End() > n {
			t.Errorf("run %v of %d pieces", run, n)
		}
		sum += run.Count
	}
	if sum != n {
		t.Errorf("%d pieces of %d", sum, n)
	}
}

// Who comes and goes with pieces that another zone has no use for leaves nothing
// behind there.
func TestComeAndGo(t *testing.T) {
	const n = 40
	c := New(DefaultConfig())
	blob := Holding{"B", size("40")}
	c.Step(0, "seed", Hello{Addr: "s:1", Zone: "east", Inventory: []Holding{blob}})
	for _, id := range []PeerID{"a", "b"} {
		c.Step(0, id, Hello{Addr: "a:1", Zone: "east"})
		c.Step(0, id, Join{Blob: blob.Blob, Size: blob.Size})
	}
	c.Step(0, "west", Hello{Addr: "w:1", Zone: "west"})
	for range 10 {
		c.Step(0, "west", Join{Blob: blob.Blob, Size: blob.Size, Have: []byte{255, 255, 255, 255, 255}})
		c.Step(0, "west", Leave{Blob: blob.Blob})
	}
	l := c.blobs[blob.Blob][0].rings[0].ledger
	if l == nil || l.free == 0 {
		t.Fatal("nothing is to be dealt out")
	}
	if len(l.queue) > n {
		t.Errorf("%d entries for %d pieces", len(l.queue), n)
	}
}

// However many sizes are stated of a blob, there are no more swarms than may
// be; who is at home in one of them gets in all the same.
func TestSizesBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxSwarms = 3
	c := New(cfg)
	refused := func(id PeerID, size int64) bool {
		c.Step(0, id, Hello{Addr: "a:1"})
		for _, out := range c.Step(0, id, Join{Blob: "B", Size: size}) {
			if _, ok := out.Msg.(*Refused); ok {
				return true
			}
		}
		return false
	}
	for i, want := range []bool{false, false, false, true} {
		if got := refused(PeerID('k'+rune(i)), int64(i+1)); got != want {
			t.Errorf("size %d is refused: %v", i+1, got)
		}
	}
	if refused("a", 1) || refused("b", 0) {
		t.Error("who states a size that is there, or none, is refused")
	}
	if n := c.Stats().Swarms; n != 3 {
		t.Errorf("%d swarms", n)
	}
	if err := check(c); err != nil {
		t.Error(err)
	}
}

// One identity gets as many of a peer's neighbours as a peer should have, and
// leaves what it may have beyond that to others.
func TestOneIdentitySurroundsNobody(t *testing.T) {
	cfg := DefaultConfig()
	c := New(cfg)
	join := func(id PeerID, identity string) {
		c.Step(0, id, Hello{Addr: "a:1", Identity: identity})
		c.Step(0, id, Join{Blob: "B", Size: size("40")})
	}
	join("victim", "192.0.2.1")
	for i := range 300 {
		join(PeerID(fmt.Sprint("x", i)), "192.0.2.2")
	}
	victim := c.peers["victim"].blobs["B"]
	if n := kin(victim, c.peers["x0"].who); n < 1 || n > cfg.Degree {
		t.Errorf("one identity has %d of its neighbours", n)
	}
	for i := range 30 {
		join(PeerID(fmt.Sprint("y", i)), fmt.Sprint("192.0.3.", i))
	}
	if n := len(victim.links); n <= cfg.Degree {
		t.Errorf("others find no room: it has %d neighbours", n)
	}
}
