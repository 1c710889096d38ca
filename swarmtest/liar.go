// Package swarmtest has a node that lies, for tests and demonstrations of what
// a swarm does about it. It takes part in a cluster like a daemon, on the real
// wire: schedulers and peers cannot tell the two apart but by what it sends.
//
// It knows the two protocols and what there is to lie about. It must not know
// stores, origins, or how an honest daemon finds it out.
package swarmtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/wire"
)

// Kind is what a Liar lies about.
type Kind string

// Those that hold a blob announce it as complete, with its right sums.
const (
	// WrongBytes sends each block with one bit wrong.
	WrongBytes Kind = "wrong-bytes"
	// WrongSums wants the blob, is assigned runs from its origin, reports
	// them as brought, and publishes and serves noise with sums that fit.
	WrongSums Kind = "wrong-sums"
	// Silent accepts every request and sends nothing.
	Silent Kind = "silent"
	// Trickle sends a byte a second.
	Trickle Kind = "trickle"
)

// Kinds are all there are.
var Kinds = []Kind{WrongBytes, WrongSums, Silent, Trickle}

// Blob is what a Liar lies about.
type Blob struct {
	Digest digest.Digest
	// Size is in bytes, more than 0.
	Size int64
	// Content has the right bytes. WrongSums does without.
	Content io.ReaderAt
}

// Config says who lies how about what.
type Config struct {
	Kind  Kind
	Blobs []Blob
	// Schedulers are those of the cluster, spelled as its daemons do.
	Schedulers []string
	// Name is what schedulers and peers know the liar by.
	Name string
	// Listen is the HOST:PORT for peers. An empty host is the one that the
	// scheduler sees.
	Listen string
	// Publisher is whom it says that it has its sums from. Default: itself.
	Publisher string
	// TLS, if set, proves Name to schedulers and peers.
	TLS    *tls.Config
	Logger *slog.Logger
}

// Liar is a node that lies. Make it with New, run it with Run.
type Liar struct {
	cfg      Config
	log      *slog.Logger
	endpoint *peer.Endpoint
	client   *client.Client
	listener net.Listener
	blobs    map[peer.InfoHash]*blob
	told     atomic.Int64
	ready    chan struct{}

	group *errgroup.Group // of Run
	ctx   context.Context // of Run

	mu sync.Mutex
	// Guarded by mu:
	joined, taken bool
}

// blob is one of the blobs, and what is said of it.
type blob struct {
	Blob
	liar   *Liar
	layout piece.Layout
	sums   []peer.Have // by piece
	member *member     // of its swarm, for WrongSums
}

// New opens the liar's listener. What it opened, Run closes.
func New(cfg Config) (*Liar, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Publisher == "" {
		cfg.Publisher = cfg.Name
	}
	l := &Liar{cfg: cfg, log: cfg.Logger, blobs: map[peer.InfoHash]*blob{}, ready: make(chan struct{})}
	for _, b := range cfg.Blobs {
		bl, err := l.newBlob(b)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		l.blobs[peer.InfoHashOf(b.Digest)] = bl
	}
	var err error
	if l.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, err
	}
	if err := l.open(); err != nil {
		l.listener.Close()
		return nil, err
	}
	return l, nil
}

func (l *Liar) newBlob(b Blob) (*blob, error) {
	if b.Size <= 0 {
		return nil, fmt.Errorf("its size is %d", b.Size)
	}
	bl := &blob{Blob: b, liar: l, layout: piece.NewLayout(b.Size)}
	if l.cfg.Kind == WrongSums {
		bl.Content = noise{}
		bl.member = newMember(bl)
	}
	for i := range bl.layout.Count() {
		off, n := bl.layout.Span(i)
		h := piece.NewHash()
		if _, err := io.Copy(h, io.NewSectionReader(bl.Content, off, n)); err != nil {
			return nil, err
		}
		bl.sums = append(bl.sums, peer.Have{Index: i, Sum: piece.Sum(h.Sum(nil)), Known: true, Publisher: l.cfg.Publisher})
	}
	return bl, nil
}

