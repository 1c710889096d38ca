package peer

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/piece"
)

// No slot is lost or given twice, and none stands idle while somebody waits.
func TestSlotsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 3).Draw(t, "slots")
		s := newSlots(most)
		conns := make([]*Conn, 6)
		parties := []*party{newParty("a"), newParty("b")}
		for i := range conns {
			conns[i] = &Conn{party: parties[i%2]}
		}
		pick := func(t *rapid.T) *Conn { return rapid.SampledFrom(conns).Draw(t, "conn") }
		told := func(t *rapid.T, c *Conn) {
			if _, owns := s.owners[c]; c != nil && !owns {
				t.Fatal("who is told that it has a slot has none")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				c := pick(t)
				if want := has(s.owners, c) || len(s.owners) < s.limit; s.take(c) != want {
					t.Fatal("take misreports")
				}
			},
			"wait":    func(t *rapid.T) { told(t, s.wait(pick(t))) },
			"release": func(t *rapid.T) { told(t, s.release(pick(t), false)) },
			"yield": func(t *rapid.T) {
				c := pick(t)
				next, yielded := s.yield(c, false, false)
				told(t, next)
				if yielded && next != c && has(s.owners, c) {
					t.Fatal("who yielded still owns its slot")
				}
			},
			"resize": func(t *rapid.T) {
				limit := rapid.IntRange(1, 3).Draw(t, "limit")
				for _, c := range s.resize(limit) {
					told(t, c)
				}
				most = max(len(s.owners), limit)
			},
			"leave": func(t *rapid.T) {
				c := pick(t)
				told(t, s.leave(c, false))
				if has(s.owners, c) || slices.Contains(s.line, c) {
					t.Fatal("who left is still there")
				}
			},
			"unline": func(t *rapid.T) { s.unline(pick(t)) },
			"": func(t *rapid.T) {
				// After slots were taken away there may be more owners, but
				// never more again.
				if len(s.owners) > most {
					t.Fatalf("%d slots are owned, %d at most are to be", len(s.owners), most)
				}
				most = max(len(s.owners), s.limit)
				if len(s.owners) < s.limit && len(s.line) > 0 {
					t.Fatal("a slot is free and somebody waits")
				}
				for i, c := range s.line {
					if has(s.owners, c) || slices.Contains(s.line[:i], c) {
						t.Fatal("somebody waits twice, or for what it has")
					}
				}
			},
		})
	})
}

func has(m map[*Conn]struct{}, c *Conn) bool { _, ok := m[c]; return ok }

// gate is content whose reading a test lets pass, call by call.
type gate struct {
	*content
	pass chan struct{}
}

func (g gate) Reader() (Reader, error) { return g, nil }
func (g gate) Close() error            { return nil }

func (g gate) CopyRange(w io.Writer, off, n int64) (int64, error) {
	<-g.pass
	return memoryReader{g.b}.CopyRange(w, off, n)
}

// With one slot, the second peer that asks is choked and rejected at once,
// and unchoked when the first has no more requests.
func TestSlotHandedOn(t *testing.T) {
	src := newContent(2 * piece.MinLength)
	g := gate{src, make(chan struct{})}
	seed := newEndpoint(t, Config{Slots: 1})
	addr := serve(t, seed, "127.0.0.1")
	blob := src.blob(nil, src.all()...)
	blob.Content = g
	open(t, seed, blob)
	first := dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")
	ev := newEvents()
	second := dial(t, open(t, newEndpoint(t, Config{}), src.blob(ev)), addr, "")

	var sink collector
	tr := must(first.Request(0, &sink))
	g.pass <- struct{}{} // the first has the slot
	await(t, "the first piece", tr.Done())
	tr = must(first.Request(1, &sink))
	waitFor(t, "the slot to be taken", func() bool { return owners(seed) == 1 })
	if _, err := get(second, 0); !errors.Is(err, ErrRejected) {
		t.Fatalf("while the slot is taken: %v", err)
	}
	if !second.Choked() {
		t.Error("rejected, but not choked")
	}
	if _, err := second.Request(0, &sink); !errors.Is(err, ErrRejected) {
		t.Errorf("Request while choked: %v", err)
	}
	close(g.pass)
	await(t, "the second piece", tr.Done())
	for second.Choked() {
		ev.await(t, "changed")
	}
	mustGet(t, second, src, 0)
	waitFor(t, "the slot", func() bool { return owners(seed) == 0 }) // which the seed frees a moment after it sent the last byte
	mustGet(t, first, src, 0)
}

func owners(e *Endpoint) int {
	e.slots.mu.Lock()
	defer e.slots.mu.Unlock()
	return len(e.slots.owners)
}

