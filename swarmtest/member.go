package swarmtest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// talk is a Liar towards the client of its schedulers.
type talk Liar

// Inventory lists what the liar holds, or says so.
func (t *talk) Inventory() []scheduler.Holding {
	var list []scheduler.Holding
	for _, b := range t.blobs {
		if b.member == nil {
			list = append(list, scheduler.Holding{Blob: scheduler.Digest(b.Digest), Size: b.Size})
		}
	}
	return list
}

// Reachable joins the swarms of what the liar wants, the first time that a
// scheduler is there.
func (t *talk) Reachable(yes bool) {
	t.mu.Lock()
	again := t.joined
	t.joined = t.joined || yes
	t.mu.Unlock()
	if again || !yes {
		return
	}
	if t.cfg.Kind != WrongSums {
		t.send(scheduler.Join{Blob: t.mark(), Size: 1})
	}
	for _, b := range t.blobs {
		if b.member != nil {
			t.group.Go(func() error { return b.member.run(t.ctx) })
		}
	}
}

// mark is a blob of which the liar is a member to get an answer: what was
// announced before has been heard then.
func (t *talk) mark() scheduler.Digest {
	return scheduler.Digest(digest.FromString("mark of " + t.cfg.Name))
}

// Rejoin says how things stand with a blob.
func (t *talk) Rejoin(d scheduler.Digest) (scheduler.Join, bool) {
	b := t.blobs[peer.InfoHashOf(digest.Digest(d))]
	if b == nil || b.member == nil {
		return scheduler.Join{}, false
	}
	return b.member.join(true), true
}

// Deliver hands a message of a scheduler to whom it concerns.
func (t *talk) Deliver(msg any) {
	var d scheduler.Digest
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		d = msg.Blob
		t.takenIn(d)
	case *scheduler.Assign:
		d = msg.Blob
	case *scheduler.Revoke:
		d = msg.Blob
	case *scheduler.Ban:
		t.log.Info("banned", "peer", msg.Peer, "for", msg.For)
	}
	if b := t.blobs[peer.InfoHashOf(digest.Digest(d))]; b != nil && b.member != nil {
		b.member.hear(msg)
	}
}

// takenIn notes that the scheduler has answered.
func (t *talk) takenIn(d scheduler.Digest) {
	if d == t.mark() {
		t.send(scheduler.Leave{Blob: d})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.taken {
		t.taken = true
		close(t.ready)
	}
}

func (t *talk) send(msg scheduler.In) {
	if err := t.client.Send(t.ctx, msg); err != nil && t.ctx.Err() == nil {
		t.log.Info("scheduler does not hear", "err", err)
	}
}

// member is a liar's part in the swarm of a blob that it says it wants.
type member struct {
	b    *blob
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu:
	have *piece.Set // said to be brought
	duty *piece.Set // assigned, and to be brought
	near []scheduler.Neighbour
}

// bringEvery is how long the liar takes to bring a piece, so that others are
// assigned some too, and what is true gets mixed with what is not.
const bringEvery = 20 * time.Millisecond

func newMember(b *blob) *member {
	n := b.layout.Count()
	return &member{b: b, wake: make(chan struct{}, 1), have: piece.NewSet(n), duty: piece.NewSet(n)}
}

func (m *member) join(again bool) scheduler.Join {
	m.mu.Lock()
	defer m.mu.Unlock()
	return scheduler.Join{
		Blob: scheduler.Digest(m.b.Digest), Size: m.b.Size, Have: m.have.Bytes(), Origin: true, Source: "liar", Again: again,
	}
}

// hear takes in what the scheduler says.
func (m *member) hear(msg any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		m.near = append(m.near, msg.Add...)
	case *scheduler.Assign:
		// From wherever: it is never fetched.
		for i := msg.Run.First; i < min(msg.Run.End(), m.duty.Len()); i++ {
			m.duty.Add(i)
		}
	case *scheduler.Revoke:
		for i := msg.Run.First; i < msg.Run.End(); i++ {
			m.duty.Remove(i)
		}
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run joins the swarm and brings what is assigned, until ctx ends.
func (m *member) run(ctx context.Context) error {
	l := m.b.liar
	swarm, err := l.endpoint.Open(peer.Blob{Digest: m.b.Digest, Size: m.b.Size, Content: m.b})
	if err != nil {
		return err
	}
	(*talk)(l).send(m.join(false))
	tick := time.NewTicker(bringEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.wake:
			m.greet(ctx, swarm)
		case <-tick.C:
			m.bring(swarm)
		case <-ctx.Done():
			return nil
		}
	}
}

// greet connects to neighbours that are new.
func (m *member) greet(ctx context.Context, swarm *peer.Swarm) {
	m.mu.Lock()
	near := slices.Clone(m.near)
	m.near = nil
	m.mu.Unlock()
	for _, n := range near {
		m.b.liar.group.Go(func() error {
			if _, err := swarm.Dial(ctx, n.Addr, string(n.Peer)); err != nil {
				m.b.liar.log.Debug("neighbour is not reached", "peer", n.Peer, "err", err)
			}
			return nil
		})
	}
}

// bring says that a piece has come.
func (m *member) bring(swarm *peer.Swarm) {
	m.mu.Lock()
	i := firstOf(m.duty)
	if i >= 0 {
		m.duty.Remove(i)
		m.have.Add(i)
	}
	m.mu.Unlock()
	if i < 0 {
		return
	}
	if err := swarm.Have(m.b.sums[i]); err != nil {
		m.b.liar.log.Error("lie cannot be told", "piece", i, "err", err)
	}
	(*talk)(m.b.liar).send(scheduler.Have{Blob: scheduler.Digest(m.b.Digest), Runs: []scheduler.Run{{First: i, Count: 1}}})
}

// firstOf returns the least of a set, or -1.
func firstOf(s *piece.Set) int {
	for i := range s.Len() {
		if s.Has(i) {
			return i
		}
	}
	return -1
}