func (l *Liar) open() (err error) {
	// It never says that its slots are taken: who asks is to wait for it.
	if l.endpoint, err = peer.New(peer.Config{Logger: l.log, ID: peer.IDOf(l.cfg.Name), Finder: l, Slots: 1024, TLS: l.cfg.TLS}); err != nil {
		return err
	}
	dialer := &wire.Dialer{Log: l.log, TLS: l.cfg.TLS}
	l.client, err = client.New(client.Config{
		Schedulers: l.cfg.Schedulers, Log: l.log,
		Hello: scheduler.Hello{Addr: l.advertised()},
		Open: func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
			stream, err := dialer.Open(ctx, to.Addr, to.ServerName, scheduler.PeerID(l.cfg.Name), hello)
			if err != nil {
				return nil, err
			}
			return stream, nil
		},
	}, (*talk)(l))
	return err
}

// advertised returns where peers reach the liar.
func (l *Liar) advertised() string {
	tcp := l.listener.Addr().(*net.TCPAddr)
	if tcp.IP.IsUnspecified() {
		return fmt.Sprintf(":%d", tcp.Port)
	}
	return tcp.String()
}

// Addr returns the address for peers.
func (l *Liar) Addr() net.Addr { return l.listener.Addr() }

// Name returns what schedulers and peers know the liar by.
func (l *Liar) Name() string { return l.cfg.Name }

// Ready returns a channel that is closed once the scheduler knows what the liar
// says of itself. Of several it is the one that answers first.
func (l *Liar) Ready() <-chan struct{} { return l.ready }

// Lies returns how many blocks the liar was asked for, and lied about, so far.
func (l *Liar) Lies() int64 { return l.told.Load() }

// Run lies until ctx ends. It must be called once.
func (l *Liar) Run(ctx context.Context) error {
	l.group, l.ctx = errgroup.WithContext(ctx)
	l.group.Go(func() error { return l.client.Run(l.ctx) })
	l.group.Go(func() error { return l.endpoint.Serve(l.ctx, l.listener) })
	err := l.group.Wait()
	l.endpoint.Close()
	return err
}

// Find finds a blob for a peer that asks for it.
func (l *Liar) Find(h peer.InfoHash) (peer.Blob, error) {
	b := l.blobs[h]
	if b == nil || b.member != nil {
		return peer.Blob{}, fmt.Errorf("no blob %s", h)
	}
	return peer.Blob{Digest: b.Digest, Size: b.Size, Pieces: b.sums, Content: b}, nil
}

// Reader opens what is sent of a blob.
func (b *blob) Reader() (peer.Reader, error) { return lie{b}, nil }

// lie is what is sent of a blob.
type lie struct{ b *blob }

func (lie) Close() error { return nil }

// CopyRange writes n bytes from off, after the fashion of the liar's kind.
func (r lie) CopyRange(w io.Writer, off, n int64) (int64, error) {
	r.b.liar.told.Add(1)
	buf := make([]byte, n) // a block: at most peer.MaxBlock
	if _, err := io.ReadFull(io.NewSectionReader(r.b.Content, off, n), buf); err != nil {
		return 0, err
	}
	switch r.b.liar.cfg.Kind {
	case Silent:
		return 0, r.dawdle(w, nil)
	case Trickle:
		return 0, r.dawdle(w, buf)
	case WrongBytes:
		buf[n/2] ^= 1
	}
	m, err := w.Write(buf)
	return int64(m), err
}

// dawdle sends a byte a second, or none, until the connection is closed or
// the liar ends.
func (r lie) dawdle(w io.Writer, buf []byte) error {
	// Often enough to find a closed connection soon: that is an error of
	// writing, even of writing nothing.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		var b []byte
		if i%10 == 0 && i/10 < len(buf) {
			b = buf[i/10:][:1]
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-r.b.liar.ctx.Done():
			return context.Cause(r.b.liar.ctx)
		}
	}
}

// noise is an endless sequence of bytes that is nobody's blob.
type noise struct{}

// ReadAt fills p; it never fails.
func (noise) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		x := uint64(off+int64(i)+1) * 0x9e3779b97f4a7c15
		p[i] = byte(x >> 40)
	}
	return len(p), nil
}
