package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

var (
	// ErrUnreachable: no scheduler is there now, or none is known yet. A
	// Join is remembered all the same; other messages are not needed then.
	ErrUnreachable = errors.New("no scheduler is reachable")
	// ErrFull: as many blobs are joined as may be.
	ErrFull = errors.New("too many blobs are joined")
	// ErrStopped: Run's context has ended.
	ErrStopped = errors.New("the scheduler client has stopped")
)

// Client is a daemon's side of the control plane. Make it with New and start
// it with Run; Send may be called by any goroutine.
type Client struct {
	cfg      Config
	places   []place
	consumer Consumer
	log      *slog.Logger

	commands   chan scheduler.In
	events     chan event
	targets    chan []Target
	deliveries chan delivery
	stopped    chan struct{}
	reachable  atomic.Bool
	joins      atomic.Int64 // len(joined)

	// unresolved is when the log was last told of a name that does not
	// resolve. It belongs to resolve's goroutine.
	unresolved map[string]time.Time

	// What follows belongs to Run's goroutine.
	ctx     context.Context
	group   *sync.WaitGroup
	links   map[Target]*link
	live    []*link // those that blobs belong to
	decided bool    // which they are is known
	spoken  bool    // the consumer knows whether there is one
	joined  map[scheduler.Digest]*membership
	held    []delivery   // waits for the consumer
	stalled scheduler.In // waits for room in a queue,
	at      *conn        // this one's
}

// membership is a blob that was joined.
type membership struct {
	owner *link
	sent  bool // some scheduler knows of it
}

// delivery is for the consumer: messages, or that reachability has changed.
type delivery struct {
	msgs      []any
	reachable bool
}

// New returns a client that does not run yet, or an error that names what is
// wrong in the configuration.
func New(cfg Config, consumer Consumer) (*Client, error) {
	cfg = cfg.withDefaults()
	if cfg.Open == nil {
		return nil, errors.New("scheduler client: no way to open a stream")
	}
	c := &Client{
		cfg: cfg, consumer: consumer, log: cfg.Log,
		commands: make(chan scheduler.In, 64), events: make(chan event), targets: make(chan []Target),
		deliveries: make(chan delivery), stopped: make(chan struct{}),
		links: map[Target]*link{}, joined: map[scheduler.Digest]*membership{},
		unresolved: map[string]time.Time{},
	}
	for _, s := range cfg.Schedulers {
		p, err := parsePlace(s)
		if err != nil {
			return nil, fmt.Errorf("scheduler %w", err)
		}
		c.places = append(c.places, p)
	}
	if len(c.places) == 0 {
		return nil, errors.New("scheduler client: no scheduler is named")
	}
	return c, nil
}

// Send hands a message to the scheduler that the blob belongs to, or to all if
// it is about none. It waits while that one does not read. It is not for Hello
// and Bye. The error is ErrUnreachable, ErrFull (both for a Join only),
// ErrStopped or the context's.
func (c *Client) Send(ctx context.Context, msg scheduler.In) error {
	_, join := msg.(scheduler.Join)
	if _, ok := blobOf(msg); !ok && !forAll(msg) {
		return fmt.Errorf("scheduler client: %T is not for sending", msg)
	}
	if join && c.joins.Load() >= int64(c.cfg.MaxBlobs) {
		return ErrFull
	}
	select {
	case <-c.stopped:
		return ErrStopped
	default:
	}
	select {
	case c.commands <- msg:
	case <-c.stopped:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if join && !c.reachable.Load() {
		return ErrUnreachable
	}
	return nil
}

// Run keeps the streams until ctx ends, and returns when they are closed and
// the consumer is not called any more. It is to be called once.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c.ctx, c.group = ctx, &sync.WaitGroup{}
	defer c.group.Wait()
	// Before the wait: the consumer may be in Send.
	defer close(c.stopped)
	defer cancel()
	c.group.Go(func() { c.deliver(ctx) })
	c.group.Go(func() { c.resolve(ctx) })
	watch := time.NewTicker(min(c.cfg.AnswerTimeout, c.cfg.SendTimeout) / 4)
	defer watch.Stop()
	first := time.NewTimer(c.cfg.DialTimeout)
	defer first.Stop()
	for {
		events, targets := c.events, c.targets
		commands := c.commands
		var deliveries chan delivery
		var next delivery
		if len(c.held) > 0 {
			events, targets = nil, nil
			deliveries, next = c.deliveries, c.held[0]
		}
		var room <-chan struct{}
		if c.stalled != nil {
			commands, room = nil, c.at.queue.Room()
		}
		select {
		case e := <-events:
			c.happened(e)
		case list := <-targets:
			c.retarget(list)
		case msg := <-commands:
			c.command(msg)
		case <-room:
			msg := c.stalled
			c.stalled, c.at = nil, nil
			c.command(msg)
		case deliveries <- next:
			c.held = c.held[1:]
		case <-watch.C:
			c.findSilent()
			c.endOutages()
		case <-first.C:
			c.decided = true
			c.settle()
		case <-ctx.Done():
			return nil
		}
	}
}

