package server

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire/outbox"
)

// Remote is who is at the other end of a stream.
type Remote struct {
	// ID is the name that the daemon claims.
	ID scheduler.PeerID
	// Names are those that it has proved, one of which it must claim; nil
	// where nothing is proved.
	Names []string
	// Seen is the address that it connects from.
	Seen netip.Addr
	// Identity is who answers for the daemon: see scheduler.Hello. Empty: it
	// answers for itself.
	Identity string
}

// Stream is a daemon's stream. Send and Recv are called by one goroutine each,
// Close by any.
type Stream interface {
	// Accept says that the daemon is known, and by what address. It comes
	// before the first Send.
	Accept(addr string) error
	// Recv returns the next messages in order, the first of which is Hello;
	// io.EOF when the daemon has closed the stream.
	Recv() ([]scheduler.In, error)
	// Send sends messages in order; it may wait for the daemon to read.
	Send(msgs []any) error
	// Close tells the daemon why the stream ends. Send and Recv return
	// soon after, even if they were waiting.
	Close(err error)
}

// A Refusal says why a daemon is not, or no longer, served.
type Refusal struct {
	Why    scheduler.Reason
	Detail string
}

func (r *Refusal) Error() string { return "scheduler: " + r.Why.String() + ": " + r.Detail }

// Reason returns Why: Refused and Invalid will not change by trying again.
func (r *Refusal) Reason() scheduler.Reason { return r.Why }

var (
	errStopping   = &Refusal{scheduler.ReasonUnreachable, "this scheduler stops"}
	errReplaced   = &Refusal{scheduler.ReasonUnwanted, "the daemon has connected anew"}
	errNotReading = &Refusal{scheduler.ReasonStalled, "the daemon does not read"}
	errTooMuch    = &Refusal{scheduler.ReasonFull, "too much at once with one certificate, or from one address"}
)

// maxSend is how many messages go into one Send.
const maxSend = 256

// session is one daemon's stream and what waits for it.
type session struct {
	id     scheduler.PeerID
	seen   netip.Addr
	proven bool
	hello  scheduler.Hello

	account *account

	// mu guards queued, the bytes in queue or being sent, and that it does
	// not grow once over is set.
	mu     sync.Mutex
	queued int64
	over   bool

	ctx   context.Context
	end   context.CancelCauseFunc
	queue *outbox.Queue[any]
	// taken gets one when the core has done what the session read last. So
	// each session has one batch waiting at most, and the core serves all
	// who have one in turn.
	taken chan struct{}
	// sending is when the Send in work began, by the server's clock; 0:
	// none is.
	sending atomic.Int64
}

func (s *session) cause() error { return context.Cause(s.ctx) }

// Serve serves one daemon until its stream ends, the server stops or drops it.
// The stream must be closed afterwards by who opened it. The error is a
// *Refusal when the server ended it, nil when the daemon did.
func (s *Server) Serve(ctx context.Context, remote Remote, stream Stream) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		stream.Close(errStopping)
		return errStopping
	}
	s.streams.Add(1)
	s.mu.Unlock()
	defer s.streams.Done()

	first, err := stream.Recv()
	if err != nil {
		stream.Close(err)
		return err
	}
	identity := remote.Identity
	if identity == "" {
		identity = "peer " + string(remote.ID)
	}
	account := s.open(identity)
	defer s.close(account)
	sess, err := s.admit(ctx, remote, account, first)
	if err != nil {
		stream.Close(err)
		s.log.Warn("daemon refused", "peer", remote.ID, "from", remote.Seen, "cause", err)
		return err
	}
	closed := make(chan struct{})
	context.AfterFunc(sess.ctx, func() {
		defer close(closed)
		stream.Close(sess.cause())
	})
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(sess, stream)
	}()
	err = s.read(sess, stream, first[1:])
	sess.end(err)
	<-closed
	<-written
	s.mail(sess, mail{from: sess, detach: true})
	sess.settle()
	if err = sess.cause(); errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// admit checks who a daemon says that it is and makes its session known.
func (s *Server) admit(ctx context.Context, remote Remote, account *account, first []scheduler.In) (*session, error) {
	if len(first) == 0 {
		return nil, &Refusal{scheduler.ReasonInvalid, "the stream does not begin with hello"}
	}
	hello, ok := first[0].(scheduler.Hello)
	switch {
	case !ok:
		return nil, &Refusal{scheduler.ReasonInvalid, "the stream does not begin with hello"}
	case remote.ID == "":
		return nil, &Refusal{scheduler.ReasonInvalid, "the daemon has no name"}
	case remote.Names != nil && !slices.Contains(remote.Names, string(remote.ID)):
		return nil, &Refusal{scheduler.ReasonRefused, "the daemon's certificate is not for the name that it claims"}
	}
	addr, err := reachable(hello.Addr, remote.Seen)
	if err != nil {
		return nil, err
	}
	hello.Addr = addr
	hello.Identity, hello.Proven = remote.Identity, remote.Names != nil
	sess := &session{
		id: remote.ID, seen: remote.Seen, proven: remote.Names != nil, hello: hello, account: account,
		queue: outbox.New[any](s.cfg.Queue), taken: make(chan struct{}, 1),
	}
	sess.ctx, sess.end = context.WithCancelCause(ctx)
	reply := make(chan error, 1)
	if !s.mail(sess, mail{from: sess, attach: reply}) {
		sess.end(errStopping)
		return nil, errStopping
	}
	select {
	case err = <-reply:
	case <-s.stopped:
		// It may have been taken in before; then stop ends it as well.
		err = errStopping
	}
	if err != nil {
		sess.end(err)
		return nil, err
	}
	return sess, nil
}

