package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Server owns one core. Make it with New, start it with Run, and hand it
// streams with Serve or Local.
type Server struct {
	cfg   Config
	log   *slog.Logger
	inbox chan mail
	query chan func(*scheduler.Core)
	tell  chan letter

	// stopped is closed when Run takes in no more.
	stopped chan struct{}

	// mu guards closing, that nobody enters streams once it is set, and
	// accounts.
	mu       sync.Mutex
	closing  bool
	streams  sync.WaitGroup
	accounts map[string]*account // by identity

	// What follows belongs to Run's goroutine.
	core     *scheduler.Core
	start    time.Time
	sessions map[scheduler.PeerID]*session
	dropped  []*session // to be told to the core as soon as it may be
}

// letter is a message for a daemon that is not the core's.
type letter struct {
	to  scheduler.PeerID
	msg any
}

// mail is what a session has for the owner of the core.
type mail struct {
	from   *session
	msgs   []scheduler.In
	attach chan error // set on the first
	detach bool       // set on the last
}

// New returns a server that does not run yet.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, log: cfg.Log,
		// Each session has at most one batch in it (session.read), and a
		// batch waits no longer for being in another queue.
		inbox:    make(chan mail, 64),
		query:    make(chan func(*scheduler.Core)),
		tell:     make(chan letter),
		stopped:  make(chan struct{}),
		core:     scheduler.New(*cfg.Core),
		sessions: map[scheduler.PeerID]*session{},
		accounts: map[string]*account{},
	}, nil
}

// Run carries messages between the streams and the core until ctx ends. Then
// it says goodbye to all daemons and returns when their streams have ended.
// It is to be called once.
func (s *Server) Run(ctx context.Context) error {
	s.start = time.Now()
	tick := time.NewTicker(s.cfg.Tick)
	defer tick.Stop()
	for ticks := 0; ; {
		select {
		case m := <-s.inbox:
			s.take(m)
		case ask := <-s.query:
			ask(s.core)
		case l := <-s.tell:
			s.post([]scheduler.Out{{To: l.to, Msg: l.msg}})
		case <-tick.C:
			s.post(s.core.Tick(s.now()))
			if ticks++; ticks%10 == 0 {
				s.findStuck()
				s.settleAccounts()
			}
		case <-ctx.Done():
			s.stop()
			return nil
		}
	}
}

func (s *Server) stop() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	close(s.stopped)
	for _, sess := range s.sessions {
		sess.end(errStopping)
	}
	s.streams.Wait()
}

// Stats returns the counts of the core, or zeros when the server has stopped.
func (s *Server) Stats(ctx context.Context) scheduler.Stats {
	return ask(ctx, s, (*scheduler.Core).Stats)
}

// Swarms returns the swarms in which most daemons want the blob, at most limit
// of them.
func (s *Server) Swarms(ctx context.Context, limit int) []scheduler.SwarmInfo {
	return ask(ctx, s, func(c *scheduler.Core) []scheduler.SwarmInfo { return c.Swarms(limit) })
}

// ask returns what the owner of the core answers, or nothing when the server
// has stopped.
func ask[T any](ctx context.Context, s *Server, f func(*scheduler.Core) T) (answer T) {
	reply := make(chan T, 1)
	select {
	case s.query <- func(c *scheduler.Core) { reply <- f(c) }:
		return <-reply
	case <-s.stopped:
	case <-ctx.Done():
	}
	return answer
}

