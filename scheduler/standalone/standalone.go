package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/internal/connlimit"
	"github.com/shoalproject/shoal/internal/hostcheck"
	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/jobstore"
	"github.com/shoalproject/shoal/scheduler/server"
	"github.com/shoalproject/shoal/scheduler/wire"
	"github.com/shoalproject/shoal/systemd"
)

const (
	// adminConnections is how many connections there may be to the operator's
	// endpoints.
	adminConnections = 1024
	// writeStall is how long a client may take for 64 KiB of an answer.
	writeStall = 30 * time.Second
)

// Scheduler is one scheduler. Make it with New, run it with Run.
type Scheduler struct {
	cfg      Config
	log      *slog.Logger
	identity *mtls.Identity // nil without TLS
	server   *server.Server
	records  jobstore.Store
	jobs     *jobs.Manager
	guard    *api.Guard
	issuing  *issuing // nil without an issuer

	daemons net.Listener
	admin   net.Listener
	// stopping is set once the scheduler is told to stop: it is not ready
	// then.
	stopping atomic.Bool
}

// New opens the listeners of a scheduler. The error is a *ConfigError if a
// setting is wrong. What it opened, Run closes.
func New(cfg Config) (_ *Scheduler, err error) {
	identity, err := cfg.check()
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Scheduler{cfg: cfg, log: cfg.Logger, identity: identity}
	if s.guard, err = api.NewGuard(cfg.APITokenFile); err != nil {
		return nil, &ConfigError{"api-token-file", err}
	}
	if s.records, err = openRecords(cfg.JobStore, s.log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.records.Close()
		}
	}()
	core := jobs.DefaultConfig()
	if cfg.JobGrace > 0 {
		core.Grace = cfg.JobGrace
	}
	core.Credentials = identity != nil
	s.jobs = jobs.NewManager(jobs.ManagerConfig{
		Core: core, Store: s.records, Log: s.log,
		Send: func(ctx context.Context, to string, msg any) error { return s.server.Tell(ctx, to, msg) },
	})
	if s.server, err = server.New(server.Config{Log: s.log, Jobs: s.jobs}); err != nil {
		return nil, err
	}
	if s.daemons, err = cfg.listen("listen", cfg.Listen); err != nil {
		return nil, err
	}
	if s.admin, err = cfg.listen("admin-listen", cfg.AdminListen); err != nil {
		s.daemons.Close()
		return nil, err
	}
	if cfg.Issuer.Listen != "" {
		if s.issuing, err = newIssuing(cfg, identity); err != nil {
			s.daemons.Close()
			s.admin.Close()
			return nil, err
		}
	}
	return s, nil
}

func (c Config) listen(setting, addr string) (net.Listener, error) {
	if l := c.Sockets[setting]; l != nil {
		return l, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", setting, err)
	}
	return l, nil
}

// Addr returns the address that daemons connect to.
func (s *Scheduler) Addr() net.Addr { return s.daemons.Addr() }

// AdminAddr returns the address of the operator's endpoints.
func (s *Scheduler) AdminAddr() net.Addr { return s.admin.Addr() }

// Stats returns what the scheduler knows at the moment, or zeros when it has
// stopped or ctx ends.
func (s *Scheduler) Stats(ctx context.Context) scheduler.Stats { return s.server.Stats(ctx) }

// Run serves until ctx is done, then tells the daemons to go elsewhere, waits
// a few seconds at most for them to do so, and returns nil. It must be called
// once.
func (s *Scheduler) Run(ctx context.Context) error {
	back := s.adminServer()
	cfg := wire.ServeConfig{}
	if s.identity != nil {
		cfg.TLS = s.identity.Config(s.log)
	} else if tcp, ok := s.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		s.log.Warn("without --tls-cert, --tls-key and --tls-ca, everyone who reaches the scheduler may join any swarm", "listen", s.Addr())
	}
	s.log.Info("serving", "daemons", s.Addr(), "admin", s.AdminAddr(), "tls", s.identity != nil, "version", s.cfg.Version)

	defer s.records.Close()
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() {
		s.stopping.Store(true)
		s.log.Info("stopping")
	})
	group.Go(func() error {
		if err := connlimit.Listen(s.admin, adminConnections).Serve(back); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving %s: %w", s.admin.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		systemd.Attend(ctx, s.log, s.alive)
		return nil
	})
	// The one that says we are not ready ends last.
	group.Go(func() error {
		defer back.Close()
		swarms, ctx := errgroup.WithContext(ctx)
		swarms.Go(func() error { return s.server.Run(ctx) })
		swarms.Go(func() error { return s.jobs.Run(ctx) })
		if s.issuing != nil {
			swarms.Go(func() error { return s.issuing.run(ctx) })
		}
		swarms.Go(func() error {
			return wire.Serve(ctx, s.daemons, cfg, func(ctx context.Context, c *wire.Conn) error {
				return s.server.Serve(ctx, server.Remote{ID: c.ID, Names: c.Names, Seen: c.Seen, Identity: c.Identity}, c)
			})
		})
		return swarms.Wait()
	})
	return group.Wait()
}

// Reload takes the certificate as its files are now. Other settings need a
// restart.
func (s *Scheduler) Reload() {
	s.log.Info("reload: the certificate is read again if it has changed; other settings need a restart")
	if s.identity != nil {
		s.identity.Reload(s.log)
	}
}

// alive returns when the goroutine that owns the swarms has answered.
func (s *Scheduler) alive(ctx context.Context) error {
	s.server.Stats(ctx)
	return ctx.Err()
}

// adminServer returns the operator's HTTP server. No client wears it out:
// headers must come in time and be short.
func (s *Scheduler) adminServer() *http.Server {
	return &http.Server{
		Handler:           connlimit.Progress(hostcheck.Handler(s.adminHandler(), s.cfg.AdminHosts...), writeStall),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // no request has a body that matters
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}
