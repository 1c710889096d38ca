package main

import (
	"context"
	"sync"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/demo"
	"github.com/shoalproject/shoal/scheduler/standalone"
	"github.com/shoalproject/shoal/swarmtest"
)

// demoParts starts the parts of the demonstration's cluster in this process.
type demoParts struct{}

// loopback is for listeners of which nobody needs to know the port before.
const loopback = "127.0.0.1:0"

// running is something with a Run that ends with its context.
type running struct{ stop func() error }

func start(run func(context.Context) error) running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return running{sync.OnceValue(func() error {
		cancel()
		return <-done
	})}
}

func (r running) Stop() error { return r.stop() }

func (demoParts) Scheduler(addr string) (demo.Scheduler, error) {
	cfg := standalone.DefaultConfig()
	cfg.Listen, cfg.AdminListen = addr, loopback
	s, err := standalone.New(cfg)
	if err != nil {
		return nil, err
	}
	return demoScheduler{start(s.Run), s}, nil
}

type demoScheduler struct {
	running
	s *standalone.Scheduler
}

func (s demoScheduler) Addr() string { return s.s.Addr().String() }

func (s demoScheduler) Known(ctx context.Context) demo.Known {
	st := s.s.Stats(ctx)
	return demo.Known{Nodes: st.Peers, Blobs: st.Members, Banned: st.Bans}
}

func (demoParts) Node(c demo.NodeConfig) (demo.Node, error) {
	cfg := daemon.DefaultConfig()
	cfg.Listen, cfg.AdminListen, cfg.PeerListen = loopback, loopback, loopback
	cfg.NodeName, cfg.Schedulers = c.Name, []string{c.Scheduler}
	cfg.DataDir, cfg.CacheSize = c.Dir, c.CacheSize
	cfg.Registries, cfg.DefaultRegistry, cfg.Auth = []string{c.Upstream + "=" + c.Origin}, "", "open"
	cfg.OriginRate, cfg.DownloadRate, cfg.UploadRate = c.Rate, c.Rate, c.Rate
	cfg.ShutdownGrace = 0
	cfg.Logger = c.Log
	d, err := daemon.New(cfg)
	if err != nil {
		return nil, err
	}
	return demoNode{start(d.Run), d}, nil
}

type demoNode struct {
	running
	d *daemon.Daemon
}

func (n demoNode) Mirror() string { return n.d.MirrorAddr().String() }

func (n demoNode) Fetched() demo.Fetched {
	s := n.d.FetchStats()
	return demo.Fetched{Origin: s.OriginBytes, Peers: s.PeerBytes}
}

func (demoParts) Liar(c demo.LiarConfig) (demo.Liar, error) {
	cfg := swarmtest.Config{Kind: swarmtest.WrongBytes, Name: c.Name, Schedulers: []string{c.Scheduler}, Listen: loopback}
	for _, b := range c.Blobs {
		cfg.Blobs = append(cfg.Blobs, swarmtest.Blob(b))
	}
	l, err := swarmtest.New(cfg)
	if err != nil {
		return nil, err
	}
	return demoLiar{start(l.Run), l}, nil
}

type demoLiar struct {
	running
	*swarmtest.Liar
}
