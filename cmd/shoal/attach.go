package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/attach"
)

func newAttachCommand() *cobra.Command {
	var (
		root, ready string
		log         logging
	)
	cmd := &cobra.Command{
		Use:   "attach [flags] [-- FLAGS OF INSTALL]",
		Short: "Point containerd at the daemon for as long as this command runs",
		Long: `Waits until the daemon of this node is ready, runs "shoal containerd install", and
when it is told to stop "shoal containerd uninstall". It is for where the daemon comes and
goes with something else, such as a pod. What stands after "--" is given to install.

Killed, it leaves the configuration as it is: containerd goes past a mirror that
does not answer, and the next run puts things right.`,
		Example: `  # In a pod of a DaemonSet, with the node's /etc/containerd at /host/etc/containerd:
  shoal attach --root /host -- --registry docker.io`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			return attach.Run(cmd.Context(), attach.Config{
				Ready:     ready,
				Install:   containerd(cmd.ErrOrStderr(), "install", root, args...),
				Uninstall: containerd(cmd.ErrOrStderr(), "uninstall", root),
				Log:       log.logger(cmd.ErrOrStderr()),
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&root, "root", "/", "`DIRECTORY` where the file system of the node is")
	f.StringVar(&ready, "ready", "http://127.0.0.1:4403/readyz", "`URL` that answers 200 when the daemon serves")
	log.addFlags(f)
	f.String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

// attachPatience is how long a run that was asked to end may take to.
const attachPatience = 5 * time.Second

// containerd returns a run of "shoal containerd".
func containerd(log io.Writer, what, root string, args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c := exec.CommandContext(ctx, self, append([]string{"containerd", what, "--root", root}, args...)...)
		c.Stdout, c.Stderr = log, log
		// Killed between two files it would leave more to take back than asked.
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
		c.WaitDelay = attachPatience
		if err := c.Run(); err != nil {
			return fmt.Errorf("shoal containerd %s: %w", what, err)
		}
		return nil
	}
}
