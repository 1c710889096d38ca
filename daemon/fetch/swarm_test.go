package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// fakeCluster is a cluster of a scheduler that says nothing by itself. What a
// member sends is kept, and the test brings peers.
type fakeCluster struct {
	mu      sync.Mutex
	member  *Member
	sent    []scheduler.In
	accused []scheduler.PeerID
}

func (c *fakeCluster) Enter(_ digest.Digest, m *Member) (Swarm, error) {
	c.mu.Lock()
	c.member = m
	c.mu.Unlock()
	m.Reachable(true)
	return fakeSwarm{c}, nil
}

func (c *fakeCluster) Complete(digest.Digest, int64, bool) {}
func (c *fakeCluster) Accuse(_ digest.Digest, id scheduler.PeerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accused = append(c.accused, id)
}
func (c *fakeCluster) Fetching(bool)                             {}
func (c *fakeCluster) Known(digest.Digest) []scheduler.Neighbour { return nil }

// liarReports counts reports that a node lies.
func (c *fakeCluster) liarReports() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, msg := range c.sent {
		if r, ok := msg.(scheduler.Report); ok && r.Reason == scheduler.ReasonLiar {
			n++
		}
	}
	return n + len(c.accused)
}

type fakeSwarm struct{ c *fakeCluster }

func (s fakeSwarm) Send(_ context.Context, msg scheduler.In) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.c.sent = append(s.c.sent, msg)
}
func (s fakeSwarm) Open(int64, []Have, func() (PartialReader, error)) (Wire, error) {
	return fakeWire{}, nil
}
func (fakeSwarm) Seed(int64) {}
func (fakeSwarm) Leave()     {}

type fakeWire struct{}

func (fakeWire) Dial(context.Context, scheduler.Neighbour) error { return errors.New("nobody there") }
func (fakeWire) Have(Have)                                       {}
func (fakeWire) Publish(string, bool)                            {}

// fakePeer has a blob, of which it sends what sends says.
type fakePeer struct {
	id        scheduler.PeerID
	sends     []byte
	claims    []byte // the sums that it says are of this
	publisher string
	alien     bool
	choked    bool
	mu        sync.Mutex
	asked     int
	closed    bool
}

func (p *fakePeer) ID() scheduler.PeerID { return p.id }
func (p *fakePeer) Named() bool          { return !p.alien }
func (p *fakePeer) Party() string        { return string(p.id) }
func (p *fakePeer) String() string       { return "peer " + string(p.id) }
func (p *fakePeer) Request(i int, w io.Writer) (Transfer, error) {
	p.mu.Lock()
	p.asked++
	p.mu.Unlock()
	off, n := piece.NewLayout(int64(len(p.sends))).Span(i)
	_, err := w.Write(p.sends[off : off+n])
	return doneTransfer{err}, nil
}
func (p *fakePeer) Has(int) bool    { return true }
func (p *fakePeer) Choked() bool    { return p.choked }
func (p *fakePeer) Received() int64 { return 0 }
func (p *fakePeer) Unneeded()       {}
func (p *fakePeer) Close(error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
func (p *fakePeer) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// haves are all pieces, with the sums of what the peer claims to have.
func (p *fakePeer) haves() (list []Have) {
	l := piece.NewLayout(int64(len(p.claims)))
	for i := range l.Count() {
		off, n := l.Span(i)
		h := piece.NewHash()
		h.Write(p.claims[off : off+n])
		list = append(list, Have{Index: i, Sum: piece.Sum(h.Sum(nil)), Known: true, Publisher: p.publisher})
	}
	return list
}

type doneTransfer struct{ err error }

func (t doneTransfer) Done() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
func (t doneTransfer) Err() error { return t.err }
func (doneTransfer) Cancel()      {}

// swarmFixture is a fixture in a cluster.
type swarmFixture struct {
	*fixture
	cluster *fakeCluster
}

func newSwarmFixture(t *testing.T, size int, cfg Config) *swarmFixture {
	c := &fakeCluster{}
	cfg.Cluster, cfg.Name = c, "me"
	return &swarmFixture{newFixture(t, size, cfg), c}
}

// begin opens the blob, and connects peers to its download. The scheduler has told
// of those that are named.
func (f *swarmFixture) begin(peers ...*fakePeer) *Reader {
	f.t.Helper()
	r, err := f.Open(f.t.Context(), Request{Digest: f.digest, Source: f.origin, Size: int64(len(f.blob)), Whole: true, Proven: true})
	if err != nil {
		f.t.Fatal(err)
	}
	f.connect(peers...)
	return r
}

func (f *swarmFixture) connect(peers ...*fakePeer) {
	f.cluster.mu.Lock()
	m := f.cluster.member
	f.cluster.mu.Unlock()
	for _, p := range peers {
		m.Opened(p)
		m.Claimed(p, p.haves())
	}
}

func altered(b []byte, off int) []byte {
	c := bytes.Clone(b)
	c[off] ^= 1
	return c
}

// A piece that a peer sends with other bytes than its own sum is not committed, its
// sender is blamed and left, and reported only if its name is proved.
func TestPieceMustHaveTheSumOfItsSender(t *testing.T) {
	for _, proven := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newSwarmFixture(t, 2*MiB, Config{Proven: proven})
			liar := &fakePeer{id: "liar", claims: f.blob, sends: altered(f.blob, 9), publisher: "liar"}
			r := f.begin(liar)
			defer r.Close()
			synctest.Wait()
			if liar.requests() == 0 || r.flight.has(0, 1) {
				t.Errorf("asked %d times, wrong piece there: %v", liar.requests(), r.flight.has(0, 1))
			}
			honest := &fakePeer{id: "honest", claims: f.blob, sends: f.blob, publisher: "honest"}
			f.connect(honest)
			f.read(r, 0, r.Size())
			if !liar.closed || !f.bans.has("liar") || f.bans.has("honest") || f.Stats().Liars != 1 {
				t.Errorf("liar left: %v, kept away from: %v; %+v", liar.closed, f.bans.has("liar"), f.Stats())
			}
			want := 0
			if proven {
				want = 1
			}
			synctest.Wait()
			if got := f.cluster.liarReports(); got != want {
				t.Errorf("proven %v: %d reports", proven, got)
			}
		})
	}
}

