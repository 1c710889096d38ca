package peer

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/piece"
)

// piped runs f in a bubble with its own clock, with an endpoint that holds
// src, and a script connected to it by a pipe.
func piped(t *testing.T, cfg Config, f func(e *Endpoint, s *script, src *content, ev events)) {
	synctest.Test(t, func(t *testing.T) {
		src := newContent(2*piece.MinLength + 5)
		ev := newEvents()
		e, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		open(t, e, src.blob(ev, src.have(0)))
		near, far := net.Pipe()
		defer far.Close()
		e.accept(near)
		f(e, newScript(t, far), src, ev)
	})
}

// A side that has nothing to say sends a keepalive every 30 s; one that says
// nothing for 75 s is gone.
func TestKeepAlive(t *testing.T) {
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		start := time.Now()
		keepalives := 0
		for {
			var m pp.Message
			s.nc.SetReadDeadline(time.Now().Add(time.Hour))
			if s.dec.Decode(&m) != nil {
				break
			}
			if m.Keepalive {
				keepalives++
			}
		}
		if d := time.Since(start); d < 74*time.Second || d > 77*time.Second || keepalives != 2 {
			t.Errorf("closed after %v and %d keepalives", d, keepalives)
		}
		ev.await(t, "closed")
	})
}

// pipeGreet is greet over a pipe, which holds nothing: what the endpoint says
// meanwhile has to be read.
func (s *script) pipeGreet(src *content) {
	s.pipeShake(src)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for range 4 { // introduction, bitfield, unchoke, sums
			s.next()
		}
	}()
	s.send(extended(0, introductionOf(int64(len(src.b)))), pp.Message{Type: pp.HaveAll}, pp.Message{Type: pp.Unchoke})
	<-read
	synctest.Wait()
}

func (s *script) pipeShake(src *content) {
	s.t.Helper()
	hash := InfoHashOf(src.digest)
	if _, err := pp.Handshake(context.Background(), s.nc, &hash, NewID(), reserved); err != nil {
		s.t.Fatal(err)
	}
}

// A handshake must be over in time, however it drips.
func TestSlowHandshake(t *testing.T) {
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		start := time.Now()
		for _, b := range []byte(pp.Protocol) {
			if _, err := s.nc.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second) // of the bubble's clock
		}
		if d := time.Since(start); d > 7*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

// So must all that comes before the peer is known, and every message.
func TestSlowMessage(t *testing.T) {
	for name, known := range map[string]bool{"introduction": false, "message": true} {
		t.Run(name, func(t *testing.T) {
			piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
				m := extended(numberHave, appendSums(nil, "somebody", src.all()...))
				if known {
					s.pipeGreet(src)
				} else {
					s.pipeShake(src)
					m = extended(0, introductionOf(int64(len(src.b))))
				}
				go func() {
					for {
						if _, err := s.next(); err != nil {
							return
						}
					}
				}()
				start := time.Now()
				for _, b := range must(m.MarshalBinary()) {
					if _, err := s.nc.Write([]byte{b}); err != nil {
						break
					}
					time.Sleep(time.Second)
				}
				if d := time.Since(start); d > 13*time.Second {
					t.Errorf("closed after %v", d)
				}
			})
		})
	}
}

// Progress tells to the second how long a source has been silent, and that it
// drips.
func TestProgress(t *testing.T) {
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		c := ev.await(t, "opened").conn
		time.Sleep(10 * time.Second) // idle is not stalled
		if _, stalled := c.Progress(); stalled != 0 {
			t.Errorf("idle connection is stalled for %v", stalled)
		}
		tr := must(c.Request(0, &collector{}))
		m := s.await(pp.Request)
		time.Sleep(time.Second)
		if n, stalled := c.Progress(); n != 0 || stalled != time.Second {
			t.Errorf("a second after the request: %d bytes, stalled for %v", n, stalled)
		}
		b := must(pp.Message{Type: pp.Piece, Piece: src.piece(0)[:m.Length]}.MarshalBinary())
		s.raw(b[:pieceHeader])
		for i := range 5 {
			s.raw(b[pieceHeader+i:][:1])
			synctest.Wait()
			if n, stalled := c.Progress(); n != int64(i+1) || stalled != 0 {
				t.Errorf("after byte %d: %d bytes, stalled for %v", i, n, stalled)
			}
			time.Sleep(time.Second)
		}
		tr.Cancel()
	})
}

