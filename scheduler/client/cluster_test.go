package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/server"
	"github.com/shoalproject/shoal/scheduler/wire"
)

// patience is how long a test waits for what must happen. No test depends on
// how long it does take.
const patience = 20 * time.Second

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// transport is a way from daemons to schedulers. The contract holds for all.
type transport interface {
	// serve runs a scheduler at an address until ctx ends.
	serve(t *testing.T, ctx context.Context, addr string, srv *server.Server, done func())
	// open is the Config.Open of the daemon with that name.
	open(id scheduler.PeerID) func(context.Context, client.Target, scheduler.Hello) (client.Stream, error)
	// addr returns a new address for a scheduler.
	addr(t *testing.T) string
}

// inProcess is the transport of a daemon with its scheduler embedded.
type inProcess struct {
	mu    sync.Mutex
	n     int
	there map[string]*server.Server
}

func (p *inProcess) addr(*testing.T) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	return fmt.Sprintf("local:%d", p.n)
}

func (p *inProcess) serve(t *testing.T, ctx context.Context, addr string, srv *server.Server, done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.there == nil {
		p.there = map[string]*server.Server{}
	}
	p.there[addr] = srv
	go func() {
		defer done()
		<-ctx.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.there[addr] == srv {
			delete(p.there, addr)
		}
	}()
}

func (p *inProcess) open(id scheduler.PeerID) func(context.Context, client.Target, scheduler.Hello) (client.Stream, error) {
	return func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
		p.mu.Lock()
		srv := p.there[to.Addr]
		p.mu.Unlock()
		if srv == nil {
			return nil, fmt.Errorf("nobody is at %s", to.Addr)
		}
		return srv.Local(ctx, id, hello)
	}
}

// overGRPC is the transport of all others.
type overGRPC struct{ ca *authority }

func (g *overGRPC) addr(t *testing.T) string {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func (g *overGRPC) serve(t *testing.T, ctx context.Context, addr string, srv *server.Server, done func()) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := wire.ServeConfig{Grace: time.Second}
	if g.ca != nil {
		cfg.TLS = g.ca.config(t, "scheduler", "127.0.0.1")
	}
	go func() {
		defer done()
		err := wire.Serve(ctx, lis, cfg, func(ctx context.Context, c *wire.Conn) error {
			return srv.Serve(ctx, server.Remote{ID: c.ID, Names: c.Names, Seen: c.Seen, Identity: c.Identity}, c)
		})
		if err != nil {
			t.Error(err)
		}
	}()
}

func (g *overGRPC) open(id scheduler.PeerID) func(context.Context, client.Target, scheduler.Hello) (client.Stream, error) {
	d := wire.Dialer{Log: quiet}
	if g.ca != nil {
		d.TLS = g.ca.config(nil, string(id))
	}
	return func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
		return d.Open(ctx, to.Addr, to.ServerName, id, hello)
	}
}

// contract runs a test over each transport.
func contract(t *testing.T, test func(t *testing.T, over transport)) {
	t.Run("in process", func(t *testing.T) { test(t, &inProcess{}) })
	t.Run("grpc", func(t *testing.T) { test(t, &overGRPC{}) })
	t.Run("grpc with tls", func(t *testing.T) { test(t, &overGRPC{ca: newAuthority(t)}) })
}

// startScheduler runs a scheduler at addr until the returned function is
// called.
func startScheduler(t *testing.T, over transport, addr string, cfg server.Config) (*server.Server, func()) {
	t.Helper()
	cfg.Log = quiet
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Add(1)
	over.serve(t, ctx, addr, srv, running.Done)
	running.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return srv, stop
}

// daemon is a consumer that remembers what it was told.
type daemon struct {
	*client.Client
	id   scheduler.PeerID
	stop func()

	// mu guards what follows; changed is signalled with each change.
	mu        sync.Mutex
	changed   *sync.Cond
	inventory []scheduler.Holding
	joins     map[scheduler.Digest]scheduler.Join
	rejoined  []scheduler.Digest
	got       []any
	reachable []bool
}

