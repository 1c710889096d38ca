// Package demo shows on one machine what Shoal does: an origin, a scheduler,
// nodes and the clients of their runtimes in one process, on real sockets.
//
// It knows what is shown and what was promised. It must not know how the
// parts of a cluster work: it is given somebody who starts them.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/opencontainers/go-digest"
)

// Config says what is shown.
type Config struct {
	// Nodes is how many there are, one that lies among them.
	Nodes int
	// Size of the image in bytes, in Layers layers.
	Size   int64
	Layers int
	// Rate of each node's link and of the origin's, in bytes per second; 0
	// is no limit.
	Rate int64
	// KillScheduler and KillPeer kill the scheduler or a node when half of the
	// image has left the origin; Liar has the last node lie.
	KillScheduler, KillPeer, Liar bool
}

// Parts starts what a cluster consists of, on loopback.
type Parts interface {
	// Scheduler listens at addr, HOST:PORT.
	Scheduler(addr string) (Scheduler, error)
	Node(NodeConfig) (Node, error)
	Liar(LiarConfig) (Liar, error)
}

// Part is a part of a cluster that runs.
type Part interface {
	// Stop ends it without waiting for anything that is under way, and
	// returns when it has ended.
	Stop() error
}

// Scheduler is a scheduler of the cluster.
type Scheduler interface {
	Part
	// Addr is where nodes find it.
	Addr() string
	Known(context.Context) Known
}

// Known is what a scheduler knows: how many nodes are connected, how many
// blobs they hold or want, each counted once for each node, and how many nodes
// are banned.
type Known struct{ Nodes, Blobs, Banned int }

// NodeConfig says what a node is like.
type NodeConfig struct {
	Name string
	// Dir is for its store, CacheSize bytes.
	Dir       string
	CacheSize int64
	// Upstream is the origin's name in images, Origin its URL.
	Upstream, Origin string
	// Scheduler is its Addr.
	Scheduler string
	// Rate of its link, both ways, in bytes per second; 0 is no limit.
	Rate int64
	// Log gets what the node logs.
	Log *slog.Logger
}

// Node is a node of the cluster.
type Node interface {
	Part
	// Mirror is the HOST:PORT that the node's runtime asks.
	Mirror() string
	Fetched() Fetched
}

// Fetched is how many bytes a node has got so far, from the origin and from
// other nodes.
type Fetched struct{ Origin, Peers int64 }

// LiarConfig says who lies about what.
type LiarConfig struct {
	Name, Scheduler string
	Blobs           []Blob
}

// Blob is content that somebody has.
type Blob struct {
	Digest  digest.Digest
	Size    int64
	Content io.ReaderAt
}

// Liar is a node that says it has blobs and sends wrong bytes.
type Liar interface {
	Part
	// Lies is how many wrong blocks it has sent so far.
	Lies() int64
}

// alone is what a node without a scheduler fetches from the origin at a time.
const alone = 8 << 20

// mostCopies is how many times the origin may send the image: once, but for
// what nodes fetch twice when something goes wrong.
func (c Config) mostCopies() float64 {
	most := 1.05
	for _, disturbed := range []bool{c.KillPeer, c.Liar} {
		if disturbed {
			most += 0.2
		}
	}
	if c.KillScheduler {
		most += float64(c.Nodes) * alone / float64(c.Size)
		if c.Layers > atOnce {
			// Layers that are begun then each node may get by itself.
			most = float64(c.Nodes)
		}
	}
	return most
}

// Run shows it on out. It returns an error if anything is not as promised, or
// the cause of ctx when that ends first.
func Run(ctx context.Context, cfg Config, parts Parts, out io.Writer) (err error) {
	// One more node comes later.
	dir, err := place(int64(cfg.Nodes+1) * cfg.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := setUp(ctx, cfg, parts, dir, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tearDown()) }()
	s.introduce()
	if err := s.together(ctx); err != nil {
		return err
	}
	return s.afterwards(ctx)
}

// introduce says what is there.
func (s *scene) introduce() {
	fmt.Fprintf(s.out, "An origin, a scheduler and %d nodes, all in this process, on loopback.\n", s.cfg.Nodes)
	if s.cfg.Rate > 0 {
		fmt.Fprintf(s.out, "The origin and each node have a link of %s/s.\n", size(s.cfg.Rate))
	}
	if s.liar != nil {
		fmt.Fprintf(s.out, "%s lies: it says that it has the image, and sends wrong bytes.\n", s.liarName())
	}
	fmt.Fprintf(s.out, "All nodes pull an image of %s in %d layers; every digest is checked.\n\n", size(s.cfg.Size), s.cfg.Layers)
}