// mail hands something to the owner of the core, unless that has stopped.
func (s *Server) mail(sess *session, m mail) bool {
	select {
	case s.inbox <- m:
		return true
	case <-s.stopped:
		return false
	}
}

// read carries a daemon's messages to the core, as fast as it may send them
// and no faster than the core takes them.
func (s *Server) read(sess *session, stream Stream, msgs []scheduler.In) error {
	pace := rate.NewLimiter(rate.Limit(s.cfg.Rate), s.cfg.Burst)
	for {
		for _, msg := range msgs {
			if _, ok := msg.(scheduler.Hello); ok {
				return &Refusal{scheduler.ReasonInvalid, "hello is said once"}
			}
		}
		size := sizeOf(msgs...)
		if sess.account.held.Add(size) > maxHeld {
			sess.account.held.Add(-size)
			return errTooMuch
		}
		err := s.hand(sess, pace, msgs)
		sess.account.held.Add(-size)
		if err != nil {
			return err
		}
		msgs = nil // it may be long until there are others
		if msgs, err = stream.Recv(); err != nil {
			return err
		}
	}
}

// hand hands messages to the core, a few at a time, at the rate of the daemon
// and that of its identity.
func (s *Server) hand(sess *session, pace *rate.Limiter, msgs []scheduler.In) error {
	if len(msgs) == 0 {
		return nil
	}
	n := weight(msgs)
	if pace.WaitN(sess.ctx, min(n, s.cfg.Burst)) != nil || sess.account.pace.WaitN(sess.ctx, min(n, s.cfg.IdentityBurst)) != nil {
		return sess.cause()
	}
	for part := range slices.Chunk(msgs, atOnce) {
		select {
		case sess.account.turn <- struct{}{}:
		case <-sess.ctx.Done():
			return sess.cause()
		}
		err := s.deliver(sess, part)
		<-sess.account.turn
		if err != nil {
			return err
		}
	}
	return nil
}

// deliver returns when the core has taken messages in.
func (s *Server) deliver(sess *session, msgs []scheduler.In) error {
	if !s.mail(sess, mail{from: sess, msgs: msgs}) {
		return errStopping
	}
	select {
	case <-sess.taken:
		return nil
	case <-s.stopped:
		return errStopping
	}
}

// push puts a message into the session's queue, and reports whether it had
// room.
func (s *session) push(msg any) bool {
	if !s.count(sizeOf(msg)) {
		return false
	}
	return s.queue.Push(msg)
}

// count takes note that so many bytes more wait for the daemon, or fewer if n
// is negative. It reports whether they may.
func (s *session) count(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return true // nothing waits any more
	}
	s.queued += n
	return s.account.queued.Add(n) <= maxQueued || s.queued <= fairQueued
}

// settle takes note that nothing waits for the daemon any more.
func (s *session) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account.queued.Add(-s.queued)
	s.queued, s.over = 0, true
}

// weight is what messages count towards Config.Rate.
func weight(msgs []scheduler.In) int {
	n := len(msgs)
	for _, msg := range msgs {
		switch msg := msg.(type) {
		case scheduler.Have:
			n += pieces(msg.Runs)
		case scheduler.Missing:
			n += pieces(msg.Runs)
		case scheduler.Join:
			n += len(msg.Have) / 10
		case jobs.Report:
			n += len(msg.Layers) / 100
		}
	}
	return n
}

func pieces(runs []scheduler.Run) int {
	n := 0
	for _, r := range runs {
		n += min(r.Count, 1<<20)
	}
	return n / 100
}

// write carries what waits for a daemon to it.
func (s *Server) write(sess *session, stream Stream) {
	if err := s.send(sess, func() error { return stream.Accept(sess.hello.Addr) }); err != nil {
		sess.end(err)
		return
	}
	for {
		select {
		case <-sess.queue.Ready():
		case <-sess.ctx.Done():
			return
		}
		msgs := sess.queue.Take(maxSend)
		if len(msgs) == 0 {
			continue
		}
		err := s.send(sess, func() error { return stream.Send(msgs) })
		sess.count(-sizeOf(msgs...))
		if err != nil {
			sess.end(err)
			return
		}
	}
}

func (s *Server) send(sess *session, do func() error) error {
	sess.sending.Store(max(int64(time.Since(s.start)), 1))
	defer sess.sending.Store(0)
	return do()
}
