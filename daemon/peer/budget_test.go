package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/piece"
)

func TestNetworkOf(t *testing.T) {
	for _, tc := range [][2]string{
		{"10.1.2.3", "10.1.2.3"}, {"::ffff:10.1.2.3", "10.1.2.3"},
		{"2001:db8:1:2:3::4", "2001:db8:1:2::/64"}, {"2001:db8:1:2:ffff::", "2001:db8:1:2::/64"},
		{"fe80::1%eth0", "fe80::/64"},
	} {
		if got := networkOf(netip.MustParseAddr(tc[0])); got != tc[1] {
			t.Errorf("%s is of %s, want %s", tc[0], got, tc[1])
		}
	}
}

// Places are never more than there are, of a party never more than its share,
// and nobody loses one to a party that has as many.
func TestBudgetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBudget(rapid.IntRange(1, 8).Draw(t, "most"), rapid.IntRange(1, 4).Draw(t, "each"))
		in := map[*ticket]bool{}
		held := func(party string) (n int) {
			for k := range in {
				if k.party == party {
					n++
				}
			}
			return n
		}
		newTicket := func(t *rapid.T) *ticket {
			return &ticket{party: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "party"), accepted: rapid.Bool().Draw(t, "accepted")}
		}
		t.Repeat(map[string]func(*rapid.T){
			"admitOldest": func(t *rapid.T) {
				k := newTicket(t)
				if out := b.admitOldest(k); out != nil {
					if out.party != k.party && held(out.party) < held(k.party) {
						t.Fatalf("%s loses a place, with %d, to %s, with %d", out.party, held(out.party), k.party, held(k.party))
					}
					delete(in, out)
				}
				in[k] = true
			},
			"admit": func(t *rapid.T) {
				k := newTicket(t)
				out, err := b.admit(k)
				if err != nil {
					if !errors.Is(err, ErrTooMany) || len(in) < b.most && held(k.party) < b.each {
						t.Fatalf("refused: %v", err)
					}
					return
				}
				if out != nil {
					if !out.accepted || held(out.party) <= held(k.party)+1 {
						t.Fatalf("%v loses a place, with %d, to %s, with %d", out, held(out.party), k.party, held(k.party))
					}
					delete(in, out)
				}
				in[k] = true
			},
			"remove": func(t *rapid.T) {
				for k := range in {
					b.remove(k)
					b.remove(k) // twice is once
					delete(in, k)
					break
				}
			},
			"": func(t *rapid.T) {
				if b.total != len(in) || b.total > b.most {
					t.Fatalf("%d of %d places are taken, counted %d", len(in), b.most, b.total)
				}
				for party, list := range b.held {
					if len(list) != held(party) || len(list) > b.each || len(list) == 0 {
						t.Fatalf("%s has %d places of %d, counted %d", party, held(party), b.each, len(list))
					}
				}
			},
		})
	})
}

// from dials an endpoint from a loopback address.
func from(t testing.TB, source, addr string) *script {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newScript(t, nc)
}

// Peers that prove nothing take no place from those that do, with TLS and
// without, from however many addresses.
func TestStrangersTakeNoPlace(t *testing.T) {
	ca := newAuthority()
	for name, tc := range map[string]struct{ seed, node Config }{
		"mTLS":  {Config{TLS: ca.config("seed.example"), ID: IDOf("seed.example")}, Config{TLS: ca.config("node.example"), ID: IDOf("node.example")}},
		"plain": {},
	} {
		t.Run(name, func(t *testing.T) {
			src := newContent(1000)
			tc.seed.Conns, tc.seed.Strangers, tc.seed.StrangersPerNet = 8, 8, 2
			tc.seed.StrangerTimeout, tc.seed.HandshakeTimeout = time.Hour, time.Hour
			seed := newEndpoint(t, tc.seed)
			addr := serve(t, seed, "127.0.0.1")
			open(t, seed, src.blob(nil, src.all()...))
			for i := range 100 {
				from(t, fmt.Sprint("127.0.0.", 2+i%8), addr)
			}
			waitFor(t, "the strangers", func() bool { return seed.Stats().TurnedAway == 92 })
			if st := seed.Stats(); st.Strangers != 8 || st.Conns != 0 {
				t.Errorf("%d strangers, %d connections", st.Strangers, st.Conns)
			}
			mustGet(t, dial(t, open(t, newEndpoint(t, tc.node), src.blob(nil)), addr, "seed.example"), src, 0)
		})
	}
}

// A party that holds all places makes room for one that has none.
func TestPlacesAreShared(t *testing.T) {
	src := newContent(1000)
	seed := newEndpoint(t, Config{Conns: 8})
	addr := serve(t, seed, "127.0.0.1")
	open(t, seed, src.blob(nil, src.all()...))
	for range 8 {
		from(t, "127.0.0.9", addr).greet(src, pp.HaveNone)
	}
	waitFor(t, "the connections", func() bool { return seed.Stats().Conns == 8 })
	mustGet(t, dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, ""), src, 0)
	if n := seed.Stats().Conns; n != 8 {
		t.Errorf("%d connections", n)
	}
}

