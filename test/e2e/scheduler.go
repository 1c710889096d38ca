package e2e

import (
	"net"
	"testing"
)

// SchedulerConfig is how a shoal scheduler is started.
type SchedulerConfig struct {
	// Identity is what the scheduler proves itself by; nil is plaintext.
	Identity *Identity
	// Binary is what is started; empty is the one under test.
	Binary string
	// Extra flags come last.
	Extra []string
}

// Scheduler is a running `shoal scheduler`.
type Scheduler struct {
	program
	// Addr is where daemons reach it, host:port. It stays the same through
	// [Scheduler.Restart].
	Addr string

	node   *Node
	config SchedulerConfig
}

// StartScheduler runs a scheduler on the node until the end of the test, and
// returns when it is ready.
func (n *Node) StartScheduler(t testing.TB, config SchedulerConfig) *Scheduler {
	t.Helper()
	s := &Scheduler{node: n, config: config}
	s.Binary = config.Binary
	s.proc = startOnPorts(t, 2, func(ports []string) (*Process, error) {
		s.Addr = net.JoinHostPort(n.Addr, ports[0])
		s.Admin = net.JoinHostPort(n.Addr, ports[1])
		return s.start(t)
	})
	return s
}

func (s *Scheduler) start(t testing.TB) (*Process, error) {
	t.Helper()
	args := []string{"scheduler", "--listen", s.Addr, "--admin-listen", s.Admin}
	args = append(args, s.config.Identity.flags()...)
	args = append(args, s.config.Extra...)
	return s.run(t, s.node, 0, args...)
}

// Restart starts another scheduler in the place of one that has ended. It knows
// nothing of what that one knew.
func (s *Scheduler) Restart(t testing.TB) {
	t.Helper()
	proc, err := s.start(t)
	if err != nil {
		t.Fatal(err)
	}
	s.proc = proc
}
