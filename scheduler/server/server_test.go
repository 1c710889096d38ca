package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// start runs a server until the test ends.
func start(t *testing.T, cfg Config) (*Server, func()) {
	t.Helper()
	cfg.Log = quiet
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return s, stop
}

func open(t *testing.T, s *Server, id string) *Local {
	t.Helper()
	l, err := s.Local(context.Background(), scheduler.PeerID(id), scheduler.Hello{Addr: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func digest(i int) scheduler.Digest { return scheduler.Digest(fmt.Sprintf("sha256:%064x", i)) }

// answered joins a blob and returns how long the answer took.
func answered(t *testing.T, l *Local, i int) time.Duration {
	t.Helper()
	began := time.Now()
	if err := l.Send([]scheduler.In{scheduler.Join{Blob: digest(i), Size: 1}}); err != nil {
		t.Fatal(err)
	}
	for {
		msgs, err := l.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range msgs {
			if s, ok := msg.(*scheduler.Swarm); ok && s.Blob == digest(i) {
				return time.Since(began)
			}
		}
	}
}

// A daemon that sends all the time is read at its rate, and others are
// answered at once.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{Rate: 1000, Burst: 2000})
		flood := open(t, s, "flood")
		var sent int
		var flooding sync.WaitGroup
		flooding.Go(func() {
			batch := make([]scheduler.In, 100)
			for i := range batch {
				batch[i] = scheduler.Leave{Blob: digest(0)}
			}
			for flood.Send(batch) == nil {
				sent += len(batch)
			}
		})
		honest := open(t, s, "honest")
		began := time.Now()
		for i := range 50 {
			if took := answered(t, honest, i); took > 0 {
				t.Fatalf("an answer took %v", took)
			}
			time.Sleep(100 * time.Millisecond) // of the bubble's time
		}
		flood.Close()
		flooding.Wait()
		// What is on its way is not read yet.
		most := 2000 + 1000*time.Since(began).Seconds() + 100*(localQueue+2)
		if float64(sent) > most {
			t.Errorf("%d messages were read in %v, want at most %.0f", sent, time.Since(began), most)
		}
	})
}

// A daemon that does not read is dropped when its queue is full; its
// neighbours hear of that and go on.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{Queue: 64})
		silent, honest := open(t, s, "silent"), open(t, s, "honest")
		if err := silent.Send([]scheduler.In{scheduler.Join{Blob: digest(1), Size: 1}}); err != nil {
			t.Fatal(err)
		}
		for range 64 + (localQueue+2)*maxSend {
			answered(t, honest, 1) // is a message to its neighbour as well
		}
		synctest.Wait()
		if st := s.Stats(context.Background()); st.Peers != 1 {
			t.Errorf("there are %d peers, want the honest one", st.Peers)
		}
		answered(t, honest, 2)
		for {
			_, err := silent.Recv()
			if err == nil {
				continue
			}
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Why != scheduler.ReasonStalled {
				t.Errorf("the silent one hears %v", err)
			}
			return
		}
	})
}

// stuck is a stream whose Send never returns until it is closed.
type stuck struct {
	localServer
	sending chan struct{}
}

func (s stuck) Send([]any) error {
	close(s.sending)
	<-s.l.done
	return s.l.why
}

// A write that takes too long ends the stream, though little waits.
func TestStuckWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{SendTimeout: 5 * time.Second})
		l := &Local{up: make(chan []scheduler.In, 4), down: make(chan []any), welcome: make(chan struct{}), done: make(chan struct{})}
		l.up <- []scheduler.In{scheduler.Hello{Addr: ":1"}, scheduler.Join{Blob: digest(1), Size: 1}}
		began := time.Now()
		err := s.Serve(context.Background(), Remote{ID: "n", Seen: netip.MustParseAddr("10.0.0.1")}, stuck{localServer{l}, make(chan struct{})})
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Why != scheduler.ReasonStalled {
			t.Errorf("Serve: %v", err)
		}
		if took := time.Since(began); took < 5*time.Second || took > 8*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Who connects again takes the place of who was there; by the same name from
