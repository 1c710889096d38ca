package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/outbox"
)

// link is one scheduler. Its fields but target and cancel belong to Run's
// goroutine.
type link struct {
	target Target
	cancel context.CancelFunc
	conn   *conn // nil while not connected
	tried  bool
	outage *outage // nil while connected for good
}

// outage is what the log has been told of a scheduler that is away.
type outage struct {
	since time.Time
	tries int
	told  time.Time // when the last line was written
	// flaps says that a connection did not last: the next one is told only
	// when it has.
	flaps bool
}

// tellAgain is how long a scheduler stays away between two lines in the log.
const tellAgain = 5 * time.Minute

// conn is one stream to a scheduler.
type conn struct {
	stream Stream
	queue  *outbox.Queue[scheduler.In]
	ctx    context.Context
	end    context.CancelCauseFunc
	// sending is when the Send in work began, in Unix nanoseconds; 0: none.
	sending atomic.Int64
	// awaiting is when the first Join was sent after the scheduler had said
	// something. It belongs to Run's goroutine.
	awaiting time.Time
	began    time.Time
}

// event is something that happened to a link: its stream is up, is down (err
// is set), or brought messages.
type event struct {
	link *link
	conn *conn
	msgs []any
	err  error
}

var (
	errSilent  = errors.New("the scheduler does not answer")
	errStuck   = errors.New("the scheduler does not read")
	errRemoved = errors.New("the scheduler is not listed any more")
)

const (
	// stable is how long a stream lives that ends the doubling of the
	// back-off.
	stable = 10 * time.Second
	// refusedBackoff is how long a daemon waits that was refused for what it
	// is: that seldom changes.
	refusedBackoff = 30 * time.Second
	// maxSend is how many messages go into one Send.
	maxSend = 512
)

// run connects to one scheduler again and again.
func (c *Client) run(ctx context.Context, l *link) {
	attempt := 0
	for {
		conn, err := c.open(ctx, l)
		if err == nil {
			began := time.Now()
			err = c.carry(l, conn)
			if time.Since(began) >= stable {
				attempt = 0
			}
		}
		if ctx.Err() != nil || !c.happen(ctx, event{link: l, conn: conn, err: err}) {
			return
		}
		attempt++
		if !pause(ctx, c.backoff(attempt, err)) {
			return
		}
	}
}

func (c *Client) open(ctx context.Context, l *link) (*conn, error) {
	opening, cancel := context.WithTimeoutCause(ctx, c.cfg.DialTimeout, errSilent)
	defer cancel()
	hello := c.cfg.Hello
	hello.Inventory = nil
	stream, err := c.cfg.Open(opening, l.target, hello)
	if err != nil {
		return nil, err
	}
	conn := &conn{stream: stream, queue: outbox.New[scheduler.In](c.cfg.Queue), began: time.Now()}
	conn.ctx, conn.end = context.WithCancelCause(ctx)
	return conn, nil
}

// carry reads from a stream, and writes to it, until it ends.
func (c *Client) carry(l *link, conn *conn) error {
	closed := make(chan struct{})
	context.AfterFunc(conn.ctx, func() {
		defer close(closed)
		if err := conn.stream.Close(); err != nil {
			c.log.Debug("closing a stream", "scheduler", l.target.Addr, "error", err)
		}
	})
	written := make(chan struct{})
	go func() {
		defer close(written)
		conn.write()
	}()
	for up := c.happen(conn.ctx, event{link: l, conn: conn}); up; {
		msgs, err := conn.stream.Recv()
		if err != nil {
			conn.end(err)
			break
		}
		up = c.happen(conn.ctx, event{link: l, conn: conn, msgs: msgs})
	}
	<-closed
	<-written
	return context.Cause(conn.ctx)
}

