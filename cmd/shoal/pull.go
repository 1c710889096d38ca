package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/layout"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

type pullFlags struct {
	to         string
	platforms  []string
	mirror     string
	node       daemon.Config
	registries registries
	registry   string
}

func newPullCommand() *cobra.Command {
	flags := pullFlags{node: daemon.DefaultConfig()}
	flags.node.DataDir = ""
	cmd := &cobra.Command{
		Use:   "pull IMAGE --to oci:DIRECTORY|tar:FILE",
		Short: "Fetch an image through the swarm into an OCI layout",
		Long: `Fetches an image, or an artifact such as a model or a chart, and writes it as an
OCI image layout: a directory, or a tar of one. For hosts without a container
runtime.

The command is a node of its own while it runs, with a cache in the user's cache
directory, so that a pull that was interrupted goes on where it was; with
--scheduler it fetches from the other nodes of the swarm and gives to them. With
--mirror it uses a daemon that runs already. Every byte is verified.`,
		Example: `  shoal pull ghcr.io/org/model:v3 --to oci:/models/v3 --scheduler scheduler.example.com:4402
  shoal pull alpine:3 --to tar:alpine.tar --platform linux/arm64`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("name one image")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			return flags.run(cmd, args[0])
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&flags.to, "to", "", "where it goes: `oci:DIRECTORY`, or tar:FILE")
	f.StringArrayVar(&flags.platforms, "platform", nil, "`PLATFORM` of an image that is there for several: os/arch[/variant], or all (default this machine's)")
	f.StringVar(&flags.mirror, "mirror", "", "`URL` of the mirror of a daemon that runs already, http://127.0.0.1:4400")
	f.StringArrayVar(&flags.node.Schedulers, "scheduler", nil, "`SCHEDULER` of the swarm, as daemons name it; repeatable (default none: from the registry alone)")
	f.StringVar(&flags.node.Zone, "zone", "", "`NAME` of this node's zone")
	f.StringVar(&flags.node.PeerListen, "peer-listen", ":0", "`HOST:PORT` where other nodes fetch from this one")
	f.StringVar(&flags.node.TLSCert, "tls-cert", "", "PEM `FILE` with a certificate for the swarm; with --tls-key and --tls-ca")
	f.StringVar(&flags.node.TLSKey, "tls-key", "", "PEM `FILE` with its key")
	f.StringVar(&flags.node.TLSCA, "tls-ca", "", "PEM `FILE` with the CA of the swarm")
	f.StringVar(&flags.node.DataDir, "data-dir", "", "`DIRECTORY` of the cache, for one command at a time (default in the user's cache directory)")
	f.Var(newBytes(&flags.node.CacheSize), "cache-size", "`SIZE` of the cache")
	f.StringVar(&flags.registry, "registry", "", "how the registry of the image is reached, as daemons take it: `HOST[=URL][,OPTION...]`")
	f.BoolVar(&flags.registries.plainHTTP, "plain-http", false, "reach the registry over plain HTTP")
	f.StringVar(&flags.registries.caFile, "registry-ca", "", "PEM `FILE` to verify the registry with")
	f.StringVar(&flags.node.DockerConfig, "docker-config", "", "`FILE` with the credentials (default docker's own)")
	f.String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

func (p *pullFlags) run(cmd *cobra.Command, image string) error {
	ref, err := jobs.ParseImage(image)
	if err != nil {
		return &usageError{err}
	}
	target, err := layout.ParseTarget(p.to)
	if err != nil {
		return &usageError{fmt.Errorf("--to: %w", err)}
	}
	if len(p.platforms) == 0 {
		p.platforms = []string{"linux/" + runtime.GOARCH}
	}
	ctx := cmd.Context()
	base := strings.TrimSuffix(p.mirror, "/")
	if base == "" {
		stop, addr, err := p.start(ctx, ref, cmd)
		if err != nil {
			return err
		}
		defer stop()
		base = "http://" + addr
	}
	progress := newPullBars(cmd.ErrOrStderr())
	defer progress.close()
	digest, err := layout.Pull(ctx, layout.Source{
		Mirror: base, Repository: ref.Repository, Reference: ref.Reference(), Platforms: p.platforms, Matches: jobs.PlatformMatches,
	}, ref.String(), target, progress.begin)
	progress.close()
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", digest, p.to)
	return nil
}

// start runs a node of the command's own until stop.
func (p *pullFlags) start(ctx context.Context, ref jobs.Ref, cmd *cobra.Command) (stop func(), addr string, err error) {
	cfg := p.node
	host, _, _ := strings.Cut(ref.Repository, "/")
	switch {
	case p.registry != "":
		cfg.Registries = []string{p.registry}
	default:
		e, err := p.registries.endpoint(host)
		if err != nil {
			return nil, "", &usageError{err}
		}
		one := host + "=" + e.Endpoint.String()
		if p.registries.caFile != "" {
			one += ",ca=" + p.registries.caFile
		}
		cfg.Registries = []string{one}
	}
	cfg.DefaultRegistry, cfg.Guest = host, true
	cfg.Listen, cfg.AdminListen, cfg.Auth = "127.0.0.1:0", "127.0.0.1:0", "node"
	cfg.ShutdownGrace = 0
	cfg.Version = readBuild().Version
	if len(cfg.Schedulers) == 0 {
		cfg.PeerListen = "127.0.0.1:0"
	}
	if cfg.DataDir == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, "", &usageError{errors.New("--data-dir is needed: there is no cache directory for this user")}
		}
		cfg.DataDir = filepath.Join(dir, "shoal-pull")
	}
	cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelError}))
	d, err := daemon.New(cfg)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	return func() {
		cancel()
		// What it has is kept for the next time; there is no more to say.
		<-done
	}, d.MirrorAddr().String(), nil
}