// A stranger that no scheduler told of is not asked for anything.
func TestNothingIsAskedOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSwarmFixture(t, 2*MiB, Config{})
		noise := randomBytes(2*MiB + 1)[:2*MiB]
		strangers := []*fakePeer{
			{id: "", claims: noise, sends: noise},
			{id: "x", alien: true, claims: noise, sends: noise, publisher: "x"},
		}
		r := f.begin(strangers...)
		defer r.Close()
		f.read(r, 0, r.Size()) // from the origin, after a while
		for _, p := range strangers {
			if p.requests() > 0 {
				t.Errorf("%q was asked %d times", p.id, p.requests())
			}
		}
		if st := f.Stats(); st.Liars+st.PassedOn > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Who is blamed for a piece with a sum of its own that is not what the origin
// sends: always its sender, as the publisher where it named none, or one that did
// not say so itself.
func TestSenderIsBlamed(t *testing.T) {
	for _, c := range []struct {
		publisher string
		passedOn  bool
	}{
		{"sender", false}, {"", false}, {"me", false}, {"witness", false}, {"elsewhere", true},
	} {
		t.Run("published by "+c.publisher, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newSwarmFixture(t, 2*MiB, Config{Proven: true})
				wrong := altered(f.blob, 9)
				sender := &fakePeer{id: "sender", claims: wrong, sends: wrong, publisher: c.publisher}
				// The witness says what is right of all pieces, and sends nothing.
				witness := &fakePeer{id: "witness", claims: f.blob, sends: f.blob, publisher: "witness"}
				witness.choked = true
				r := f.begin(witness, sender)
				var got bytes.Buffer
				n, err := r.CopyRange(t.Context(), &got, 0, r.Size())
				if err == nil || n == r.Size() {
					t.Fatalf("a wrong body is complete: %d bytes, %v", n, err)
				}
				r.Close()
				synctest.Wait()
				f.readAll()
				st := f.Stats()
				if c.passedOn && (st.PassedOn != 1 || st.Liars != 0) || !c.passedOn && (st.Liars != 1 || st.PassedOn != 0) {
					t.Errorf("%+v", st)
				}
				if f.bans.has("sender") || f.bans.has("witness") || f.cluster.liarReports() > 0 {
					t.Error("one wrong piece is no proof of a lie")
				}
			})
		})
	}
}

// Only a node that published wrong pieces of two blobs is taken for a liar.
func TestConviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSwarmFixture(t, MiB, Config{Proven: true})
		self := provenance{"a", "a", "a"}
		relayed := provenance{"b", "c", "c"}
		one, two := digest.FromString("one"), digest.FromString("two")
		for _, d := range []digest.Digest{one, one, two} {
			f.blame(d, relayed, nil)
		}
		f.blame(one, self, nil)
		if f.bans.has("a") || len(f.cluster.accused) > 0 {
			t.Error("accused after one blob")
		}
		if f.bans.has("b") || !f.bans.has("c") {
			t.Error("of a relay, the sender alone is left, after the first time")
		}
		f.blame(two, self, nil)
		if !f.bans.has("a") || len(f.cluster.accused) != 1 || f.cluster.accused[0] != "a" {
			t.Errorf("not accused after two: %v", f.cluster.accused)
		}
		time.Sleep(banFor + time.Second)
		if f.bans.has("a") || f.bans.has("c") {
			t.Error("never forgiven")
		}
	})
}