func (conn *conn) write() {
	for {
		select {
		case <-conn.queue.Ready():
		case <-conn.ctx.Done():
			return
		}
		msgs := conn.queue.Take(maxSend)
		if len(msgs) == 0 {
			continue
		}
		conn.sending.Store(time.Now().UnixNano())
		err := conn.stream.Send(msgs)
		conn.sending.Store(0)
		if err != nil {
			// Recv knows better why, if the scheduler said why.
			if !pause(conn.ctx, time.Second) {
				return
			}
			conn.end(err)
			return
		}
	}
}

// happen tells Run's goroutine of an event, unless the context ends first.
func (c *Client) happen(ctx context.Context, e event) bool {
	select {
	case c.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// backoff returns how long to wait before the next attempt.
func (c *Client) backoff(attempt int, err error) time.Duration {
	most := c.cfg.MaxBackoff
	for d := c.cfg.MinBackoff; attempt > 1 && d < most; attempt-- {
		d *= 2
		if attempt == 2 {
			most = min(d, most)
		}
	}
	if attempt == 1 {
		most = min(c.cfg.MinBackoff, most)
	}
	if refused(err) {
		most = refusedBackoff
	}
	return most/2 + rand.N(most/2+1)
}

// refused reports whether a scheduler answered that it will not have this
// daemon, or not understand it.
func refused(err error) bool {
	var r interface{ Reason() scheduler.Reason }
	return errors.As(err, &r) && (r.Reason() == scheduler.ReasonRefused || r.Reason() == scheduler.ReasonInvalid)
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// expectAnswer notes that the scheduler has something to answer.
func (conn *conn) expectAnswer() {
	if conn.awaiting.IsZero() {
		conn.awaiting = time.Now()
	}
}

// tellLost logs that a scheduler was lost, or cannot be reached: once, and then
// every five minutes with the number of tries. A connection that does not last
// ends no outage: the first such is told, with its end, and no other.
func (c *Client) tellLost(l *link, err error) {
	now := time.Now()
	o := l.outage
	if o == nil {
		o = &outage{since: now}
		l.outage = o
	}
	o.tries++
	// A connection that did not last was told, if it was the first.
	if undone := l.conn != nil && !o.flaps; undone || o.tries == 1 {
		o.told, o.flaps = now, undone && o.tries > 1
		c.log.Warn("scheduler lost", "scheduler", l.target.Addr, "error", err)
		return
	}
	if now.Sub(o.told) < tellAgain {
		c.log.Debug("scheduler still away", "scheduler", l.target.Addr, "tries", o.tries, "error", err)
		return
	}
	o.told = now
	c.log.Warn("scheduler still away", "scheduler", l.target.Addr, "for", now.Sub(o.since).Round(time.Second), "tries", o.tries, "error", err)
}

// tellConnected logs that a scheduler is connected, which ends its outage if
// it lasts.
func (c *Client) tellConnected(l *link) {
	if o := l.outage; o == nil || !o.flaps {
		c.log.Info("scheduler connected", "scheduler", l.target.Addr)
	}
}

// endOutages ends the outage of each scheduler that has been connected for a
// while.
func (c *Client) endOutages() {
	for _, l := range c.links {
		if l.outage == nil || l.conn == nil || time.Since(l.conn.began) < stable {
			continue
		}
		if l.outage.flaps {
			c.log.Info("scheduler connected", "scheduler", l.target.Addr)
		}
		l.outage = nil
	}
}

// findSilent ends streams whose scheduler neither answers nor reads.
func (c *Client) findSilent() {
	now := time.Now()
	for _, l := range c.links {
		conn := l.conn
		if conn == nil {
			continue
		}
		if len(c.held) > 0 {
			// It may have answered, and is not heard.
			if !conn.awaiting.IsZero() {
				conn.awaiting = now
			}
			continue
		}
		if !conn.awaiting.IsZero() && now.Sub(conn.awaiting) > c.cfg.AnswerTimeout {
			conn.end(errSilent)
		}
		if since := conn.sending.Load(); since != 0 && now.UnixNano()-since > int64(c.cfg.SendTimeout) {
			conn.end(errStuck)
		}
	}
}
