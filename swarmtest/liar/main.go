// Command liar runs one node that lies, as a process of its own, for tests
// and benchmarks of a cluster of processes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/swarmtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "liar: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cfg := swarmtest.Config{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	var kind string
	var blobs []string
	f := flag.NewFlagSet("liar", flag.ContinueOnError)
	f.StringVar(&kind, "kind", string(swarmtest.WrongBytes), fmt.Sprintf("what it lies about: one of %v", swarmtest.Kinds))
	f.StringVar(&cfg.Listen, "listen", ":4401", "`HOST:PORT` for peers")
	f.StringVar(&cfg.Name, "node-name", "liar", "`NAME` by which schedulers and peers know it")
	f.StringVar(&cfg.Publisher, "publisher", "", "`NAME` of whom it says that it has its sums from (default itself)")
	f.Func("scheduler", "`HOST:PORT` of a scheduler, spelled as the daemons do; repeatable", func(s string) error {
		cfg.Schedulers = append(cfg.Schedulers, s)
		return nil
	})
	f.Func("blob", "`DIGEST=FILE` of a blob that it says it has; for wrong-sums DIGEST=BYTES, the size of one that it says it wants; repeatable", func(s string) error {
		blobs = append(blobs, s)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	if cfg.Kind = swarmtest.Kind(kind); !slices.Contains(swarmtest.Kinds, cfg.Kind) {
		return fmt.Errorf("--kind: %q is none of %v", kind, swarmtest.Kinds)
	}
	if f.NArg() > 0 || len(blobs) == 0 {
		return errors.New("want flags alone, and --blob among them")
	}
	for _, s := range blobs {
		b, err := readBlob(cfg.Kind, s)
		if err != nil {
			return fmt.Errorf("--blob: %w", err)
		}
		cfg.Blobs = append(cfg.Blobs, b)
	}
	l, err := swarmtest.New(cfg)
	if err != nil {
		return err
	}
	cfg.Logger.Info("lying", "kind", kind, "name", l.Name(), "listen", l.Addr())
	defer func() { cfg.Logger.Info("stopped", "lies", l.Lies()) }()
	return l.Run(ctx)
}

// readBlob reads one --blob. The file stays open for as long as the process
// runs.
func readBlob(kind swarmtest.Kind, s string) (swarmtest.Blob, error) {
	d, from, _ := strings.Cut(s, "=")
	b := swarmtest.Blob{Digest: digest.Digest(d)}
	err := b.Digest.Validate()
	if err != nil {
		return b, fmt.Errorf("%q: %w", d, err)
	}
	if kind == swarmtest.WrongSums {
		b.Size, err = strconv.ParseInt(from, 10, 64)
		return b, err
	}
	file, err := os.Open(from)
	if err != nil {
		return b, err
	}
	info, err := file.Stat()
	if err != nil {
		return b, err
	}
	b.Size, b.Content = info.Size(), file
	return b, nil
}
