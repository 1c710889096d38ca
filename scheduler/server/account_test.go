package server

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// openAs opens a stream for a daemon of an identity. The error is what the
// server says of it.
func openAs(s *Server, id, identity string) (*Local, error) {
	l := &Local{
		up: make(chan []scheduler.In, localQueue), down: make(chan []any, localQueue),
		welcome: make(chan struct{}), done: make(chan struct{}),
	}
	l.up <- []scheduler.In{scheduler.Hello{Addr: "127.0.0.1:1"}}
	remote := Remote{ID: scheduler.PeerID(id), Identity: identity, Seen: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	go func() { l.close(s.Serve(context.Background(), remote, localServer{l})) }()
	select {
	case <-l.welcome:
		return l, nil
	case <-l.done:
		return nil, l.why
	}
}

func refusedAs(err error, why scheduler.Reason) bool {
	var refusal *Refusal
	return errors.As(err, &refusal) && refusal.Why == why
}

// An identity may have so many daemons and no more, under whatever names. Those
// of others get in all the same, and a daemon that comes back does.
func TestDaemonsOfOneIdentity(t *testing.T) {
	core := scheduler.DefaultConfig()
	core.IdentityPeers = 2
	s, _ := start(t, Config{Core: &core})
	for _, c := range []struct {
		id, identity string
		full         bool
	}{{"a", "x", false}, {"b", "x", false}, {"c", "x", true}, {"d", "y", false}, {"a", "x", false}, {"e", "x", true}} {
		l, err := openAs(s, c.id, c.identity)
		if (err != nil) != c.full || err != nil && !refusedAs(err, scheduler.ReasonFull) {
			t.Fatalf("%s of %s: %v, want full: %v", c.id, c.identity, err, c.full)
		}
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
	}
	if st := s.Stats(context.Background()); st.Peers != 3 || st.Identities != 2 {
		t.Errorf("there are %+v", st)
	}
}

// The daemons of one identity share a rate: many are read no faster than it
// says, and others are answered meanwhile.
func TestRateOfOneIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{IdentityRate: 100, IdentityBurst: 200})
		began := time.Now()
		done := make(chan struct{})
		const daemons, each = 10, 100
		for i := range daemons {
			l, err := openAs(s, string(rune('a'+i)), "x")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				defer func() { done <- struct{}{} }()
				batch := make([]scheduler.In, each)
				for j := range batch {
					batch[j] = scheduler.Leave{Blob: digest(0)}
				}
				batch[each-1] = scheduler.Join{Blob: digest(i), Size: 1}
				if err := l.Send(batch); err != nil {
					t.Error(err)
				}
				if _, err := l.Recv(); err != nil {
					t.Error(err)
				}
			}()
		}
		if took := answered(t, open(t, s, "honest"), 99); took > 0 {
			t.Errorf("another identity waited %v for its answer", took)
		}
		for range daemons {
			<-done
		}
		if took, least := time.Since(began), (daemons*each-200)*time.Second/100; took < least {
			t.Errorf("%d messages were read in %v, want at least %v", daemons*each, took, least)
		}
	})
}

// What an identity has sent and the core has not taken is bounded in bytes: one
// daemon too many is dropped.
func TestHeldByOneIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{Rate: 1, Burst: 1})
		large := make([]scheduler.In, 600)
		for i := range large {
			large[i] = scheduler.Have{Blob: digest(0), Runs: make([]scheduler.Run, 1000)}
		}
		if size := sizeOf(large...); size > maxHeld || 2*size < maxHeld {
			t.Fatalf("%d bytes are no good for this test", size)
		}
		var list []*Local
		for _, id := range []string{"a", "b"} {
			l, err := openAs(s, id, "x")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			list = append(list, l)
			// It uses up the rate, so that the next ones wait.
			if err := l.Send([]scheduler.In{scheduler.Leave{Blob: digest(0)}}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for _, l := range list {
			if err := l.Send(large); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		dropped := 0
		for _, l := range list {
			select {
			case <-l.done:
				dropped++
				if !refusedAs(l.why, scheduler.ReasonFull) {
					t.Errorf("dropped for %v", l.why)
				}
			default:
			}
		}
		if dropped != 1 {
			t.Errorf("%d daemons of two were dropped, want 1", dropped)
		}
	})
}

// What waits for the daemons of one identity is bounded in bytes: one is
// dropped that has much waiting, and one that reads is not.
func TestQueuedForOneIdentity(t *testing.T) {
	a := &account{}
	slow, quick := &session{account: a}, &session{account: a}
	for slow.count(fairQueued) {
		if !quick.count(100) || !quick.count(-100) {
			t.Fatal("the one that reads has no room")
		}
	}
	if n := a.queued.Load(); n <= maxQueued || n > maxQueued+fairQueued {
		t.Errorf("%d bytes wait, want just more than %d", n, maxQueued)
	}
	if !quick.count(100) {
		t.Error("the one that reads has no room")
	}
	slow.settle()
	slow.count(1000)
	quick.settle()
	if n := a.queued.Load(); n != 0 {
		t.Errorf("%d bytes are left of nobody", n)
	}
}

// An account is forgotten when nobody uses it, but not before a stranger could
// send more than its owner.
func TestAccountsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{IdentityRate: 10, IdentityBurst: 100})
		count := func() int {
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.accounts)
		}
		l, err := openAs(s, "a", "x")
		if err != nil {
			t.Fatal(err)
		}
		batch := make([]scheduler.In, 100)
		for i := range batch {
			batch[i] = scheduler.Leave{Blob: digest(0)}
		}
		if err := l.Send(batch); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		l.Close()
		time.Sleep(5 * time.Second) // of the bubble's time
		if n := count(); n != 1 {
			t.Errorf("%d accounts after 5 s, want 1", n)
		}
		time.Sleep(10 * time.Second)
		if n := count(); n != 0 {
			t.Errorf("%d accounts after 15 s, want none", n)
		}
	})
}