// A peer that does not take a block in time is gone; so is one that stops in
// the middle of sending one.
func TestStuckPeer(t *testing.T) {
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		start := time.Now()
		s.send(request(0, 0, 1000)) // and reads nothing
		closed := <-ev
		for closed.kind != "closed" {
			closed = <-ev
		}
		if d := time.Since(start); d < 29*time.Second || d > 31*time.Second {
			t.Errorf("closed after %v: %v", d, closed.err)
		}
	})
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		tr := must(ev.await(t, "opened").conn.Request(0, &collector{}))
		s.await(pp.Request)
		start := time.Now()
		s.nc.SetReadDeadline(time.Time{})
		go func() { // it reads on, so that keepalives are no hindrance
			var m pp.Message
			for s.dec.Decode(&m) == nil {
				m = pp.Message{}
			}
		}()
		s.raw(must(pp.Message{Type: pp.Piece, Piece: src.piece(0)}.MarshalBinary())[:100])
		<-tr.Done()
		var lost *LostError
		if d := time.Since(start); d < 74*time.Second || d > 77*time.Second || !errors.As(tr.Err(), &lost) {
			t.Errorf("failed after %v with %v", d, tr.Err())
		}
	})
}

// Who trickles what was cancelled is gone after a minute; who answers each time
// within that stays, however often something is cancelled meanwhile.
func TestCancelledAnswer(t *testing.T) {
	cancel := func(s *script, c *Conn, i int) {
		tr := must(c.Request(i, &collector{}))
		s.await(pp.Request)
		tr.Cancel()
		s.await(pp.Cancel)
	}
	drain := func(s *script) {
		s.nc.SetReadDeadline(time.Time{})
		for m := (pp.Message{}); s.dec.Decode(&m) == nil; m = (pp.Message{}) {
		}
	}
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		cancel(s, ev.await(t, "opened").conn, 0)
		go drain(s)
		start := time.Now()
		m := must(pp.Message{Type: pp.Piece, Piece: src.piece(0)}.MarshalBinary())
		s.raw(m[:pieceHeader])
		for _, b := range m[pieceHeader:600] {
			if _, err := s.nc.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second) // of the bubble's clock, as all that follow
		}
		if d := time.Since(start); d < 59*time.Second || d > 62*time.Second {
			t.Errorf("closed after %v", d)
		}
		ev.await(t, "closed")
	})
	piped(t, Config{}, func(e *Endpoint, s *script, src *content, ev events) {
		s.pipeGreet(src)
		c := ev.await(t, "opened").conn
		cancel(s, c, 0)
		for i := range 4 {
			time.Sleep(40 * time.Second)
			cancel(s, c, (i+1)%2)
			s.send(pp.Message{Type: pp.Reject, Index: pp.Integer(i % 2), Length: piece.MinLength})
			synctest.Wait()
		}
		select {
		case <-c.Done():
			t.Errorf("closed: %v", c.reason())
		default:
		}
	})
}

// Limits of rates hold for both directions.
func TestRates(t *testing.T) {
	limit := func() *rate.Limiter { return rate.NewLimiter(64<<10, 64<<10) }
	for name, cfg := range map[string]Config{"upload": {Upload: limit()}, "download": {Download: limit()}} {
		t.Run(name, func(t *testing.T) {
			cfg.WriteTimeout = 2500 * time.Millisecond // the whole takes longer
			piped(t, cfg, func(e *Endpoint, s *script, src *content, ev events) {
				s.pipeGreet(src)
				start := time.Now()
				if cfg.Upload != nil {
					s.send(request(0, 0, 256<<10))
					s.await(pp.Piece)
				} else {
					tr := must(ev.await(t, "opened").conn.Request(0, &collector{}))
					s.await(pp.Request)
					s.send(pp.Message{Type: pp.Piece, Piece: src.piece(0)})
					<-tr.Done()
				}
				// 256 KiB, the first 64 of which are free.
				if d := time.Since(start); d < 2900*time.Millisecond || d > 4100*time.Millisecond {
					t.Errorf("256 KiB at 64 KiB/s took %v", d)
				}
			})
		})
	}
}

// A listener that is out of descriptors is asked again, ever less often, and
// serves on when it has some.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		l := &failingListener{fail: 5, accepted: make(chan struct{}), closed: make(chan struct{})}
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { done <- e.Serve(ctx, l) }()
		<-l.accepted
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

type failingListener struct {
	net.Listener
	fail     int
	accepted chan struct{}
	closed   chan struct{}
	once     sync.Once
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.fail--; l.fail >= 0 {
		return nil, errors.New("too many open files")
	}
	select {
	case <-l.accepted:
		<-l.closed
		return nil, net.ErrClosed
	default:
	}
	near, far := net.Pipe()
	far.Close()
	close(l.accepted)
	return near, nil
}

func (l *failingListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *failingListener) Addr() net.Addr { return &net.TCPAddr{} }
