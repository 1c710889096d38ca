package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/demo"
)

func newDemoCommand() *cobra.Command {
	cfg := demo.Config{Size: 64 << 20, Layers: 5}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show on this machine what Shoal does, with a registry of its own",
		Long: `Starts a registry, a daemon and a client in this process, on loopback and in a
temporary directory, and pulls an image: straight, through the daemon, once
more, with the registry gone, with a bit flipped on disk and on the wire.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Layers < 1 || cfg.Layers > 100 {
				return &usageError{errors.New("--layers: want 1 to 100")}
			}
			return demo.Run(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	}
	cmd.Flags().Var(newBytes(&cfg.Size), "size", "`SIZE` of the image")
	cmd.Flags().IntVar(&cfg.Layers, "layers", cfg.Layers, "number of layers, 1 to 100")
	return cmd
}
