package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/runtimes"
)

func newContainerdCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Point the container runtime of this node at the mirror, and check that",
		Long: `Writes, takes back and checks the configuration by which the container runtime
of this node asks the daemon's mirror first, and its registries when that cannot
help. Besides containerd: k3s, RKE2, CRI-O and podman, Docker, BuildKit.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newInstallCommand(), newUninstallCommand(), newDoctorCommand())
	return cmd
}

// node is the file system and the runtime that a command is about.
type node struct {
	root, runtime string
	dryRun        bool
	restart       bool
}

// addPlace adds the flags that say where to look.
func (n *node) addPlace(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringVar(&n.runtime, "runtime", "auto", "`NAME` of the runtime: "+strings.Join(runtimes.Names(), ", ")+", or auto for the first of these that is found")
	f.StringVar(&n.root, "root", "/", "`DIRECTORY` where the node's file system is")
}

func (n *node) addFlags(f *pflag.FlagSet) {
	n.addPlace(f)
	f.BoolVar(&n.dryRun, "dry-run", false, "change nothing, and print what would change as a diff")
	f.BoolVar(&n.restart, "restart", false, "restart the runtime if that is needed; containers keep running")
}

func (n *node) check(cmd *cobra.Command) error {
	if err := applySettings(cmd.Flags()); err != nil {
		return err
	}
	switch {
	case n.runtime == "podman": // the same files
		n.runtime = runtimes.CRIO
	case n.runtime != "auto" && !slices.Contains(runtimes.Names(), n.runtime):
		return &usageError{fmt.Errorf("--runtime: %q is none of auto, %s", n.runtime, strings.Join(runtimes.Names(), ", "))}
	}
	if n.restart && n.root != "/" {
		return &usageError{errors.New("--restart: only with the node's own file system, not with --root")}
	}
	return nil
}

func newInstallCommand() *cobra.Command {
	var n node
	o := runtimes.Options{Mirror: "http://127.0.0.1:4400", Registries: registry.PublicRegistries()}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Have the runtime ask the mirror first",
		Long: `Finds where the runtime of this node has its registry configuration, and puts
the mirror in front of what stands there. What was there before is kept in
/var/lib/shoal-install and comes back with "uninstall", to the byte. Run again, it
brings the node to what the flags then say, and changes nothing that is so
already. Nothing is restarted unless --restart is given; where no restart is
mentioned, none is needed.

Every flag can also be set by an environment variable (--mirror is SHOAL_MIRROR).`,
		Example: `  # What would change?
  shoal containerd install --dry-run

  # The registries of the house, too:
  shoal containerd install --registry docker.io --registry registry.example.com

  # All registries that have no settings of their own, on a node mounted at /host:
  shoal containerd install --registry _default --root /host`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.check(cmd); err != nil {
				return err
			}
			for i, r := range o.Registries {
				host, err := registryHost(r)
				if err != nil {
					return &usageError{fmt.Errorf("--registry: %w", err)}
				}
				o.Registries[i] = host
			}
			if err := o.Check(); err != nil {
				return &usageError{err}
			}
			return n.install(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Mirror, "mirror", o.Mirror, "`URL` of the mirror: the daemon's --listen")
	f.StringArrayVar(&o.Registries, "registry", o.Registries, "`HOST` of a registry to ask the mirror for, as the daemon's --registry; _default is every one without settings of its own; repeatable")
	n.addFlags(cmd.Flags())
	f.StringVar(&o.Config, "runtime-config", "", "`FILE` that is the runtime's main configuration, if it is at none of the usual places")
	return cmd
}

// registryHost returns the host in a value of --registry. What the daemon is
// told beside the host does not matter here.
func registryHost(s string) (string, error) {
	if s == runtimes.Everything {
		return s, nil
	}
	s, _, _ = strings.Cut(s, ",")
	s, _, _ = strings.Cut(s, "=")
	return registry.ParseHost(s)
}

func (n *node) install(ctx context.Context, w io.Writer, o runtimes.Options) error {
	disk := runtimes.Disk{Root: n.root}
	name, others, err := n.choose(disk)
	if err != nil {
		return err
	}
	o.Release = n.release(ctx, disk)
	state, err := disk.State(name)
	if err != nil {
		return err
	}
	before, err := state.Original(disk)
	if err != nil {
		return err
	}
	plan, err := runtimes.NewPlan(before, name, o)
	if err != nil {
		return err
	}
	steps, next, err := state.Install(disk, plan)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range plan.Warnings {
			say(w, "warning", "%s", s)
		}
		if len(others) > 0 {
			say(w, "note", "also here: %s; each is installed by its own --runtime", strings.Join(others, ", "))
		}
	}()
	if len(steps) == 0 {
		say(w, "ok", "nothing to change: %s asks %s first for %s", name, o.Mirror, count(len(o.Registries), "registry", "registries"))
		return nil
	}
	if len(state.Files) > 0 {
		say(w, "found", "an earlier install; what follows is how it was before that")
	}
	for _, s := range plan.Found {
		say(w, "found", "%s", s)
	}
	if n.dryRun {
		return diff(w, steps)
	}
	if err := disk.Apply(steps, next); err != nil {
		return err
	}
	tell(w, steps)
	say(w, "backup", "%s; \"shoal containerd uninstall\" brings everything back", runtimes.Backup(name))
	return n.finish(ctx, w, steps, plan.Restart)
}

// choose returns the runtime that is meant, and which others there are.
func (n *node) choose(disk runtimes.Disk) (name string, others []string, err error) {
	if n.runtime != "auto" {
		return n.runtime, nil, nil
	}
	found := runtimes.Detect(disk.Has)
	if len(found) == 0 {
		return "", nil, fmt.Errorf("no container runtime is found in %s: name it with --runtime", n.root)
	}
	return found[0], found[1:], nil
}

// release returns the release of the node's containerd. A binary that does not
// say it in a way that can be read is only run where it is this machine's.
func (n *node) release(ctx context.Context, disk runtimes.Disk) runtimes.Release {
	file, r := disk.Containerd()
	if file == "" || r.MinorKnown || n.root != "/" {
		return r
	}
	out, err := exec.CommandContext(ctx, file, "--version").Output()
	if exact, ok := runtimes.ParseRelease(string(out)); err == nil && ok {
		return exact
	}
	return r
}

func newUninstallCommand() *cobra.Command {
	var n node
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Bring the runtime's configuration back to what it was",
		Long: `Brings every file that "install" changed back to what it was, to the byte, and
