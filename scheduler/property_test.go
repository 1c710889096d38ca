package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/piece"
)

// call is one thing that happens to a core.
type call struct {
	after time.Duration
	from  PeerID // "": a tick
	in    In
}

func drawCalls(t *rapid.T) []call {
	peers := []PeerID{"a", "b", "c", "d", "e", "f", "g", "h"}
	zones := []string{"", "east", "west"}
	identities := []string{"", "x", "y", "z"}
	proven := rapid.Bool().Draw(t, "proven")
	sizes := map[Digest][]int64{"A": {size("3")}, "B": {size("40")}, "C": {size("20")}}
	if rapid.Bool().Draw(t, "lies") {
		for i := range 6 {
			sizes["A"] = append(sizes["A"], size("3")+int64(i+1))
			sizes["C"] = append(sizes["C"], size("21")+int64(i)*piece.MinLength)
		}
	}
	blobs := []Digest{"A", "B", "C"}
	run := rapid.Custom(func(t *rapid.T) Run {
		return Run{rapid.IntRange(-1, 41).Draw(t, "first"), rapid.IntRange(0, 42).Draw(t, "count")}
	})
	one := rapid.Custom(func(t *rapid.T) call {
		c := call{
			after: time.Duration(rapid.IntRange(0, 900).Draw(t, "ms")) * time.Millisecond,
			from:  rapid.SampledFrom(peers).Draw(t, "peer"),
		}
		b := rapid.SampledFrom(blobs).Draw(t, "blob")
		size := rapid.SampledFrom(sizes[b]).Draw(t, "size")
		switch rapid.IntRange(0, 16).Draw(t, "kind") {
		case 0, 1:
			h := Hello{Addr: string(c.from), Zone: rapid.SampledFrom(zones).Draw(t, "zone")}
			h.Identity, h.Proven = rapid.SampledFrom(identities).Draw(t, "identity"), proven
			if rapid.IntRange(0, 3).Draw(t, "inventory") == 0 {
				h.Inventory = []Holding{{b, size}}
			}
			c.in = h
		case 2, 3, 4, 5:
			j := Join{Blob: b, Size: size, Origin: rapid.Bool().Draw(t, "origin"), Source: "s", Again: rapid.IntRange(0, 5).Draw(t, "again") == 0}
			if rapid.IntRange(0, 9).Draw(t, "sizeless") == 0 {
				j.Size = 0
			}
			if rapid.IntRange(0, 3).Draw(t, "partly") == 0 {
				j.Have = rapid.SliceOfN(rapid.Byte(), 0, 6).Draw(t, "have")
				j.Bringing = rapid.SliceOfN(run, 0, 2).Draw(t, "bringing")
			}
			c.in = j
		case 6, 7, 8:
			c.in = Have{Blob: b, Runs: rapid.SliceOfN(run, 0, 2).Draw(t, "runs")}
		case 9:
			c.in = Complete{Blob: b, Size: size}
		case 10:
			c.in = Sized{Blob: b, Size: size}
		case 11:
			c.in = GiveBack{Blob: b, Run: run.Draw(t, "run"), Reason: Reason(rapid.IntRange(0, 8).Draw(t, "reason")), RetryAfter: time.Second}
		case 12:
			c.in = Leave{Blob: b}
		case 13:
			c.in = Bye{}
		case 14:
			c.in = Report{Blob: b, Peer: rapid.SampledFrom(peers).Draw(t, "other"), Reason: Reason(rapid.IntRange(0, 8).Draw(t, "reason"))}
		case 15:
			c.in = Missing{Blob: b, Runs: rapid.SliceOfN(run, 0, 2).Draw(t, "runs")}
		case 16:
			c.from = ""
		}
		return c
	})
	var calls []call
	for _, id := range peers[:5] {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		who := rapid.SampledFrom(identities).Draw(t, "identity")
		calls = append(calls, call{from: id, in: Hello{Addr: string(id), Zone: zone, Identity: who, Proven: proven}})
	}
	return append(calls, rapid.SliceOfN(one, 50, 150).Draw(t, "calls")...)
}

// cluster is a core with peers that do as they are told, or nothing at all.
type cluster struct {
	core *Core
	now  time.Duration
	log  []string
}

