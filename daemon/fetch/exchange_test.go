package fetch

import (
	"io"
	"testing"
	"time"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// stub is a peer of which nothing but its name and state matters.
type stub struct {
	id     scheduler.PeerID
	choked bool
	alien  bool // no scheduler has told of it
	party  string
}

func (s *stub) ID() scheduler.PeerID                     { return s.id }
func (s *stub) Named() bool                              { return !s.alien }
func (s *stub) Party() string                            { return s.party }
func (s *stub) String() string                           { return string(s.id) }
func (s *stub) Request(int, io.Writer) (Transfer, error) { return nil, io.EOF }
func (s *stub) Has(int) bool                             { return true }
func (s *stub) Choked() bool                             { return s.choked }
func (s *stub) Received() int64                          { return 0 }
func (s *stub) Unneeded()                                {}
func (s *stub) Close(error)                              {}
func sumOf(b byte) (s piece.Sum)                         { s[0] = b; return s }
func anything(int) bool                                  { return true }
func has(x *exchange, id string, pieces ...int) *link {
	return hasOf(x, &stub{id: scheduler.PeerID(id)}, pieces...)
}
func (x *exchange) pick(only *link, depth int) (*link, int) {
	return x.choose(time.Now(), anything, only, depth, true)
}

func hasOf(x *exchange, s *stub, pieces ...int) *link {
	l := x.add(s, true)
	var list []Have
	for _, i := range pieces {
		list = append(list, Have{Index: i, Sum: sumOf(byte(i)), Known: true, Publisher: s.String()})
	}
	x.claimed(l, list)
	return l
}

// The rarest goes first; of those that many have, the first in order.
func TestChooseRarestThenInOrder(t *testing.T) {
	for seed := range uint64(20) {
		x := newExchange(8, seed)
		for _, id := range []string{"a", "b", "c"} {
			has(x, id, 2, 3, 4)
		}
		l := has(x, "d", 2, 3, 4, 6)
		if got, i := x.pick(nil, 1); got != l || i != 6 {
			t.Fatalf("seed %d: piece %d of %v, want the rare 6 of d", seed, i, got)
		}
		x.remove(l)
		if _, i := x.pick(nil, 1); i != 2 {
			t.Fatalf("seed %d: piece %d, want 2, the first of the common ones", seed, i)
		}
	}
}

// Equally rare ones are drawn by lot, so that nodes ask for different ones.
func TestChooseTiesByLot(t *testing.T) {
	drawn := map[int]bool{}
	for seed := range uint64(64) {
		x := newExchange(8, seed)
		has(x, "a", 1, 3, 5, 7)
		_, i := x.pick(nil, 1)
		drawn[i] = true
	}
	if len(drawn) != 4 {
		t.Errorf("drew %v, want all four", drawn)
	}
}

// Who is choked, leaving, shunned, reserved, busy, or has not said what a
// piece hashes to, is not asked.
func TestChooseWhoMayBeAsked(t *testing.T) {
	for name, spoil := range map[string]func(x *exchange, l *link){
		"choked":    func(_ *exchange, l *link) { l.choked = true },
		"leaving":   func(_ *exchange, l *link) { l.leaving = true },
		"shunned":   func(_ *exchange, l *link) { l.shunned = time.Now().Add(time.Hour) },
		"reserved":  func(_ *exchange, l *link) { l.reserved = true },
		"busy":      func(_ *exchange, l *link) { l.down = 1 },
		"sumless":   func(_ *exchange, l *link) { l.said = piece.NewSet(4) },
		"lost it":   func(x *exchange, l *link) { l.has.Remove(1); x.holders[1]-- },
		"gone":      func(x *exchange, l *link) { x.remove(l) },
		"not asked": func(x *exchange, l *link) { l.has = piece.NewSet(4); x.holders[1] = 0 },
	} {
		x := newExchange(4, 1)
		l := has(x, "a", 1)
		if got, i := x.pick(nil, 1); got != l || i != 1 {
			t.Fatalf("before %s: piece %d of %v", name, i, got)
		}
		spoil(x, l)
		if got, i := x.pick(nil, 1); got != nil || i != -1 {
			t.Errorf("%s: piece %d of %v", name, i, got)
		}
	}
}

// Of two that have a piece the one that lacks others is asked: what only the
// seed has is asked of it often enough.
func TestSourceSparesSeeds(t *testing.T) {
	x := newExchange(2, 1)
	has(x, "seed", 0, 1)
	l := has(x, "other", 0)
	if got := x.source(time.Now(), 0, nil, 2, true); got != l {
		t.Errorf("asks %v", got)
	}
	l.down = 1 // the seed has less to do
	if got := x.source(time.Now(), 0, nil, 2, true); got == l || got == nil {
		t.Errorf("asks %v", got)
	}
}

// What a peer says a piece hashes to holds for that peer, whoever spoke first.
func TestClaimsStandWithWhoMadeThem(t *testing.T) {
	x := newExchange(4, 1)
	a, b := has(x, "a", 1), x.add(&stub{id: "b"}, true)
	x.claimed(b, []Have{{Index: 1, Sum: sumOf(9), Known: true, Publisher: "liar"}, {Index: 99, Known: true}, {Index: -1}})
	if c := x.claimOf(a, 1); c.sum != sumOf(1) || c.publisher != "a" {
		t.Errorf("of a: %+v", c)
	}
	if c := x.claimOf(b, 1); c.sum != sumOf(9) || c.publisher != "liar" {
		t.Errorf("of b: %+v", c)
	}
	x.claimed(b, []Have{{Index: 1, Sum: sumOf(1), Known: true, Publisher: "a"}})
	if c := x.claimOf(b, 1); c.sum != sumOf(1) {
		t.Errorf("of b, who has thought better of it: %+v", c)
	}
}

func TestLinksAreBounded(t *testing.T) {
	x := newExchange(1, 1)
	for range maxLinks {
		if x.add(&stub{}, true) == nil {
			t.Fatal("refused too early")
		}
	}
	if x.add(&stub{}, true) != nil {
		t.Error("one too many")
	}
}

// Whoever dials takes no place of a neighbour, from however many addresses, and
// one identity takes but some of the others.
func TestPlacesForNeighbours(t *testing.T) {
	x := newExchange(1, 1)
	crowd := func(party string) (n int) {
		for range 3 * maxLinks {
			if x.add(&stub{alien: true, party: party}, false) != nil {
				n++
			}
		}
		return n
	}
	if n := crowd("a"); n != maxOfParty {
		t.Errorf("one address has %d places", n)
	}
	other := x.add(&stub{id: "other", party: "b"}, false)
	if other == nil {
		t.Fatal("no place for another address")
	}
	if n := crowd("c") + crowd("d"); n != maxOthers-maxOfParty-1 {
		t.Errorf("more addresses have %d places", n)
	}
	for i := range maxLinks - maxOthers {
		if x.add(&stub{party: "a"}, true) == nil {
			t.Fatalf("no place for neighbour %d", i)
		}
	}
}

// The limit rises while less comes than did before, and falls back.
func TestPace(t *testing.T) {
	p := pace{limit: downloads}
	now, bytes := time.Now(), int64(0)
	step := func(n int64, least int) int {
		now, bytes = now.Add(300*time.Millisecond), bytes+n
		p.adapt(now, bytes, least)
		return p.limit
	}
	step(0, downloads)
	if got := step(1000, downloads); got != downloads {
		t.Errorf("at its best: %d", got)
	}
	for range 10 {
		step(100, downloads)
	}
	if p.limit != downloads+moreDownloads {
		t.Errorf("with an idle link: %d", p.limit)
	}
	if got := step(2000, downloads); got != downloads+moreDownloads-1 {
		t.Errorf("busy again: %d", got)
	}
	if got := step(2000, besideOrigin); got != besideOrigin {
		t.Errorf("when a run from the origin begins: %d", got)
	}
}

// Where no scheduler says who, about two of a neighbourhood go to the origin at
// once, before neighbours have nothing left to give.
func TestVolunteersAreDrawn(t *testing.T) {
	const n, neighbours = 64, 9
	m := &Member{fl: &flight{plan: newPlan(piece.NewLayout(n * piece.MinLength))}, x: newExchange(n, 1), duty: piece.NewSet(n), imports: map[int]scheduler.PeerID{}}
	for i := range neighbours {
		has(m.x, string(rune('a'+i)), i)
	}
	now, drawn := time.Now(), 0
	draw := func() bool {
		now = now.Add(drawAfter)
		return m.draws(now)
	}
	for range 100 {
		if draw() {
			t.Fatal("volunteers while neighbours have enough to give")
		}
	}
	for i := range 2 {
		m.fl.plan.have.Add(i)
	}
	const times = 1000
	for range times {
		if draw() {
			drawn++
		}
		if m.draws(now) {
			t.Fatal("draws again at once")
		}
	}
	if want := times * volunteers / (neighbours + 1); drawn < want/2 || drawn > want*2 {
		t.Errorf("of %d times it volunteered %d, want about %d", times, drawn, want)
	}
	m.fl.plan.begin(n-1, n)
	for range 100 {
		if draw() {
			t.Fatal("volunteers while it fetches from the origin")
		}
	}
}
