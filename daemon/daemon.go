package daemon

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
	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/internal/connlimit"
	"github.com/shoalproject/shoal/internal/hostcheck"
	"github.com/shoalproject/shoal/registry/origin"
	"github.com/shoalproject/shoal/systemd"
)

const (
	// adminConnections is how many connections there may be to the operator's
	// endpoints.
	adminConnections = 256
	// writeStall is how long an operator may take for 64 KiB of an answer.
	writeStall = 30 * time.Second
	// notReadyFor is how long the daemon says that it is not ready after it had
	// to turn a connection away.
	notReadyFor = 10 * time.Second
)

// Daemon is one node. Make it with New, run it with Run.
type Daemon struct {
	cfg    *settings
	log    *slog.Logger
	store  *store.Store
	client *origin.Client
	// anybody asks origins with no credential of any kind.
	anybody *origin.Client
	fetcher *fetch.Fetcher
	cluster *cluster // nil: the node is alone
	metrics *metrics
	// credentials is nil if no registry is asked in the node's own name.
	credentials *credentials
	pods        *precedence

	mirror net.Listener
	front  *connlimit.Listener // mirror, with its limit
	admin  net.Listener
	// stopping is set once the daemon is told to stop: it is not ready then.
	stopping atomic.Bool
}

// New opens the store and the listeners of a node. The error is a
// *ConfigError if a setting is wrong. What it opened, Run closes.
func New(cfg Config) (*Daemon, error) {
	s, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Daemon{cfg: s, log: s.Logger, pods: newPrecedence()}
	if err := d.open(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// hintShare is the part of the cache that one blob may take by the word of a
// manifest alone: one in twenty. For more, the origin has to say the size.
const hintShare = 20

func (d *Daemon) open() error {
	s := d.cfg
	var err error
	if d.credentials, err = newCredentials(s, d.log); err != nil {
		return err
	}
	if d.cluster, err = newCluster(s, d.log); err != nil {
		return err
	}
	storeConfig := store.Config{Dir: s.DataDir, MaxBytes: s.CacheSize, Logger: d.log}
	if d.cluster != nil {
		storeConfig.Removed = d.cluster.blobRemoved
	}
	if d.store, err = store.Open(storeConfig); err != nil {
		return err
	}
	if d.client, err = origin.New(origin.Config{
		Endpoints: s.endpoints, Credentials: d.credentials.of, Rate: limiter(s.OriginRate),
		UserAgent: "shoal/" + s.Version, Logger: d.log,
	}); err != nil {
		return err
	}
	if d.anybody, err = origin.New(origin.Config{Endpoints: s.bare(), UserAgent: "shoal/" + s.Version, Logger: d.log}); err != nil {
		return err
	}
	fetchConfig := fetch.Config{Logger: d.log, Flights: s.MaxDownloads, Proven: s.identity != nil, MaxHint: s.CacheSize / hintShare}
	if d.cluster != nil {
		fetchConfig.Cluster, fetchConfig.Name = d.cluster, string(d.cluster.id)
	}
	d.fetcher = fetch.New(fetchStore{d.store}, fetchConfig)
	if d.cluster != nil {
		d.cluster.take(d.store, d.fetcher)
		d.cluster.sharing.unfinished = d.unfinished
	}
	if d.mirror, err = s.listen("listen", s.Listen); err != nil {
		return err
	}
	if d.admin, err = s.listen("admin-listen", s.AdminListen); err != nil {
		return err
	}
	d.front = connlimit.Listen(d.mirror, s.MaxConnections)
	d.metrics = newMetrics(d)
	return nil
}

func (s *settings) listen(setting, addr string) (net.Listener, error) {
	if l := s.Sockets[setting]; l != nil {
		return l, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", setting, err)
	}
	return l, nil
}

// names are the names beside those of loopback by which a listener may be
// addressed over loopback.
func (s *settings) names(listen string) []string {
	host, _, _ := net.SplitHostPort(listen) // "" where it is all addresses
	return append([]string{host}, s.LocalHosts...)
}

// limiter returns a limit of n bytes per second, or none for 0.
func limiter(n int64) *rate.Limiter {
	if n == 0 {
		return nil
	}
	// A tenth of a second at once keeps the average without making it
	// bumpy; less than a read's worth would only cost wake-ups.
	return rate.NewLimiter(rate.Limit(n), int(max(n/10, 64<<10)))
}

func (d *Daemon) close() {
	for _, l := range []net.Listener{d.mirror, d.admin} {
		if l != nil {
			l.Close()
		}
	}
	if d.fetcher != nil {
		d.fetcher.Close()
	}
	if d.cluster != nil {
		d.cluster.close()
	}
	for _, c := range []*origin.Client{d.client, d.anybody} {
		if c != nil {
			c.Close()
		}
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("store does not close", "err", err)
		}
	}
}

// MirrorAddr returns the address of the mirror.
func (d *Daemon) MirrorAddr() net.Addr { return d.mirror.Addr() }

// PeerAddr returns the address for other nodes, or nil for a node that is
// alone.
func (d *Daemon) PeerAddr() net.Addr {
	if d.cluster == nil {
		return nil
	}
	return d.cluster.listener.Addr()
}

// AdminAddr returns the address of the operator's endpoints.
func (d *Daemon) AdminAddr() net.Addr { return d.admin.Addr() }

// FetchStats returns what was fetched and served so far.
func (d *Daemon) FetchStats() fetch.Stats { return d.fetcher.Stats() }

// Run serves until ctx is done, then lets responses finish within the grace
// period, keeps unfinished blobs for later, and returns nil. It must be called
// once.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.close()
	blobs := d.blobs()
	config := mirror.Config{
		Upstreams: d.cfg.upstreams,
		Origin:    blobs.origins,
		Blobs:     blobs,
		Auth:      d.cfg.authFor,
		TagTTL:    d.cfg.TagTTL,
		Logger:    d.log,
		Observe:   d.metrics.observe,

		RelayBasic: d.cfg.AllowBasicRelay, PermissionTTL: d.cfg.PermissionTTL,
		Offline: d.cfg.offline, OfflineFor: d.cfg.AuthOfflineFor,
	}
	if blobs.sharing != nil {
		config.Sharing = blobs.sharing
	}
	handler, err := mirror.New(config)
	if err != nil {
		return err
	}
	front := d.server(hostcheck.Handler(handler, d.cfg.names(d.cfg.Listen)...))
	back := d.server(connlimit.Progress(hostcheck.Handler(d.adminHandler(), d.cfg.names(d.cfg.AdminListen)...), writeStall))
	d.warn()
	d.log.Info("serving", "mirror", d.mirror.Addr(), "admin", d.admin.Addr(), "data_dir", d.cfg.DataDir,
		"auth", d.cfg.Auth, "registries", d.cfg.upstreams.Hosts(), "version", d.cfg.Version)

	// Peers and schedulers stay until the last response has gone out.
	cctx, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	working, quit := context.WithCancel(cctx)
	defer quit()
	group, ctx := errgroup.WithContext(ctx)
	if d.cluster != nil {
		d.cluster.preheats = newPreheater(working, d, handler)
		group.Go(func() error { return d.cluster.run(cctx) })
	}
	if k := d.cfg.keeper; k != nil {
		k.Log = d.log
		group.Go(func() error {
			k.Run(ctx)
			return nil
		})
	}
	group.Go(func() error {
		handler.Run(ctx)
		return nil
	})
	if d.credentials != nil {
		group.Go(func() error { return d.credentials.watch(ctx) })
	}
	group.Go(func() error { return serve(front, d.front) })
	group.Go(func() error { return serve(back, connlimit.Listen(d.admin, adminConnections)) })
	group.Go(func() error {
		systemd.Attend(ctx, d.log, d.alive)
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		d.stop(front, back)
		quit() // first, so that nothing counts as failed because the daemon stops
		d.fetcher.Close()
		leave()
		return nil
	})
	return group.Wait()
}