func (k *cluster) call(c call) []Out {
	k.now += c.after
	var out []Out
	if c.from == "" {
		out = k.core.Tick(k.now)
	} else {
		out = k.core.Step(k.now, c.from, c.in)
	}
	for _, o := range out {
		k.log = append(k.log, fmt.Sprintf("%s %T %v", o.To, o.Msg, o.Msg))
	}
	return slices.Clone(out)
}

func newCluster() *cluster {
	cfg := DefaultConfig()
	// Small limits, so that eight peers reach them.
	cfg.Degree, cfg.MaxDegree, cfg.SmallPieces, cfg.SourceStreams = 3, 4, 4, 4
	return &cluster{core: New(cfg)}
}

// Whatever peers say, in whatever order: every piece has at most one live
// assignment per zone, what is wanted is held, assigned or assignable, links
// are mutual and bounded, and the books agree (see check).
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newCluster()
		for i, c := range drawCalls(t) {
			k.call(c)
			if err := check(k.core); err != nil {
				t.Fatalf("after call %d, %s %T%+v: %v", i, c.from, c.in, c.in, err)
			}
		}
	})
}

// Whatever peers say, no table grows beyond its budget, nor any identity
// beyond its share (see checkBudgets).
func TestBudgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := DefaultConfig()
		cfg.MaxPeers, cfg.MaxSwarms, cfg.MaxBlobs, cfg.AllPieces = 6, 5, 4, 90
		cfg.IdentityPeers, cfg.IdentityWants, cfg.IdentitySeeds, cfg.IdentityPieces = 3, 3, 2, 60
		k := &cluster{core: New(cfg)}
		for i, c := range drawCalls(t) {
			k.call(c)
			if err := check(k.core); err != nil {
				t.Fatalf("after call %d, %s %T%+v: %v", i, c.from, c.in, c.in, err)
			}
		}
	})
}

// The same calls give the same answers.
func TestDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		calls := drawCalls(t)
		a, b := newCluster(), newCluster()
		for _, c := range calls {
			a.call(c)
			b.call(c)
		}
		if !slices.Equal(a.log, b.log) {
			t.Fatalf("answers differ:\n%v\n%v", a.log, b.log)
		}
	})
}

// After any history, when peers do as they are told from then on, every piece
// that somebody wants comes into his zone, as long as somebody who wants the
// blob may ask the origin, or somebody holds it whole.
func TestNothingForgotten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newCluster()
		for _, c := range drawCalls(t) {
			k.call(c)
		}
		// A new one, who may ask, for each size of each blob.
		for _, blob := range []Digest{"A", "B", "C"} {
			for i, sw := range slices.Clone(k.core.blobs[blob]) {
				if sw.size > 0 {
					id := PeerID(fmt.Sprint("z", i))
					if k.core.peers[id] == nil {
						k.call(call{from: id, in: Hello{Zone: "west"}})
					}
					k.call(call{from: id, in: Join{Blob: blob, Size: sw.size, Origin: true, Source: "s"}})
				}
			}
		}
		for range 600 {
			for _, o := range k.call(call{after: 200 * time.Millisecond}) {
				k.obey(o)
			}
			k.progress()
		}
		for _, list := range k.core.blobs {
			for _, sw := range list {
				for _, r := range sw.rings {
					if l := r.ledger; l != nil && slices.ContainsFunc(l.state, func(s state) bool { return s != held }) {
						t.Fatalf("blob %s, zone %q: %s; %d seeds", sw.blob, r.zone, describe(r), sw.seeds)
					}
				}
			}
		}
	})
}

// obey does what a message says, and what the answers say.
func (k *cluster) obey(o Out) {
	switch m := o.Msg.(type) {
	case *Assign:
		for _, next := range k.call(call{from: o.To, in: Have{Blob: m.Blob, Runs: []Run{m.Run}}}) {
			k.obey(next)
		}
	}
}

// progress has all peers bring in what they were assigned before.
func (k *cluster) progress() {
	for _, id := range slices.Sorted(maps.Keys(k.core.peers)) {
		for _, m := range slices.Clone(k.core.peers[id].list) {
			if m.gone || m.ring.ledger == nil || m.complete {
				continue
			}
			var runs []Run
			l := m.ring.ledger
			for q := m.head; q >= 0; q = l.next[q] {
				if l.state[q] == assigned {
					runs = append(runs, Run{int(q), 1})
				}
			}
			if len(runs) == 0 {
				continue
			}
			for _, o := range k.call(call{from: id, in: Have{Blob: m.swarm.blob, Runs: runs}}) {
				k.obey(o)
			}
		}
	}
}