func startDaemon(t *testing.T, over transport, id string, schedulers []string, change func(*client.Config, *daemon)) *daemon {
	t.Helper()
	d := &daemon{id: scheduler.PeerID(id), joins: map[scheduler.Digest]scheduler.Join{}}
	d.changed = sync.NewCond(&d.mu)
	cfg := client.Config{
		Schedulers: schedulers, Hello: scheduler.Hello{Addr: "127.0.0.1:4401"}, Open: over.open(d.id), Log: quiet,
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	}
	if change != nil {
		change(&cfg, d)
	}
	c, err := client.New(cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	d.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	d.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	d.changed.Broadcast()
}

func (d *daemon) Inventory() []scheduler.Holding {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.inventory)
}

func (d *daemon) Rejoin(blob scheduler.Digest) (join scheduler.Join, ok bool) {
	d.change(func() {
		join, ok = d.joins[blob]
		d.rejoined = append(d.rejoined, blob)
	})
	return join, ok
}

func (d *daemon) Deliver(msg any) { d.change(func() { d.got = append(d.got, msg) }) }

func (d *daemon) Reachable(ok bool) { d.change(func() { d.reachable = append(d.reachable, ok) }) }

// join joins a blob as the daemon would.
func (d *daemon) join(t *testing.T, j scheduler.Join) {
	t.Helper()
	d.change(func() { d.joins[j.Blob] = j })
	d.send(t, j)
}

func (d *daemon) send(t *testing.T, msg scheduler.In) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := d.Send(ctx, msg); err != nil {
		t.Fatalf("%s sends %T: %v", d.id, msg, err)
	}
}

// wait waits until the condition, which may look at what d remembers, holds.
func (d *daemon) wait(t *testing.T, what string, condition func() bool) {
	t.Helper()
	late := time.AfterFunc(patience, func() { d.change(func() {}) })
	defer late.Stop()
	deadline := time.Now().Add(patience)
	d.mu.Lock()
	defer d.mu.Unlock()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s waited in vain: %s\nreachable %v, got %+v", d.id, what, d.reachable, d.got)
		}
		d.changed.Wait()
	}
}

// heard returns the first message of a kind that the condition accepts. The
// caller holds mu, as in wait.
func heard[T any](d *daemon, ok func(T) bool) (first T, found bool) {
	for _, msg := range d.got {
		if m, is := msg.(T); is && (ok == nil || ok(m)) {
			return m, true
		}
	}
	return first, false
}

func (d *daemon) waitReachable(t *testing.T, want bool) {
	t.Helper()
	d.wait(t, fmt.Sprintf("reachable %v", want), func() bool { return len(d.reachable) > 0 && d.reachable[len(d.reachable)-1] == want })
}

// waitNeighbour waits until d is told of another as its neighbour for a blob,
// or as the one to ask for a piece of it.
func (d *daemon) waitNeighbour(t *testing.T, blob scheduler.Digest, other scheduler.PeerID) {
	t.Helper()
	d.wait(t, fmt.Sprintf("%s as neighbour for %s", other, blob[:12]), func() bool {
		_, found := heard(d, func(s *scheduler.Swarm) bool {
			return s.Blob == blob && slices.ContainsFunc(s.Add, func(n scheduler.Neighbour) bool { return n.Peer == other })
		})
		_, assigned := heard(d, func(a *scheduler.Assign) bool { return a.Blob == blob && a.From.Peer == other })
		return found || assigned
	})
}

func (d *daemon) forget() { d.change(func() { d.got, d.rejoined = nil, nil }) }

func digest(i int) scheduler.Digest { return scheduler.Digest(fmt.Sprintf("sha256:%064x", i)) }

// authority signs the certificates of one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// config returns a configuration for either end, with a certificate for names
// and addresses.
func (a *authority) config(_ *testing.T, names ...string) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool,
	}
}
