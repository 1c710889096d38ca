package demo

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/shoalproject/shoal/registry/registrytest"
)

// afterwards is the second act: what happens to single nodes in a cluster that
// has the image.
func (s *scene) afterwards(ctx context.Context) error {
	if s.scheduler == nil {
		if err := s.replaceScheduler(ctx); err != nil {
			return err
		}
	}
	// What still comes for a pull that was refused is another node's than
	// those of the pulls after it.
	first, second := s.alive()[0], s.alive()[1]
	is := func(n *node) func() (*node, error) { return func() (*node, error) { return n, nil } }
	const what, rest = "%-37s", "%11s%12s%9s   %s\n"
	fmt.Fprintf(s.out, "\n"+what+rest, "AND THEN", "FROM ORIGIN", "FROM PEERS", "TIME", "RESULT")
	for _, step := range []struct {
		what   string
		before func() error
		node   func() (*node, error)
		ref    string
		fails  bool
	}{
		{second.name + ": the origin flips a bit", s.lie, is(second), "v2", true},
		{first.name + " again, the origin is down", s.down, is(first), "v1", false},
		{first.name + " again, a bit on its disk flips", func() error { return rot(ctx, first.dir) }, is(first), "v1", false},
		{"a new node, the origin still down", nil, s.addNode, s.image.Manifest.Digest.String(), false},
	} {
		if step.before != nil {
			if err := step.before(); err != nil {
				return err
			}
		}
		n, err := step.node()
		if err != nil {
			return err
		}
		fmt.Fprintf(s.out, what, step.what)
		p := &pulled{node: n, before: n.Fetched()}
		start := time.Now()
		err = pull(ctx, n.Mirror(), step.ref)
		took, got, result := time.Since(start), p.got(), "verified"
		switch {
		case wrong(err):
			result = "WRONG BYTES"
		case err != nil:
			result = "refused"
		}
		fmt.Fprintf(s.out, rest, size(got.Origin), size(got.Peers), seconds(took), result)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case wrong(err) || err != nil && !step.fails:
			return fmt.Errorf("%s: %w", step.what, err)
		case err == nil && step.fails:
			return fmt.Errorf("%s: was delivered", step.what)
		}
	}
	return nil
}

// replaceScheduler starts another one where the first was.
func (s *scene) replaceScheduler(ctx context.Context) error {
	start := time.Now()
	var err error
	if s.scheduler, err = s.parts.Scheduler(s.addr); err != nil {
		return err
	}
	if err := s.connected(ctx); err != nil {
		return err
	}
	known := s.scheduler.Known(ctx)
	fmt.Fprintf(s.out, "A new scheduler: after %s it knows all nodes and the %d blobs they hold.\n",
		seconds(time.Since(start)), known.Blobs)
	return nil
}

// lie adds an image whose layer the origin sends with a wrong bit.
func (s *scene) lie() error {
	layer, err := io.ReadAll(io.NewSectionReader(registrytest.Random(rand.Uint64()), 0, 1<<20))
	if err != nil {
		return err
	}
	image := s.origin.AddImage(repo, "v2", layer)
	s.origin.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: image.Layers[0].Digest}, registrytest.Flip(1000))
	return nil
}

func (s *scene) down() error {
	s.origin.Down()
	return nil
}

// rot flips a bit of the biggest file in a node's store, once all that the node
// pulled stands there: a pull is answered before its blobs are durable.
func rot(ctx context.Context, dir string) error {
	for {
		unfinished, err := os.ReadDir(filepath.Join(dir, "partial"))
		if err != nil {
			return err
		}
		if len(unfinished) == 0 {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	file, err := biggest(dir)
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

func biggest(dir string) (path string, err error) {
	var most int64
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Size() > most {
			path, most = p, info.Size()
		}
		return err
	})
	return path, err
}
