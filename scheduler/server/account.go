package server

import (
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Bounds of what one identity has waiting in the server, in bytes.
const (
	// maxHeld bounds what its daemons have sent and the core has not taken.
	maxHeld = 16 << 20
	// maxQueued bounds what waits for its daemons. When it is reached, a
	// daemon is dropped that has more than fairQueued waiting.
	maxQueued  = 16 << 20
	fairQueued = 128 << 10
)

// atOnce is how many messages the core takes from one daemon before it is
// another's turn, turns how many daemons of one identity have a turn.
const atOnce, turns = 64, 2

// account is what the daemons of one identity share: however many they are,
// they are read no faster, and served no more often, than a few.
type account struct {
	daemons int // guarded by Server.mu
	pace    *rate.Limiter
	turn    chan struct{}
	held    atomic.Int64
	queued  atomic.Int64
}

// open returns the account of an identity. It must be closed.
func (s *Server) open(identity string) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[identity]
	if a == nil {
		a = &account{pace: rate.NewLimiter(rate.Limit(s.cfg.IdentityRate), s.cfg.IdentityBurst), turn: make(chan struct{}, turns)}
		s.accounts[identity] = a
	}
	a.daemons++
	return a
}

func (s *Server) close(a *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.daemons--
}

// settleAccounts forgets accounts that nobody uses, once their owners may send
// as much as strangers: else one could come back to send more.
func (s *Server) settleAccounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for identity, a := range s.accounts {
		if a.daemons == 0 && (a.pace.Tokens() >= float64(s.cfg.IdentityBurst) || len(s.accounts) > s.cfg.MaxPeers) {
			delete(s.accounts, identity)
		}
	}
}

// sizeOf returns about how many bytes of memory messages take, those from
// daemons or those for them.
func sizeOf[M any](msgs ...M) int64 {
	n := 0
	for _, msg := range msgs {
		n += 256
		switch msg := any(msg).(type) {
		case scheduler.Join:
			n += len(msg.Have) + len(msg.Source) + 16*len(msg.Bringing)
		case scheduler.Have:
			n += 16 * len(msg.Runs)
		case scheduler.Missing:
			n += 16 * len(msg.Runs)
		case scheduler.Hello:
			n += 128 * (len(msg.Inventory) + len(msg.Node.Labels))
		case jobs.Report:
			n += 128 * len(msg.Layers)
		case *scheduler.Swarm:
			n += 128*len(msg.Add) + 64*len(msg.Remove)
		case *scheduler.Ask:
			n += 16 * len(msg.Runs)
		case *jobs.Order:
			n += 4 << 10
		}
	}
	return int64(n)
}