// A new core that hears from every peer what it has and what it is bringing
// knows what the old one knew: members, seeds, which pieces a zone has, and
// which are on their way from the origin.
func TestRebuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newCluster()
		for _, c := range drawCalls(t) {
			k.call(c)
		}
		old, fresh := k.core, newCluster()
		fresh.now = k.now
		var ids []PeerID
		for id := range old.peers {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		ids = rapid.Permutation(ids).Draw(t, "order")
		// Seeds first: whether a zone's pieces are dealt out depends on
		// whether it has any, and one that joins before them deals.
		for _, id := range ids {
			p := old.peers[id]
			h := Hello{Addr: p.addr, Zone: p.zone}
			for _, m := range p.list {
				if m.complete {
					h.Inventory = append(h.Inventory, Holding{m.swarm.blob, m.swarm.size})
				}
			}
			fresh.call(call{from: id, in: h})
		}
		for _, id := range ids {
			for _, m := range old.peers[id].list {
				if !m.complete {
					fresh.call(call{from: id, in: rejoin(m)})
				}
			}
		}
		for blob, list := range old.blobs {
			for i, sw := range list {
				j := slices.IndexFunc(fresh.core.blobs[blob], func(other *swarm) bool { return other.size == sw.size })
				if j < 0 {
					t.Fatalf("blob %s, size %d (%d): not known any more", blob, sw.size, i)
				}
				compare(t, sw, fresh.core.blobs[blob][j])
			}
		}
	})
}

// rejoin is what a peer tells a new scheduler, as far as the old one knew.
func rejoin(m *member) Join {
	j := Join{Blob: m.swarm.blob, Size: m.swarm.size, Origin: m.origin, Source: m.src.name, Again: true}
	l := m.ring.ledger
	if l == nil {
		return j
	}
	j.Have = make([]byte, (m.swarm.n+7)/8)
	for p := m.head; p >= 0; p = l.next[p] {
		if l.state[p] == held {
			j.Have[p/8] |= 0x80 >> (p % 8)
		}
	}
	for _, s := range m.swarm.streams {
		if s.m == m {
			j.Bringing = append(j.Bringing, Run{s.next, s.left()})
		}
	}
	return j
}

func compare(t *rapid.T, old, fresh *swarm) {
	if old.members != fresh.members || old.wanters != fresh.wanters || old.seeds != fresh.seeds {
		t.Fatalf("blob %s: %d members, %d want, %d seeds; before %d, %d, %d", old.blob, fresh.members, fresh.wanters, fresh.seeds, old.members, old.wanters, old.seeds)
	}
	for _, r := range old.rings {
		// Where a seed is, every piece is held.
		if r.ledger == nil || len(r.roll[rollWant]) == 0 || len(r.roll[rollSeed]) > 0 {
			continue
		}
		i := slices.IndexFunc(fresh.rings, func(other *ring) bool { return other.zone == r.zone })
		l := fresh.rings[i].ledger
		if l == nil {
			if len(r.roll[rollSeed]) == 0 {
				t.Fatalf("blob %s, zone %q: nothing dealt; before %s", old.blob, r.zone, describe(r))
			}
			continue
		}
		for p := range old.n {
			was, is := r.ledger.state[p], l.state[p]
			owner := r.ledger.owner[p]
			// A seed's pieces need no owner.
			if was == held && is != held && !owner.complete {
				t.Fatalf("blob %s, zone %q, piece %d was held: now %s", old.blob, r.zone, p, describe(fresh.rings[i]))
			}
			if was != held && is == held {
				t.Fatalf("blob %s, zone %q, piece %d: held from nowhere", old.blob, r.zone, p)
			}
			// With a seed, the new core may well let it deal.
			stream := old.seeds == 0 && was == assigned && owner.origin && slices.ContainsFunc(old.streams, func(s *stream) bool {
				return s.m == owner && p >= s.next && p < s.end
			})
			if stream && (is != assigned || l.owner[p].peer.id != owner.peer.id) {
				t.Fatalf("blob %s, zone %q, piece %d was on its way to %s: now %s", old.blob, r.zone, p, owner.peer.id, describe(fresh.rings[i]))
			}
		}
	}
}
