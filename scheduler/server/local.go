package server

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"

	"github.com/shoalproject/shoal/scheduler"
)

// Local is a daemon's end of a stream to a scheduler in its own process. Its
// methods are those of a stream over the network.
type Local struct {
	up   chan []scheduler.In
	down chan []any

	welcome chan struct{}
	// done is closed when either end has closed the stream.
	done chan struct{}
	once sync.Once
	why  error // set before done is closed
}

// localQueue is how many batches wait each way, as a network would buffer.
const localQueue = 16

// Local opens a stream to s. The slices in messages are shared, not copied:
// neither end may change them afterwards. The context bounds the opening
// alone. The daemon must Close what it opened.
func (s *Server) Local(ctx context.Context, id scheduler.PeerID, hello scheduler.Hello) (*Local, error) {
	l := &Local{
		up: make(chan []scheduler.In, localQueue), down: make(chan []any, localQueue),
		welcome: make(chan struct{}), done: make(chan struct{}),
	}
	l.up <- []scheduler.In{hello}
	remote := Remote{ID: id, Seen: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	go func() {
		err := s.Serve(context.WithoutCancel(ctx), remote, localServer{l})
		l.close(err)
	}()
	select {
	case <-l.welcome:
		return l, nil
	case <-l.done:
		return nil, l.why
	case <-ctx.Done():
		l.Close()
		return nil, context.Cause(ctx)
	}
}

// Send sends messages in order. It waits while the scheduler does not read.
func (l *Local) Send(msgs []scheduler.In) error { return push(l, l.up, msgs) }

// Recv returns the next messages in order. The error is a *Refusal when the
// scheduler ended the stream.
func (l *Local) Recv() ([]any, error) { return pull(l, l.down) }

// Close ends the stream.
func (l *Local) Close() error {
	l.close(io.EOF)
	return nil
}

func (l *Local) close(why error) {
	l.once.Do(func() {
		if why == nil {
			why = io.EOF
		}
		l.why = why
		close(l.done)
	})
}

func push[T any](l *Local, c chan []T, msgs []T) error {
	select {
	case <-l.done:
		return l.why
	default:
	}
	select {
	case c <- msgs:
		return nil
	case <-l.done:
		return l.why
	}
}

func pull[T any](l *Local, c chan []T) ([]T, error) {
	select {
	case msgs := <-c:
		return msgs, nil
	default:
	}
	select {
	case msgs := <-c:
		return msgs, nil
	case <-l.done:
		return nil, l.why
	}
}

// localServer is the scheduler's end.
type localServer struct{ l *Local }

func (s localServer) Accept(string) error {
	select {
	case <-s.l.welcome:
		return errors.New("scheduler: accepted twice")
	default:
		close(s.l.welcome)
		return nil
	}
}
func (s localServer) Recv() ([]scheduler.In, error) { return pull(s.l, s.l.up) }
func (s localServer) Send(msgs []any) error         { return push(s.l, s.l.down, msgs) }
func (s localServer) Close(err error)               { s.l.close(err) }