// Tell sends a daemon a message that is not the core's. The error says that
// the server has stopped, or is ctx's; a daemon that is not there is none.
func (s *Server) Tell(ctx context.Context, to string, msg any) error {
	select {
	case s.tell <- letter{scheduler.PeerID(to), msg}:
		return nil
	case <-s.stopped:
		return errStopping
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Server) now() time.Duration { return time.Since(s.start) }

// take handles what one session has to say.
func (s *Server) take(m mail) {
	switch {
	case m.attach != nil:
		m.attach <- s.attach(m.from)
	case s.sessions[m.from.id] != m.from:
		// Of a session that was dropped or replaced.
	case m.detach:
		s.forget(m.from)
	default:
		for _, msg := range m.msgs {
			s.step(m.from, msg)
			if s.sessions[m.from.id] != m.from {
				break // this very message got it dropped
			}
		}
	}
	if m.from.taken != nil && m.attach == nil && !m.detach {
		m.from.taken <- struct{}{}
	}
}

// attach makes a session the one of its peer.
func (s *Server) attach(sess *session) error {
	old := s.sessions[sess.id]
	switch {
	case old != nil && !sess.proven && (old.proven || old.seen != sess.seen):
		// Without a certificate a name is whose it is first. A daemon that
		// moves waits until its old stream is found dead.
		return &Refusal{scheduler.ReasonRefused, "the name is in use from another address"}
	case old != nil && old.hello.Node.Name != "" && sess.hello.Node.Name == "":
		return &Refusal{scheduler.ReasonRefused, "a node of this name is connected: a pull beside it needs a certificate of its own"}
	case old == nil && len(s.sessions) >= s.cfg.MaxPeers:
		return &Refusal{scheduler.ReasonFull, "too many daemons"}
	case !s.core.Admits(sess.id, sess.hello.Identity):
		return &Refusal{scheduler.ReasonFull, "too many daemons with one certificate, or from one address"}
	}
	if old != nil {
		old.end(errReplaced)
	}
	s.sessions[sess.id] = sess
	// The core has no more peers than there are sessions, so it takes this
	// one.
	s.step(sess, sess.hello)
	if s.cfg.Jobs != nil {
		if old != nil {
			s.cfg.Jobs.Gone(string(sess.id))
		}
		s.register(sess)
	}
	s.log.Info("daemon connected", "peer", sess.id, "addr", sess.hello.Addr, "zone", sess.hello.Zone, "again", old != nil)
	return nil
}

// register makes a daemon known to the jobs. A member of swarms that says
// nothing of its node, such as a pull, is none.
func (s *Server) register(sess *session) {
	n := sess.hello.Node
	if n.Name == "" {
		return
	}
	if sess.proven {
		n.Name = string(sess.id)
	}
	name := s.cfg.Jobs.Connected(string(sess.id), jobs.Facts{
		Name: n.Name, Zone: sess.hello.Zone, Platform: n.Platform, Version: n.Version, Labels: n.Labels, Preheats: n.Preheats, Proven: sess.proven,
	})
	if name != n.Name {
		s.log.Warn("another daemon has the name of this node; status and jobs have this one under another name until that is gone: give each daemon a --node-name of its own",
			"node", n.Name, "as", name, "from", sess.seen)
		sess.queue.Push(&scheduler.Refused{Reason: scheduler.ReasonUnwanted})
	}
}

// forget tells the core that a session is over.
func (s *Server) forget(sess *session) {
	delete(s.sessions, sess.id)
	s.gone(sess)
	s.post(s.core.Step(s.now(), sess.id, scheduler.Bye{}))
	s.log.Info("daemon gone", "peer", sess.id, "cause", sess.cause())
}

func (s *Server) gone(sess *session) {
	if s.cfg.Jobs != nil {
		s.cfg.Jobs.Gone(string(sess.id))
	}
}

func (s *Server) step(sess *session, msg scheduler.In) {
	switch msg := msg.(type) {
	case jobs.Report:
		if s.cfg.Jobs != nil {
			s.cfg.Jobs.Report(string(sess.id), msg)
		}
		return
	case jobs.Vitals:
		if s.cfg.Jobs != nil {
			s.cfg.Jobs.Vitals(string(sess.id), msg)
		}
		return
	}
	s.post(s.core.Step(s.now(), sess.id, msg))
}

// post puts a core's messages into the daemons' queues. Daemons whose queue
// is full are dropped, which makes more messages; so it goes on until there
// are none.
func (s *Server) post(outs []scheduler.Out) {
	for {
		for _, out := range outs {
			sess := s.sessions[out.To]
			if sess == nil {
				continue
			}
			if !sess.push(out.Msg) {
				s.drop(sess, errNotReading)
			}
		}
		if len(s.dropped) == 0 {
			return
		}
		sess := s.dropped[0]
		s.dropped = s.dropped[1:]
		outs = s.core.Step(s.now(), sess.id, scheduler.Bye{})
	}
}

// drop ends a session now, whatever its stream does.
func (s *Server) drop(sess *session, why error) {
	delete(s.sessions, sess.id)
	s.gone(sess)
	s.dropped = append(s.dropped, sess)
	sess.end(why)
	s.log.Warn("daemon dropped", "peer", sess.id, "cause", why)
}

// findStuck drops daemons that have not read for too long.
func (s *Server) findStuck() {
	now := int64(s.now())
	for _, sess := range s.sessions {
		if since := sess.sending.Load(); since != 0 && now-since > int64(s.cfg.SendTimeout) {
			s.drop(sess, errNotReading)
		}
	}
	s.post(nil)
}