removes what it made. In a file that was edited since, only what "install" put in
is taken out.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.check(cmd); err != nil {
				return err
			}
			return n.uninstall(cmd.Context(), cmd.OutOrStdout())
		},
	}
	n.addFlags(cmd.Flags())
	return cmd
}

func (n *node) uninstall(ctx context.Context, w io.Writer) error {
	disk := runtimes.Disk{Root: n.root}
	names := runtimes.Names()
	if n.runtime != "auto" {
		names = []string{n.runtime}
	}
	any := false
	for _, name := range names {
		state, err := disk.State(name)
		if err != nil {
			return err
		}
		if len(state.Files) == 0 {
			continue
		}
		any = true
		steps, unsure, err := state.Uninstall(disk)
		if err != nil {
			return err
		}
		if len(unsure) > 0 {
			return state.Unclear(unsure...)
		}
		if n.dryRun {
			if err := diff(w, steps); err != nil {
				return err
			}
			continue
		}
		if err := disk.Remove(steps, state); err != nil {
			return err
		}
		tell(w, steps)
		if err := n.finish(ctx, w, steps, runtimes.RestartOf(disk, name)); err != nil {
			return err
		}
	}
	if !any {
		say(w, "ok", "nothing to take back: nothing is installed")
	}
	return nil
}

// finish restarts the runtime if it must be and may be, or says so.
func (n *node) finish(ctx context.Context, w io.Writer, steps []runtimes.Step, command []string) error {
	if !slices.ContainsFunc(steps, func(s runtimes.Step) bool { return s.Restart }) {
		say(w, "ok", "in force with the next pull; no restart is needed")
		return nil
	}
	line := strings.Join(command, " ")
	if !n.restart {
		say(w, "restart", "needed for this to take effect: %s", line)
		return nil
	}
	if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	say(w, "restarted", "%s", line)
	return nil
}

// tell says what was done to each file.
func tell(w io.Writer, steps []runtimes.Step) {
	for _, s := range steps {
		verb := "changed"
		switch {
		case s.Before == nil:
			verb = "created"
		case s.After == nil:
			say(w, "removed", "%s", s.Path)
			continue
		}
		say(w, verb, "%s: %s", s.Path, s.What)
	}
}

func diff(w io.Writer, steps []runtimes.Step) error {
	for _, s := range steps {
		from, to := "a"+s.Path, "b"+s.Path
		if s.Before == nil {
			from = "/dev/null"
		}
		if s.After == nil {
			to = "/dev/null"
		}
		if _, err := io.WriteString(w, udiff.Unified(from, to, string(s.Before), string(s.After))); err != nil {
			return err
		}
	}
	return nil
}

func say(w io.Writer, what, format string, args ...any) {
	fmt.Fprintf(w, "%-10s", what)
	fmt.Fprintf(w, format+"\n", args...)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
