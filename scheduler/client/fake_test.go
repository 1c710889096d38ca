package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"

	"github.com/shoalproject/shoal/scheduler"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// fakes are schedulers that remember what they were told, by address.
type fakes struct {
	// mu guards what follows.
	mu      sync.Mutex
	down    map[string]bool
	mute    map[string]bool // does not answer
	opened  map[string]int
	streams map[string]*fakeStream
}

func newFakes() *fakes {
	return &fakes{down: map[string]bool{}, mute: map[string]bool{}, opened: map[string]int{}, streams: map[string]*fakeStream{}}
}

// fakeStream answers each Join with a Swarm. Fields but done belong to fakes.
type fakeStream struct {
	f    *fakes
	addr string
	msgs []scheduler.In
	out  chan []any
	done chan struct{}
	once sync.Once
}

func (f *fakes) open(_ context.Context, to Target, _ scheduler.Hello) (Stream, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened[to.Addr]++
	if f.down[to.Addr] {
		return nil, errors.New("down")
	}
	s := &fakeStream{f: f, addr: to.Addr, out: make(chan []any, 1000), done: make(chan struct{})}
	f.streams[to.Addr] = s
	return s, nil
}

func (f *fakes) set(m map[string]bool, addr string, v bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m[addr] = v
}

// kill ends the stream of a scheduler, which stays down.
func (f *fakes) kill(addr string) {
	f.set(f.down, addr, true)
	f.streams[addr].Close()
}

// told returns what was sent over the last stream to addr.
func (f *fakes) told(addr string) []scheduler.In {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.streams[addr]; s != nil {
		return append([]scheduler.In{}, s.msgs...)
	}
	return nil
}

func (s *fakeStream) Send(msgs []scheduler.In) error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.msgs = append(s.msgs, msgs...)
	for _, msg := range msgs {
		if j, ok := msg.(scheduler.Join); ok && !s.f.mute[s.addr] {
			s.out <- []any{&scheduler.Swarm{Blob: j.Blob, Size: j.Size}}
		}
	}
	return nil
}

func (s *fakeStream) Recv() ([]any, error) {
	select {
	case msgs := <-s.out:
		return msgs, nil
	case <-s.done:
		return nil, errors.New("closed")
	}
}

func (s *fakeStream) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// listener is a consumer.
type listener struct {
	holdings  []scheduler.Holding
	deliver   func(any)
	mu        sync.Mutex
	got       []any
	reachable []bool
}

func (l *listener) Inventory() []scheduler.Holding { return l.holdings }
func (l *listener) Rejoin(b scheduler.Digest) (scheduler.Join, bool) {
	return scheduler.Join{Blob: b, Size: 7, Have: []byte{0x80}}, true
}
func (l *listener) Deliver(msg any) {
	if l.deliver != nil {
		l.deliver(msg)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got = append(l.got, msg)
}
func (l *listener) Reachable(ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reachable = append(l.reachable, ok)
}

// start runs a client until the returned function is called.
func start(t *testing.T, cfg Config, l *listener) (*Client, func()) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = quiet
	}
	c, err := New(cfg, l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return c, func() {
		cancel()
		running.Wait()
	}
}
