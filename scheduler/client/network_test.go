package client_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/server"
	"github.com/shoalproject/shoal/scheduler/wire"
)

// proxy forwards connections until it is told to stop forwarding, when it
// keeps them open and swallows what comes.
type proxy struct {
	lis    net.Listener
	to     string
	frozen atomic.Bool
	group  sync.WaitGroup

	// mu guards what follows.
	mu     sync.Mutex
	conns  []net.Conn
	killed bool
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{lis: lis, to: to}
	p.group.Go(p.accept)
	t.Cleanup(func() {
		p.kill()
		p.group.Wait()
	})
	return p
}

// kill closes everything at once.
func (p *proxy) kill() {
	p.lis.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killed = true
	for _, c := range p.conns {
		c.Close()
	}
}

func (p *proxy) accept() {
	for {
		in, err := p.lis.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, in, out)
		if p.killed {
			in.Close()
			out.Close()
		}
		p.mu.Unlock()
		p.group.Go(func() { p.forward(in, out) })
		p.group.Go(func() { p.forward(out, in) })
	}
}

func (p *proxy) forward(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.frozen.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A scheduler that the network has cut off without a word is given up when it
// does not answer, and taken again when the network is back.
func TestPartition(t *testing.T) {
	over := &overGRPC{}
	addrs := []string{over.addr(t), over.addr(t)}
	one, _ := startScheduler(t, over, addrs[0], server.Config{})
	two, _ := startScheduler(t, over, addrs[1], server.Config{})
	wall := startProxy(t, addrs[0])
	reached := []string{wall.lis.Addr().String(), addrs[1]}
	d := startDaemon(t, over, "d", reached, func(c *client.Config, _ *daemon) {
		c.AnswerTimeout, c.DialTimeout = time.Second, time.Second
	})
	d.waitReachable(t, true)
	const blobs = 20
	for i := range blobs {
		d.join(t, scheduler.Join{Blob: digest(i), Size: 5})
	}
	waitStats(t, one, func(s scheduler.Stats) bool { return s.Members > 0 })
	waitStats(t, two, func(s scheduler.Stats) bool { return s.Members > 0 })
	wall.frozen.Store(true)
	for i := range blobs {
		d.join(t, scheduler.Join{Blob: digest(blobs + i), Size: 5})
	}
	waitStats(t, two, func(s scheduler.Stats) bool { return s.Members == 2*blobs })
	wall.frozen.Store(false)
	waitStats(t, two, func(s scheduler.Stats) bool { return s.Members < 2*blobs })
	waitStats(t, one, func(s scheduler.Stats) bool { return s.Members > 0 })
	ctx := context.Background()
	waitStats(t, one, func(s scheduler.Stats) bool { return s.Members+two.Stats(ctx).Members == 2*blobs })
}

// A scheduler that dies without a goodbye is replaced at once by the other, and
// by itself when it returns.
func TestKilled(t *testing.T) {
	over := &overGRPC{}
	addrs := []string{over.addr(t), over.addr(t)}
	startScheduler(t, over, addrs[0], server.Config{})
	two, _ := startScheduler(t, over, addrs[1], server.Config{})
	wall := startProxy(t, addrs[0])
	d := startDaemon(t, over, "d", []string{wall.lis.Addr().String(), addrs[1]}, nil)
	alone := startDaemon(t, over, "alone", []string{wall.lis.Addr().String()}, nil)
	d.waitReachable(t, true)
	alone.waitReachable(t, true)
	const blobs = 20
	for i := range blobs {
		d.join(t, scheduler.Join{Blob: digest(i), Size: 5})
	}
	wall.kill()
	waitStats(t, two, func(s scheduler.Stats) bool { return s.Members == blobs })
	alone.waitReachable(t, false)
}

// A node with a certificate of its own cannot speak for another.
func TestAnothersName(t *testing.T) {
	over := &overGRPC{ca: newAuthority(t)}
	addr := over.addr(t)
	srv, _ := startScheduler(t, over, addr, server.Config{})
	honest := startDaemon(t, over, "a", []string{addr}, nil)
	honest.waitReachable(t, true)
	stolen := &wire.Dialer{TLS: over.ca.config(t, "b"), Log: quiet}
	liar := startDaemon(t, over, "a", []string{addr}, func(c *client.Config, _ *daemon) {
		c.Open = func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
			return stolen.Open(ctx, to.Addr, to.ServerName, "a", hello)
		}
	})
	liar.waitReachable(t, false)
	if err := liar.Send(context.Background(), scheduler.Join{Blob: digest(1), Size: 5}); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("Send: %v", err)
	}
	honest.join(t, scheduler.Join{Blob: digest(1), Size: 5})
	honest.wait(t, "the swarm", func() bool { _, ok := heard[*scheduler.Swarm](honest, nil); return ok })
	if s := srv.Stats(context.Background()); s.Peers != 1 {
		t.Errorf("the scheduler counts %+v", s)
	}
}
