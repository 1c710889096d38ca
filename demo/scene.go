package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoalproject/shoal/registry/registrytest"
)

const (
	// upstream is the origin's name in this demonstration.
	upstream = "registry.demo"
	repo     = "app"
	// connectTimeout is how long all nodes may take to find the scheduler:
	// the longest that they wait between two attempts, several times.
	connectTimeout = 15 * time.Second
)

// scene is all that takes part.
type scene struct {
	cfg   Config
	parts Parts
	dir   string
	out   io.Writer

	origin    *registrytest.Origin
	image     registrytest.Image
	layers    []Blob
	scheduler Scheduler // nil when killed
	addr      string    // of the scheduler
	nodes     []*node
	liar      Liar // nil if nobody lies
}

// node is a node and what became of it.
type node struct {
	Node
	name, dir string
	errors    logged // that it logged
	killed    atomic.Bool
}

func nameOf(number int) string { return fmt.Sprintf("node-%d", number) }

// setUp starts everything and returns when the scheduler knows all nodes.
func setUp(ctx context.Context, cfg Config, parts Parts, dir string, out io.Writer) (s *scene, err error) {
	s = &scene{cfg: cfg, parts: parts, dir: dir, out: out}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.tearDown())
		}
	}()
	if s.origin, err = registrytest.Start(); err != nil {
		return s, err
	}
	if cfg.Rate > 0 {
		s.origin.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Throttle(int(cfg.Rate)))
	}
	if err := s.addImage(); err != nil {
		return s, err
	}
	if s.scheduler, err = parts.Scheduler("127.0.0.1:0"); err != nil {
		return s, err
	}
	s.addr = s.scheduler.Addr()
	honest := cfg.Nodes
	if cfg.Liar {
		honest--
		if s.liar, err = parts.Liar(LiarConfig{Name: s.liarName(), Scheduler: s.addr, Blobs: s.layers}); err != nil {
			return s, err
		}
	}
	for range honest {
		if _, err := s.addNode(); err != nil {
			return s, err
		}
	}
	return s, s.connected(ctx)
}

// liarName is that of the last node.
func (s *scene) liarName() string { return nameOf(s.cfg.Nodes) }

func (s *scene) addNode() (*node, error) {
	number := len(s.nodes) + 1
	if s.liar != nil && number >= s.cfg.Nodes {
		number++
	}
	n := &node{name: nameOf(number)}
	n.dir = filepath.Join(s.dir, n.name)
	var err error
	n.Node, err = s.parts.Node(NodeConfig{
		Name: n.name, Dir: n.dir, CacheSize: 2*s.cfg.Size + 1<<30,
		Upstream: upstream, Origin: s.origin.URL(), Scheduler: s.addr, Rate: s.cfg.Rate,
		Log: slog.New(slog.NewTextHandler(&n.errors, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	return n, nil
}

// tearDown stops what runs.
func (s *scene) tearDown() error {
	var errs []error
	// Nodes first: they say goodbye to the scheduler.
	for _, n := range s.alive() {
		errs = append(errs, n.Stop())
	}
	if s.liar != nil {
		errs = append(errs, s.liar.Stop())
	}
	if s.scheduler != nil {
		errs = append(errs, s.scheduler.Stop())
	}
	if s.origin != nil {
		s.origin.Close()
	}
	return errors.Join(errs...)
}

func (s *scene) alive() (list []*node) {
	for _, n := range s.nodes {
		if !n.killed.Load() {
			list = append(list, n)
		}
	}
	return list
}

// addImage puts an image of noise into the origin that needs no memory.
func (s *scene) addImage() error {
	var layers []registrytest.Layer
	for i := range s.cfg.Layers {
		n := s.cfg.Size / int64(s.cfg.Layers)
		if i == 0 {
			n += s.cfg.Size % int64(s.cfg.Layers)
		}
		content := registrytest.Random(rand.Uint64())
		d, err := registrytest.Digest(content, n)
		if err != nil {
			return err
		}
		s.origin.AddVirtual(repo, d, content, n)
		layers = append(layers, registrytest.Layer{Digest: d, Size: n})
		s.layers = append(s.layers, Blob{d, n, content})
	}
	s.image = s.origin.AddImageOf(repo, "v1", layers...)
	return nil
}

// imageSize is what a whole pull brings, in bytes.
func (s *scene) imageSize() int64 { return s.cfg.Size + s.image.Config.Size + s.image.Manifest.Size }

// connected waits until the scheduler knows all nodes, and what they have.
func (s *scene) connected(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.New("the nodes do not find the scheduler"))
	defer cancel()
	want := Known{Nodes: len(s.alive())}
	if s.liar != nil {
		want.Nodes, want.Blobs = want.Nodes+1, len(s.layers)
	}
	for {
		known := s.scheduler.Known(ctx)
		if known.Nodes >= want.Nodes && known.Blobs >= want.Blobs {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func size(n int64) string { return humanize.IBytes(uint64(n)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