// A range of a blob in flight has no bytes of peers, and comes from the origin in
// the end; a range that is asked for after a cut is refused.
func TestRangesHaveNoBytesOfPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSwarmFixture(t, 4*MiB, Config{Linger: time.Minute})
		wrong := altered(altered(f.blob, MiB+9), 3*MiB)
		half := &fakePeer{id: "half", claims: wrong, sends: wrong, publisher: "half"}
		r := f.begin()
		defer r.Close()
		haves := half.haves()
		f.cluster.mu.Lock()
		m := f.cluster.member
		f.cluster.mu.Unlock()
		m.Opened(half)
		m.Claimed(half, haves[:len(haves)/2]) // all but the end
		synctest.Wait()
		part, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin, Offset: MiB, Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer part.Close()
		var got bytes.Buffer
		if n, err := part.CopyRange(t.Context(), &got, MiB, 100); err == nil && !bytes.Equal(got.Bytes(), f.blob[MiB:MiB+100]) {
			t.Errorf("%d bytes, wrong ones", n)
		}
		if _, err := r.CopyRange(t.Context(), io.Discard, 0, r.Size()); !errors.Is(err, ErrDigest) {
			t.Fatalf("the whole: %v", err)
		}
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin, Offset: MiB, Proven: true}); !errors.Is(err, errCutShort) {
			t.Errorf("the rest of a body that was cut short: %v", err)
		}
		f.readAll()
	})
}

// handedBack counts the pieces that were, because their source does not bring them.
func (c *fakeCluster) handedBack() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, msg := range c.sent {
		if g, ok := msg.(scheduler.GiveBack); ok && g.Reason == scheduler.ReasonStalled {
			n += g.Run.Count
		}
	}
	return n
}

// down has the origin answer nothing.
func (f *swarmFixture) down() {
	f.origin.script = func(int, int64) behaviour { return behaviour{err: errors.New("origin is down")} }
}

// Pieces that the scheduler assigns from a node that this one keeps away from, or
// leaves for a wrong piece, come from other nodes, and no origin is needed.
func TestAssignedPiecesOfLiarComeFromOthers(t *testing.T) {
	for _, known := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newSwarmFixture(t, 2*MiB, Config{})
			f.down()
			liar := &fakePeer{id: "liar", claims: f.blob, sends: make([]byte, len(f.blob)), publisher: "liar"}
			honest := &fakePeer{id: "honest", claims: f.blob, sends: f.blob, publisher: "honest"}
			r := f.begin()
			defer r.Close()
			count := r.flight.plan.layout.Count()
			if known {
				f.Ban("liar", time.Minute)
			}
			assign := &scheduler.Assign{Run: scheduler.Run{Count: count}, From: scheduler.Neighbour{Peer: "liar"}}
			f.cluster.member.Tell(assign)
			f.connect(liar)
			synctest.Wait()
			// It may be assigned once more, before the scheduler knows better.
			f.cluster.member.Tell(assign)
			synctest.Wait()
			if back := f.cluster.handedBack(); back < count {
				t.Errorf("known %v: %d of %d pieces handed back", known, back, count)
			}
			f.connect(honest)
			began := time.Now()
			f.read(r, 0, r.Size())
			if took := time.Since(began); took > time.Second {
				t.Errorf("known %v: it took %v", known, took)
			}
		})
	}
}

// A reader of the whole that finds the kept blob rotten goes on with the bytes of
// peers, and needs no
// origin: its last piece is held back until all is verified.
func TestRottenBlobGoesOnFromPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSwarmFixture(t, 4*MiB, Config{})
		f.readAll()
		f.down()
		synctest.Wait()
		r := f.begin()
		defer r.Close()
		if !f.mem.Corrupt(f.digest, 2*MiB) {
			t.Fatal("nothing to corrupt")
		}
		honest := &fakePeer{id: "honest", claims: f.blob, sends: f.blob, publisher: "honest"}
		time.AfterFunc(time.Millisecond, func() { f.connect(honest) }) // the new download has begun
		began := time.Now()
		f.read(r, 0, r.Size())
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Where the scheduler assigns nothing and the origin is down, a member asks in the
// end the neighbours that the scheduler keeps for assigned pieces.
func TestReservedNeighboursHelpTheStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSwarmFixture(t, 2*MiB, Config{})
		f.down()
		r := f.begin()
		defer r.Close()
		f.cluster.member.Tell(&scheduler.Swarm{Add: []scheduler.Neighbour{{Peer: "seed", Reserved: true}}})
		seed := &fakePeer{id: "seed", claims: f.blob, sends: f.blob, publisher: "seed"}
		f.connect(seed)
		synctest.Wait()
		if n := seed.requests(); n > 0 {
			t.Errorf("%d pieces were asked at once of a reserved neighbour", n)
		}
		f.read(r, 0, r.Size())
	})
}
