// Command shoal distributes container images from node to node. This file
// parses, wires and waits; what it starts lives in other packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

// Exit codes of the command.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitSome   = 3 // some nodes failed
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run carries out one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	// Libraries spread some errors over lines; a user gets one.
	fmt.Fprintf(stderr, "%s: %s\n", cmd.CommandPath(), strings.Join(strings.Fields(err.Error()), " "))
	return exitCode(err)
}

// exitCode tells what is wrong as such from what only starting finds out.
func exitCode(err error) int {
	var (
		usage     *usageError
		node      *daemon.ConfigError
		scheduler *standalone.ConfigError
		exit      *exitError
	)
	if errors.As(err, &exit) {
		return exit.code
	}
	if errors.As(err, &usage) || errors.As(err, &node) || errors.As(err, &scheduler) {
		return exitUsage
	}
	return exitFailed
}

// usageError is a command line, environment or configuration file that does
// not make sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "shoal",
		Short: "Peer-to-peer distribution of container images",
		Long: `Shoal stands between the container runtimes of a cluster and their
registries. Every node asks its own daemon; what one node has, the others need
not fetch again; every byte is verified.`,
		Args:          usageArgs(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == "version" {
				return nil
			}
			return checkEnvironment(cmd.Root(), os.Environ())
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w (%s --help lists the flags)", err, cmd.CommandPath())}
	})
	// Flags wrapped for a terminal of 100 columns.
	root.SetUsageTemplate(strings.NewReplacer(
		".LocalFlags.FlagUsages", ".LocalFlags.FlagUsagesWrapped 100",
		".InheritedFlags.FlagUsages", ".InheritedFlags.FlagUsagesWrapped 100",
	).Replace(root.UsageTemplate()))
	root.AddCommand(newDaemonCommand(), newSchedulerCommand(), newPreheatCommand(), newStatusCommand(), newTopCommand(), newPullCommand(),
		newContainerdCommand(), newAttachCommand(), newCertificateCommand(), newDemoCommand(), newVersionCommand())
	return root
}

// usageArgs makes the error of a check of arguments one of usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}
