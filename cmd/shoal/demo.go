package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/demo"
)

func newDemoCommand() *cobra.Command {
	cfg := demo.Config{Nodes: 8, Size: 128 << 20, Layers: 3, Rate: 64 << 20}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show on this machine what Shoal does, with a cluster of its own",
		Long: `Starts an origin, a scheduler and nodes in this process, on loopback and in a
temporary directory, and has all nodes pull an image at once. Then it shows what
happens to one of them when bits flip on the wire and on disk, and when the
origin is gone.

The exit code is 1 if anything was not as promised: wrong bytes were delivered, a
pull failed that must not, or the origin sent the image more often than once, but
for what nodes ask for twice when something is killed or lies.`,
		Example: `  # Everything that can go wrong at once:
  shoal demo --kill-scheduler --kill-peer --liar`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkDemo(cfg); err != nil {
				return &usageError{err}
			}
			return demo.Run(cmd.Context(), cfg, demoParts{}, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&cfg.Nodes, "nodes", cfg.Nodes, "`NUMBER` of nodes, 2 to 64")
	f.Var(newBytes(&cfg.Size), "size", "`SIZE` of the image; each node keeps it in the directory for temporary files (TMPDIR)")
	f.IntVar(&cfg.Layers, "layers", cfg.Layers, "`NUMBER` of its layers, 1 to 100")
	f.Var(newBytes(&cfg.Rate), "rate", "`SIZE` per second of the origin's link and of each node's, both ways; 0 is no limit")
	f.BoolVar(&cfg.KillScheduler, "kill-scheduler", false, "kill the scheduler when half of the image has left the origin")
	f.BoolVar(&cfg.KillPeer, "kill-peer", false, "kill a node then")
	f.BoolVar(&cfg.Liar, "liar", false, "let one of the nodes say that it has the image, and send wrong bytes")
	return cmd
}

// checkDemo returns what is wrong in a configuration.
func checkDemo(cfg demo.Config) error {
	least := 2
	for _, fewer := range []bool{cfg.KillPeer, cfg.Liar} {
		if fewer {
			least++
		}
	}
	switch {
	case cfg.Nodes < least && least > 2:
		return fmt.Errorf("--nodes: want at least %d, so that two are left to exchange", least)
	case cfg.Nodes < 2 || cfg.Nodes > 64:
		return errors.New("--nodes: want 2 to 64")
	case cfg.Layers < 1 || cfg.Layers > 100:
		return errors.New("--layers: want 1 to 100")
	case cfg.Size < 1<<20 || cfg.Size > 1<<40:
		return errors.New("--size: want 1MiB to 1TiB")
	case cfg.Rate != 0 && cfg.Rate < 64<<10:
		return errors.New("--rate: want at least 64KiB, or 0 for no limit")
	}
	return nil
}