// elsewhere only with a certificate.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, Config{MaxPeers: 2})
		here, there := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		type end struct {
			l   *Local
			err chan error
		}
		connect := func(r Remote, hello scheduler.Hello) end {
			l := &Local{up: make(chan []scheduler.In, 4), down: make(chan []any, 4), welcome: make(chan struct{}), done: make(chan struct{})}
			l.up <- []scheduler.In{hello}
			e := end{l, make(chan error, 1)}
			go func() { e.err <- s.Serve(context.Background(), r, localServer{l}) }()
			synctest.Wait()
			return e
		}
		ended := func(e end) scheduler.Reason {
			select {
			case err := <-e.err:
				var refusal *Refusal
				if !errors.As(err, &refusal) {
					t.Errorf("ended by %v", err)
					return 0
				}
				return refusal.Why
			default:
				return 0
			}
		}
		hello := scheduler.Hello{Addr: ":4401"}
		first := connect(Remote{ID: "n", Seen: here}, hello)
		if why := ended(first); why != 0 {
			t.Fatalf("refused: %v", why)
		}
		if why := ended(connect(Remote{ID: "n", Seen: there}, hello)); why != scheduler.ReasonRefused {
			t.Errorf("a live name from elsewhere: %v", why)
		}
		second := connect(Remote{ID: "n", Seen: here}, hello)
		if why := ended(first); why != scheduler.ReasonUnwanted {
			t.Errorf("the one before: %v", why)
		}
		if st := s.Stats(context.Background()); st.Peers != 1 {
			t.Errorf("%d peers", st.Peers)
		}
		proven := connect(Remote{ID: "n", Names: []string{"m", "n"}, Seen: there}, hello)
		if why := ended(second); why != scheduler.ReasonUnwanted {
			t.Errorf("against a certificate: %v", why)
		}
		if why := ended(connect(Remote{ID: "n", Seen: here}, hello)); why != scheduler.ReasonRefused {
			t.Errorf("without one: %v", why)
		}
		for what, c := range map[string]struct {
			r    Remote
			h    scheduler.Hello
			want scheduler.Reason
		}{
			"another's name":      {Remote{ID: "x", Names: []string{"m", "n"}, Seen: here}, hello, scheduler.ReasonRefused},
			"no name at all":      {Remote{ID: "x", Names: []string{}, Seen: here}, hello, scheduler.ReasonRefused},
			"loopback from afar":  {Remote{ID: "x", Seen: here}, scheduler.Hello{Addr: "127.0.0.1:1"}, scheduler.ReasonInvalid},
			"metadata address":    {Remote{ID: "x", Seen: here}, scheduler.Hello{Addr: "169.254.169.254:80"}, scheduler.ReasonInvalid},
			"mapped loopback":     {Remote{ID: "x", Seen: here}, scheduler.Hello{Addr: "[::ffff:127.0.0.1]:1"}, scheduler.ReasonInvalid},
			"localhost from afar": {Remote{ID: "x", Seen: here}, scheduler.Hello{Addr: "localhost:1"}, scheduler.ReasonInvalid},
			"multicast":           {Remote{ID: "x", Seen: here}, scheduler.Hello{Addr: "224.0.0.1:1"}, scheduler.ReasonInvalid},
		} {
			if why := ended(connect(c.r, c.h)); why != c.want {
				t.Errorf("%s: %v, want %v", what, why, c.want)
			}
		}
		other := connect(Remote{ID: "o", Seen: here}, hello)
		if why := ended(connect(Remote{ID: "p", Seen: here}, hello)); why != scheduler.ReasonFull {
			t.Errorf("one too many: %v", why)
		}
		proven.l.Close()
		other.l.Close()
	})
}

func TestReachable(t *testing.T) {
	for _, c := range []struct{ advertised, seen, want string }{
		{":4401", "10.0.0.7", "10.0.0.7:4401"},
		{"0.0.0.0:4401", "10.0.0.7", "10.0.0.7:4401"},
		{"[::]:4401", "fd00::7", "[fd00::7]:4401"},
		{"10.9.9.9:1", "10.0.0.7", "10.9.9.9:1"},
		{"node-1.example:1", "10.0.0.7", "node-1.example:1"},
		{"127.0.0.1:1", "127.0.0.1", "127.0.0.1:1"},
	} {
		if got, err := reachable(c.advertised, netip.MustParseAddr(c.seen)); got != c.want || err != nil {
			t.Errorf("%s seen at %s: %s, %v", c.advertised, c.seen, got, err)
		}
	}
	for _, advertised := range []string{
		"127.0.0.1:1", "localhost:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "169.254.169.254:80", "[fe80::1]:1",
		"224.0.0.1:1", "255.255.255.255:1", "10.0.0.8",
	} {
		if got, err := reachable(advertised, netip.MustParseAddr("10.0.0.7")); err == nil {
			t.Errorf("%s seen at 10.0.0.7 is taken for %s", advertised, got)
		}
	}
}

// When the server stops, every stream ends with the reason, and none begins.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stop := start(t, Config{})
		var streams []*Local
		for i := range 20 {
			streams = append(streams, open(t, s, fmt.Sprint(i)))
		}
		stop()
		for _, l := range streams {
			var refusal *Refusal
			if _, err := l.Recv(); !errors.As(err, &refusal) || refusal.Why != scheduler.ReasonUnreachable {
				t.Errorf("a daemon hears %v", err)
			}
		}
		if _, err := s.Local(context.Background(), "late", scheduler.Hello{Addr: ":1"}); err == nil {
			t.Error("a stream was opened to a server that has stopped")
		}
		if st := s.Stats(context.Background()); st != (scheduler.Stats{}) {
			t.Errorf("Stats: %+v", st)
		}
	})
}