// Reload takes certificate and docker config as their files are now. Other
// settings need a restart.
func (d *Daemon) Reload() {
	d.log.Info("reload: certificate and docker config are read again if they have changed; other settings need a restart")
	if d.cfg.identity != nil {
		d.cfg.identity.Reload(d.log)
	}
	if d.credentials != nil {
		d.credentials.reload()
	}
}

// warn logs what lets more people read than an operator may think.
func (d *Daemon) warn() {
	switch {
	case d.cluster == nil && d.cfg.Sockets["peer-listen"] != nil:
		d.log.Warn("no scheduler is named, so the socket peer-listen is closed: nothing is shared with other nodes")
	case d.cluster == nil || d.cfg.identity != nil:
	case d.cfg.PeerPlaintextPrivate:
		d.log.Warn("everyone who reaches the peer port and knows a digest gets the blob, private ones too: set --tls-cert, --tls-key and --tls-ca, or take --peer-plaintext-private away", "peer_listen", d.PeerAddr())
	default:
		d.log.Warn("peers are not authenticated, so blobs that are not known to be public stay on this node: set --tls-cert, --tls-key and --tls-ca to share private images", "peer_listen", d.PeerAddr())
	}
	if loopback(d.mirror.Addr()) {
		return
	}
	for _, host := range d.cfg.upstreams.Hosts() {
		if auth := d.cfg.authFor(host); auth != mirror.Relay {
			d.log.Warn("everyone who reaches the mirror may read what it can get", "listen", d.mirror.Addr(), "registry", host, "auth", authNames[auth])
		}
	}
}

// stop ends the servers, the one that says we are not ready last.
func (d *Daemon) stop(front, back *http.Server) {
	d.stopping.Store(true)
	d.log.Info("stopping", "grace", d.cfg.ShutdownGrace)
	grace, cancel := context.WithTimeout(context.Background(), d.cfg.ShutdownGrace)
	defer cancel()
	if err := front.Shutdown(grace); err != nil {
		d.log.Warn("responses were cut short", "err", err)
		front.Close()
	}
	back.Close()
}

// alive asks the parts of the daemon for what they answer only when they are
// not stuck. A store that takes nothing is no reason for a restart.
func (d *Daemon) alive(ctx context.Context) error {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		d.health()
		d.fetcher.Stats()
		if d.cluster != nil {
			d.cluster.connected()
		}
	}()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("store, fetcher or cluster is stuck: %w", ctx.Err())
	}
}

// server returns an HTTP server that no client can wear out: headers must
// come in time and be short. What a body may take is up to the handler.
func (d *Daemon) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // no request has a body that matters
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10, // tokens of some registries take 10 KiB
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
}

func serve(s *http.Server, l *connlimit.Listener) error {
	if err := l.Serve(s); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	}
	return nil
}

func loopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
