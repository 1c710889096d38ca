// Package demo shows on one machine what Shoal does: a registry, a daemon and
// a client in one process, on real sockets.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// Config says what is shown.
type Config struct {
	// Size of the image in bytes, in Layers layers.
	Size   int64
	Layers int
}

// upstream is the registry's name in this demonstration.
const upstream = "registry.demo"

// scene is the registry, the daemon and what the client pulls.
type scene struct {
	origin *registrytest.Origin
	daemon *daemon.Daemon
	dir    string
	out    *tabwriter.Writer
}

// Run shows it on out. It returns an error if anything is not as promised.
func Run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	s := &scene{out: tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)}
	if s.origin, err = registrytest.Start(); err != nil {
		return err
	}
	defer s.origin.Close()
	s.addImage(cfg)
	if s.dir, err = os.MkdirTemp("", "shoal-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	dcfg := daemon.DefaultConfig()
	dcfg.Listen, dcfg.AdminListen, dcfg.PeerListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	dcfg.DataDir, dcfg.CacheSize = filepath.Join(s.dir, "data"), 2*cfg.Size+1<<30
	dcfg.Registries = []string{upstream + "=http://" + s.origin.Host()}
	dcfg.Auth = "open"
	dcfg.TagTTL = time.Millisecond // so that every step asks for the tag
	if s.daemon, err = daemon.New(dcfg); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.daemon.Run(ctx) }()
	defer func() {
		stop()
		err = errors.Join(err, <-done)
	}()
	fmt.Fprintf(out, "A registry at %s, a daemon at %s and a client, all in this process.\n", s.origin.Host(), s.daemon.MirrorAddr())
	fmt.Fprintf(out, "The image has %s in %d layers. Every digest is checked by the client.\n\n", size(cfg.Size), cfg.Layers)
	return s.play(ctx)
}

func (s *scene) addImage(cfg Config) {
	layers := make([][]byte, cfg.Layers)
	for i := range layers {
		n := cfg.Size / int64(cfg.Layers)
		if i == 0 {
			n += cfg.Size % int64(cfg.Layers)
		}
		layers[i] = make([]byte, n)
		_, _ = rand.Read(layers[i]) // never fails
	}
	s.origin.AddImage("app", "v1", layers...)
}

// play goes through the steps.
func (s *scene) play(ctx context.Context) error {
	mirrored := s.daemon.MirrorAddr().String() + "/" + upstream + "/app"
	fmt.Fprintln(s.out, "PULL\tTIME\tFROM REGISTRY\tREQUESTS\tRESULT")
	steps := []struct {
		what     string
		ref, tag string
		before   func() error
		fails    bool
	}{
		{"straight from the registry", s.origin.Host() + "/app", "v1", nil, false},
		{"through the daemon, cold", mirrored, "v1", nil, false},
		{"again", mirrored, "v1", nil, false},
		{"again, after a bit flipped on the disk", mirrored, "v1", s.rot, false},
		{"another one, a bit flipped by the registry", mirrored, "v2", s.lie, true},
		{"the first again, the registry is down", mirrored, "v1", s.down, false},
	}
	for _, step := range steps {
		if step.before != nil {
			if err := step.before(); err != nil {
				return err
			}
		}
		if err := s.step(ctx, step.what, step.ref, step.tag, step.fails); err != nil {
			s.out.Flush()
			return err
		}
	}
	return s.out.Flush()
}

func (s *scene) step(ctx context.Context, what, ref, tag string, fails bool) error {
	s.origin.ResetCounters()
	start := time.Now()
	_, err := pull(ctx, ref, tag)
	took := time.Since(start)
	result := "verified"
	if err != nil {
		result = "refused"
	}
	fmt.Fprintf(s.out, "%s\t%.2f s\t%s\t%d\t%s\n", what, took.Seconds(), size(s.origin.SentTotal()), len(s.origin.Requests()), result)
	if fails != (err != nil) {
		return fmt.Errorf("%s: %v", what, err)
	}
	return nil
}

// rot flips a bit of the biggest file in the daemon's store.
func (s *scene) rot() error {
	file, err := biggest(s.dir)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], 0)
	return err
}

func (s *scene) down() error {
	s.origin.Down()
	return nil
}

// lie adds an image whose layer the registry sends with a wrong bit.
func (s *scene) lie() error {
	layer := make([]byte, 1<<20)
	_, _ = rand.Read(layer) // never fails
	image := s.origin.AddImage("app", "v2", layer)
	s.origin.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: image.Layers[0].Digest}, registrytest.Flip(1000))
	return nil
}

func biggest(dir string) (path string, err error) {
	var max int64
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Size() > max {
			path, max = p, info.Size()
		}
		return err
	})
	return path, err
}

func size(n int64) string { return strings.TrimSpace(humanize.IBytes(uint64(n))) }