// Who has had its turn goes to the end of the line, between two pieces; its
// requests are rejected, its pieces whole.
func TestTurns(t *testing.T) {
	src := newContent(8 * piece.MinLength)
	g := gate{src, make(chan struct{})}
	seed := newEndpoint(t, Config{Slots: 1, Turn: 1})
	addr := serve(t, seed, "127.0.0.1")
	blob := src.blob(nil, src.all()...)
	blob.Content = g
	open(t, seed, blob)
	ev1, ev2 := newEvents(), newEvents()
	first := dial(t, open(t, newEndpoint(t, Config{Block: 64 << 10}), src.blob(ev1)), addr, "")
	second := dial(t, open(t, newEndpoint(t, Config{}), src.blob(ev2)), addr, "")
	var sinks [3]collector
	var trs [3]*Transfer
	for i := range trs {
		trs[i] = must(first.Request(i, &sinks[i]))
	}
	g.pass <- struct{}{} // the first block of four is on its way
	if _, err := get(second, 7); !errors.Is(err, ErrRejected) {
		t.Fatalf("while the slot is taken: %v", err)
	}
	close(g.pass)
	for i, tr := range trs {
		await(t, "a transfer", tr.Done())
		if err := tr.Err(); i == 0 && (err != nil || string(sinks[0].bytes()) != string(src.piece(0))) || i > 0 && !errors.Is(err, ErrRejected) {
			t.Errorf("piece %d: %v", i, err)
		}
	}
	for second.Choked() {
		ev2.await(t, "changed")
	}
	mustGet(t, second, src, 7)
	for first.Choked() {
		ev1.await(t, "changed")
	}
	mustGet(t, first, src, 1)
}

// A slot that was granted and is not used goes to the next; one whose peer
// does not read is lent; one that is not wanted any more is given up.
func TestSlotNotUsed(t *testing.T) {
	src := newContent(40 * piece.MinLength)
	seed := newEndpoint(t, Config{Slots: 1, Lend: 50 * time.Millisecond})
	addr := serve(t, seed, "127.0.0.1")
	open(t, seed, src.blob(nil, src.all()...))
	stuck := call(t, addr)
	stuck.greet(src, pp.HaveNone)
	for i := range 40 { // 10 MiB: more than sockets hold
		stuck.send(request(i, 0, piece.MinLength))
	}
	waitFor(t, "the slot to be taken", func() bool { return owners(seed) == 1 || seed.Stats().Uploaded > 0 })
	waiter := call(t, addr) // takes the slot it is granted, and never asks again
	waiter.greet(src, pp.HaveNone)
	waiter.send(request(0, 0, 10))

	ev := newEvents()
	honest := dial(t, open(t, newEndpoint(t, Config{}), src.blob(ev)), addr, "")
	for {
		b, err := get(honest, 3)
		if err == nil {
			if string(b) != string(src.piece(3)) {
				t.Error("wrong bytes")
			}
			break
		}
		if !errors.Is(err, ErrRejected) {
			t.Fatal(err)
		}
		for honest.Choked() {
			ev.await(t, "changed")
		}
	}
}

// A slot is kept for as long after each grant: what is left of the time of the
// grant before does not count.
func TestGrantedAgain(t *testing.T) {
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		c := ev.await(t, "opened").conn
		keep := e.cfg.Keep
		grant := func() {
			e.slots.take(c)
			c.granted()
		}
		grant()
		time.Sleep(keep * 3 / 4) // of the bubble's clock, as all that follow
		c.drained()
		if n := owners(e); n != 0 {
			t.Fatalf("%d slots are owned by who asks for nothing", n)
		}
		grant()
		time.Sleep(keep * 3 / 4)
		synctest.Wait()
		if owners(e) != 1 {
			t.Error("slot was taken by the clock of the grant before")
		}
		time.Sleep(keep / 2)
		synctest.Wait()
		if owners(e) != 0 {
			t.Error("slot is kept for who asks for nothing")
		}
	})
}

// Who says that it wants nothing more does not stay in line, and may ask
// again.
func TestUnneeded(t *testing.T) {
	src := newContent(piece.MinLength)
	g := gate{src, make(chan struct{})}
	seed := newEndpoint(t, Config{Slots: 1})
	addr := serve(t, seed, "127.0.0.1")
	blob := src.blob(nil, src.all()...)
	blob.Content = g
	open(t, seed, blob)
	first := dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")
	ev := newEvents()
	second := dial(t, open(t, newEndpoint(t, Config{}), src.blob(ev)), addr, "")
	tr := must(first.Request(0, &collector{}))
	waitFor(t, "the slot to be taken", func() bool { return owners(seed) == 1 })
	if _, err := get(second, 0); !errors.Is(err, ErrRejected) {
		t.Fatal(err)
	}
	second.Unneeded()
	for second.Choked() {
		ev.await(t, "changed")
	}
	seed.slots.mu.Lock()
	if len(seed.slots.line) != 0 {
		t.Error("somebody is in line")
	}
	seed.slots.mu.Unlock()
	close(g.pass)
	await(t, "the piece", tr.Done())
	waitFor(t, "the slot", func() bool { return owners(seed) == 0 })
	mustGet(t, second, src, 0)
}

// A slot goes to who has least of its blob, not to who has waited longest;
// what a peer has counts however it said so.
func TestSlotGoesToWhoHasLeast(t *testing.T) {
	one := newParty("one")
	with := func(m pp.Message) *Conn {
		c := &Conn{has: piece.NewSet(4), party: one}
		if err := (&reader{Conn: c}).statement(&m); err != nil {
			t.Fatal(err)
		}
		return c
	}
	s, owner := newSlots(1), &Conn{party: one}
	s.take(owner)
	all, some, none := with(pp.Message{Type: pp.HaveAll}), with(pp.Message{Type: pp.Bitfield, Bitfield: []bool{true, true}}), with(pp.Message{Type: pp.HaveNone})
	for _, c := range []*Conn{all, some, none} {
		s.wait(c)
	}
	for i, want := range []*Conn{none, some, all} {
		got := s.release(owner, false)
		if got != want {
			t.Fatalf("turn %d went to one that has %d thousandths", i, got.share.Load())
		}
		owner = got
	}
}