// Connections of one party that keep all slots and ask for next to nothing
// leave another party its slot.
func TestSlotsAreShared(t *testing.T) {
	src := newContent(16 * piece.MinLength)
	seed := newEndpoint(t, Config{Slots: 2, Turn: piece.MinLength, Keep: 20 * time.Millisecond})
	addr := serve(t, seed, "127.0.0.1")
	open(t, seed, src.blob(nil, src.all()...))
	for range 10 {
		s := from(t, "127.0.0.9", addr)
		s.greet(src, pp.HaveNone)
		go func() {
			for {
				s.send(request(0, 0, 1))
				for {
					m, err := s.next()
					if err != nil {
						return
					}
					// Unchoked, it keeps the slot and asks for nothing.
					if m.Type == pp.Piece {
						break
					}
				}
			}
		}()
	}
	waitFor(t, "the slots to be taken", func() bool { return seed.Stats().Rejected > 8 })
	ev := newEvents()
	honest := dial(t, open(t, newEndpoint(t, Config{}), src.blob(ev)), addr, "")
	for i := range 16 {
		for {
			b, err := get(honest, i)
			if err == nil && string(b) == string(src.piece(i)) {
				break
			}
			if !errors.Is(err, ErrRejected) {
				t.Fatalf("piece %d: %v", i, err)
			}
			for honest.Choked() {
				ev.await(t, "changed")
			}
		}
	}
}

// A slot that moves next to nothing is given on while others wait, however
// little is asked for at a time, and a peer that asks for the same piece again
// and again has its turn like others.
func TestTurnEnds(t *testing.T) {
	src := newContent(4 * piece.MinLength)
	s := &Swarm{layout: src.layout}
	c := &Conn{s: s, e: &Endpoint{cfg: Config{Turn: 1 << 20, Lend: time.Second}}}
	long := time.Now().Add(-10 * time.Second)
	for _, tc := range []struct {
		served         int64
		at             time.Time
		limited        time.Duration
		useless, over  bool
		overInTheMidst bool
	}{
		{served: 100, at: time.Now()},
		{served: 100, at: long, useless: true},
		{served: 100, at: long, limited: 9500 * time.Millisecond},
		{served: 1 << 20, at: long, over: true},
		{served: 1<<20 + src.layout.Length(), at: long, over: true, overInTheMidst: true},
	} {
		c.served, c.slotAt, c.limited = tc.served, tc.at, tc.limited
		if c.useless() != tc.useless || c.turnOver(true) != tc.over || c.turnOver(false) != tc.overInTheMidst {
			t.Errorf("%+v: useless %v, turn over %v, in the midst of a piece %v", tc, c.useless(), c.turnOver(true), c.turnOver(false))
		}
	}
}

// A party gets the next slot that owns fewer, and of those whose last turn was
// of use.
func TestSlotGoesToThePartyWithFewest(t *testing.T) {
	a, b, idle := newParty("a"), newParty("b"), newParty("idle")
	conn := func(p *party) *Conn { return &Conn{party: p} }
	s := newSlots(2)
	a1, a2, a3, b1, b2, i1 := conn(a), conn(a), conn(a), conn(b), conn(b), conn(idle)
	s.take(i1)
	s.release(i1, true)
	s.take(a1)
	s.take(a2)
	for _, c := range []*Conn{a3, i1, b1} {
		s.wait(c)
	}
	if next, ok := s.yield(a1, false, false); !ok || next != b1 {
		t.Fatal("the slot goes to a party that has one")
	}
	s.wait(b2)
	if next, ok := s.yield(b1, false, false); !ok || next != b2 {
		t.Fatal("the slot goes to the party whose last turn was of no use")
	}
	turns := 0
	for owner := b2; owner != i1; turns++ {
		owner, _ = s.yield(owner, false, true)
	}
	if turns < 2 || turns > idleTurns {
		t.Errorf("it gets one after %d turns", turns)
	}
	if a.owned != 1 || b.owned != 0 || idle.owned != 1 {
		t.Errorf("owned: %d, %d, %d", a.owned, b.owned, idle.owned)
	}
}

// All connections of one party together may say no more than one: who floods
// over many is closed as soon as who floods over one.
func TestFloodIsBoundedByParty(t *testing.T) {
	src := newContent(2 * piece.MinLength)
	seed := newEndpoint(t, Config{})
	addr := serve(t, seed, "127.0.0.1")
	open(t, seed, src.blob(nil))
	flood := make([]byte, 0, 9*5000)
	for range 5000 { // each more than its connection may say, far less than one party's burst
		flood = append(flood, frame(pp.Have, 0, 0, 0, 1)...)
	}
	for range 16 {
		s := from(t, "127.0.0.9", addr)
		s.greet(src, pp.HaveNone)
		go io.Copy(io.Discard, s.nc)
		go s.raw(flood)
	}
	waitFor(t, "the flood to be cut", func() bool { return seed.Stats().Violations > 8 })
	ev := newEvents()
	honest := open(t, newEndpoint(t, Config{}), src.blob(ev, src.have(0)))
	if c := dial(t, honest, addr, ""); c.Choked() {
		t.Error("choked")
	}
}

// What waits to be written is bounded by party, not only by connection, and is
// off the account when the connections are gone.
func TestQueuesAreBoundedByParty(t *testing.T) {
	e := newEndpoint(t, Config{})
	src := newContent(1000)
	s := open(t, e, src.blob(nil))
	var conns []*Conn
	for range 4 {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		c := newConn(s, near, near, NewID(), "", true)
		c.most = partyQueue // as with the largest blobs
		conns = append(conns, c)
	}
	closed := func() (n int) {
		for _, c := range conns {
			c.mu.Lock()
			if c.closed {
				n++
			}
			c.mu.Unlock()
		}
		return n
	}
	b := make([]byte, 8<<10)
	for i := 0; closed() == 0 && i < 10*partyQueue/len(b); i++ {
		c := conns[i%len(conns)]
		c.mu.Lock()
		c.put(extended(1, b))
		c.mu.Unlock()
	}
	if n := conns[0].party.queued.Load(); closed() != 1 || n > partyQueue+int64(2*len(b)) {
		t.Errorf("%d bytes wait for one party, %d connections are closed", n, closed())
	}
	for _, c := range conns {
		c.drop()
	}
	if n := e.queued.Load(); n != 0 {
		t.Errorf("%d bytes are left on the account", n)
	}
}
