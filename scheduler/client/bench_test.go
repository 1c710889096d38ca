package client_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/server"
	"github.com/shoalproject/shoal/scheduler/wire"
)

// cpu returns the CPU time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inUse returns the bytes of heap and stacks in use.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkJoins has 1,000 daemons join one blob each time, over real
// connections, both ends in this process: what is counted is a join with all
// the messages that it causes, from end to end.
func BenchmarkJoins(b *testing.B) {
	const clients = 1000
	for _, local := range []bool{false, true} {
		name := map[bool]string{false: "grpc", true: "in process"}[local]
		b.Run(name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(context.Background())
			srv, err := server.New(server.Config{Log: quiet})
			if err != nil {
				b.Fatal(err)
			}
			var running sync.WaitGroup
			running.Go(func() { srv.Run(ctx) })
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			running.Go(func() {
				wire.Serve(ctx, lis, wire.ServeConfig{MaxConnsPerHost: clients}, func(ctx context.Context, c *wire.Conn) error {
					return srv.Serve(ctx, server.Remote{ID: c.ID, Seen: c.Seen}, c)
				})
			})
			defer running.Wait()
			defer cancel()

			type stream interface {
				Send([]scheduler.In) error
				Recv() ([]any, error)
				Close() error
			}
			before := inUse()
			var streams []stream
			var heard atomic.Int64
			answered := make(chan struct{}, clients)
			blob := func(n int) scheduler.Digest { return digest(n) }
			var round atomic.Int64
			for i := range clients {
				id, hello := scheduler.PeerID(fmt.Sprint("n", i)), scheduler.Hello{Addr: "127.0.0.1:1", Zone: "z"}
				var s stream
				if local {
					s, err = srv.Local(ctx, id, hello)
				} else {
					s, err = (&wire.Dialer{Log: quiet}).Open(ctx, lis.Addr().String(), "", id, hello)
				}
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				streams = append(streams, s)
				running.Go(func() {
					last := int64(-1)
					for {
						msgs, err := s.Recv()
						if err != nil {
							return
						}
						heard.Add(int64(len(msgs)))
						for _, msg := range msgs {
							if m, ok := msg.(*scheduler.Swarm); ok && last != round.Load() && m.Blob == blob(int(round.Load())) {
								last = round.Load()
								answered <- struct{}{}
							}
						}
					}
				})
			}
			memory := inUse() - before
			b.ResetTimer()
			began, used := time.Now(), cpu()
			for n := range b.N {
				round.Store(int64(n))
				for _, s := range streams {
					if err := s.Send([]scheduler.In{scheduler.Join{Blob: blob(n), Size: 256 << 20}}); err != nil {
						b.Fatal(err)
					}
				}
				for range streams {
					<-answered
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(memory)/1024/clients, "KiB/stream")
			joins := float64(b.N) * clients
			b.ReportMetric(float64((cpu()-used).Microseconds())/joins, "cpu-µs/join")
			b.ReportMetric((float64(heard.Load())+joins)/joins, "msgs/join")
			b.ReportMetric((float64(heard.Load())+joins)/time.Since(began).Seconds(), "msgs/s")
			cancel()
		})
	}
}
