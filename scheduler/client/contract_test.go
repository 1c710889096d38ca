package client_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/server"
)

// Two daemons that join one blob are told of each other, and one of them to
// fetch it; what it brings is acknowledged by nobody, and taken over.
func TestJoin(t *testing.T) {
	contract(t, func(t *testing.T, over transport) {
		addr := over.addr(t)
		srv, _ := startScheduler(t, over, addr, server.Config{})
		a := startDaemon(t, over, "a", []string{addr}, nil)
		b := startDaemon(t, over, "b", []string{addr}, nil)
		a.waitReachable(t, true)
		b.waitReachable(t, true)
		blob := digest(1)
		a.join(t, scheduler.Join{Blob: blob, Size: 1000, Origin: true, Source: "hub/x"})
		a.wait(t, "an assignment", func() bool { _, ok := heard[*scheduler.Assign](a, nil); return ok })
		b.join(t, scheduler.Join{Blob: blob, Size: 1000, Origin: true, Source: "hub/x"})
		a.waitNeighbour(t, blob, "b")
		b.waitNeighbour(t, blob, "a")
		// Order is kept: who is told of a neighbour was told of the swarm.
		a.mu.Lock()
		if s, ok := a.got[0].(*scheduler.Swarm); !ok || s.Size != 1000 {
			t.Errorf("the first message is %+v", a.got[0])
		}
		a.mu.Unlock()
		if s := srv.Stats(context.Background()); s.Peers != 2 || s.Members != 2 {
			t.Errorf("the scheduler counts %+v", s)
		}
		// A daemon that goes away is no neighbour any more.
		a.stop()
		b.wait(t, "a to be removed", func() bool {
			_, ok := heard(b, func(s *scheduler.Swarm) bool { return slices.Contains(s.Remove, "a") })
			return ok
		})
	})
}

// An inventory that is longer than a message is known to the scheduler when
// the daemon is connected, and again to the one that replaces it.
func TestInventory(t *testing.T) {
	contract(t, func(t *testing.T, over transport) {
		const blobs = 3000
		addr := over.addr(t)
		srv, stop := startScheduler(t, over, addr, server.Config{})
		full := func(_ *client.Config, d *daemon) {
			for i := range blobs {
				d.inventory = append(d.inventory, scheduler.Holding{Blob: digest(i), Size: 1000})
			}
		}
		seed := startDaemon(t, over, "seed", []string{addr}, full)
		late := startDaemon(t, over, "late", []string{addr}, nil)
		seed.waitReachable(t, true)
		late.waitReachable(t, true)
		// The last is announced after all others.
		late.join(t, scheduler.Join{Blob: digest(blobs - 1), Size: 1000})
		late.waitNeighbour(t, digest(blobs-1), "seed")
		before := srv.Stats(context.Background())
		if before.Members != blobs+1 {
			t.Fatalf("the scheduler counts %+v", before)
		}
		stop()
		seed.waitReachable(t, false)
		late.waitReachable(t, false)
		late.forget()
		srv, _ = startScheduler(t, over, addr, server.Config{})
		late.waitReachable(t, true)
		late.waitNeighbour(t, digest(blobs-1), "seed")
		if after := srv.Stats(context.Background()); after != before {
			t.Errorf("the new scheduler counts %+v, the one before %+v", after, before)
		}
	})
}

// With no scheduler there, the daemon is told, and what it joins meanwhile is
// joined when one comes.
func TestNoScheduler(t *testing.T) {
	contract(t, func(t *testing.T, over transport) {
		addr := over.addr(t)
		d := startDaemon(t, over, "d", []string{addr}, nil)
		d.waitReachable(t, false)
		d.change(func() { d.joins[digest(1)] = scheduler.Join{Blob: digest(1), Size: 5} })
		if err := d.Send(context.Background(), scheduler.Join{Blob: digest(1), Size: 5}); !errors.Is(err, client.ErrUnreachable) {
			t.Errorf("Send without a scheduler: %v", err)
		}
		startScheduler(t, over, addr, server.Config{})
		d.waitReachable(t, true)
		d.wait(t, "the swarm", func() bool { _, ok := heard[*scheduler.Swarm](d, nil); return ok })
	})
}

// Of two schedulers each has its own blobs; when one dies the other has all,
// and when it returns each has its own again.
func TestFailOver(t *testing.T) {
	contract(t, func(t *testing.T, over transport) {
		const blobs = 40
		addrs := []string{over.addr(t), over.addr(t)}
		one, stop := startScheduler(t, over, addrs[0], server.Config{})
		two, _ := startScheduler(t, over, addrs[1], server.Config{})
		var daemons []*daemon
		for _, id := range []string{"a", "b"} {
			d := startDaemon(t, over, id, addrs, func(_ *client.Config, d *daemon) {
				if d.id == "b" {
					d.inventory = []scheduler.Holding{{Blob: digest(blobs), Size: 1000}, {Blob: digest(blobs + 1), Size: 1000}}
				}
			})
			d.waitReachable(t, true)
			daemons = append(daemons, d)
		}
		a, b := daemons[0], daemons[1]
		for i := range blobs {
			a.join(t, scheduler.Join{Blob: digest(i), Size: 1000})
			b.join(t, scheduler.Join{Blob: digest(i), Size: 1000})
		}
		all := func() {
			t.Helper()
			for i := range blobs {
				a.waitNeighbour(t, digest(i), "b")
				b.waitNeighbour(t, digest(i), "a")
			}
		}
		all()
		ctx := context.Background()
		first, second := one.Stats(ctx), two.Stats(ctx)
		if first.Members == 0 || second.Members == 0 || first.Members+second.Members != 2*blobs+2 {
			t.Fatalf("the schedulers count %+v and %+v", first, second)
		}

		a.forget()
		b.forget()
		stop()
		waitStats(t, two, func(s scheduler.Stats) bool { return s.Members == 2*blobs+2 })
		a.mu.Lock()
		moved := slices.Clone(a.rejoined)
		a.mu.Unlock()
		for _, blob := range moved {
			a.waitNeighbour(t, blob, "b")
		}

		one, _ = startScheduler(t, over, addrs[0], server.Config{})
		waitStats(t, one, func(s scheduler.Stats) bool { return s.Members == first.Members })
		waitStats(t, two, func(s scheduler.Stats) bool { return s.Members == second.Members })
		a.mu.Lock()
		defer a.mu.Unlock()
		if slices.Contains(a.reachable, false) {
			t.Errorf("a was told %v, while a scheduler was there all the time", a.reachable)
		}
	})
}

// waitStats asks a scheduler for its counts until they are as wanted.
func waitStats(t *testing.T, srv *server.Server, ok func(scheduler.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var s scheduler.Stats
	for ctx.Err() == nil {
		if s = srv.Stats(ctx); ok(s) {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("the scheduler counts %+v", s)
}