// deliver calls the consumer.
func (c *Client) deliver(ctx context.Context) {
	for {
		select {
		case d := <-c.deliveries:
			if d.msgs == nil {
				c.consumer.Reachable(d.reachable)
			}
			for _, msg := range d.msgs {
				c.consumer.Deliver(msg)
			}
		case <-ctx.Done():
			return
		}
	}
}

// command sends one message on its way, or keeps it when there is no room.
func (c *Client) command(msg scheduler.In) {
	blob, ok := blobOf(msg)
	if !ok {
		for _, l := range c.live {
			// What finds no room is lost: the next of its kind says it again.
			l.conn.queue.Push(msg)
		}
		return
	}
	m := c.joined[blob]
	_, join := msg.(scheduler.Join)
	if join && m == nil {
		m = &membership{owner: c.pick(c.live, blob)}
		c.joined[blob] = m
		c.count()
	}
	if owner := c.ownerOf(m, blob); owner != nil {
		if !owner.conn.queue.Push(msg) {
			c.stalled, c.at = msg, owner.conn
			return
		}
		if join {
			m.sent = true
			owner.conn.expectAnswer()
		}
	}
	switch msg.(type) {
	case scheduler.Leave, scheduler.Complete:
		// What is complete is announced with the inventory.
		delete(c.joined, blob)
		c.count()
	}
}

func (c *Client) count() { c.joins.Store(int64(len(c.joined))) }

// ownerOf returns the link that a blob belongs to, or nil.
func (c *Client) ownerOf(m *membership, blob scheduler.Digest) *link {
	if m != nil {
		return m.owner
	}
	return c.pick(c.live, blob)
}

// forAll reports whether a message is for every scheduler.
func forAll(msg scheduler.In) bool {
	switch msg.(type) {
	case jobs.Report, jobs.Vitals:
		return true
	}
	return false
}

// blobOf returns what blob a daemon's message is about.
func blobOf(msg scheduler.In) (scheduler.Digest, bool) {
	switch msg := msg.(type) {
	case scheduler.Join:
		return msg.Blob, true
	case scheduler.Have:
		return msg.Blob, true
	case scheduler.Complete:
		return msg.Blob, true
	case scheduler.Sized:
		return msg.Blob, true
	case scheduler.GiveBack:
		return msg.Blob, true
	case scheduler.Leave:
		return msg.Blob, true
	case scheduler.Report:
		return msg.Blob, true
	case scheduler.Missing:
		return msg.Blob, true
	}
	return "", false
}

// subject returns what blob a scheduler's message is about; none for Hold and
// Ban.
func subject(msg any) scheduler.Digest {
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		return msg.Blob
	case *scheduler.Assign:
		return msg.Blob
	case *scheduler.Revoke:
		return msg.Blob
	case *scheduler.Ask:
		return msg.Blob
	case *scheduler.Probe:
		return msg.Blob
	case *scheduler.Refused:
		return msg.Blob
	}
	return ""
}
