package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalproject/shoal/doctor"
	"github.com/shoalproject/shoal/runtimes"
)

// errTraps is that the doctor found something, which it has said already.
var errTraps = errors.New("something keeps pulls from the mirror, see above")

func newDoctorCommand() *cobra.Command {
	var n node
	cfg := doctor.Config{Admin: "127.0.0.1:4403"}
	output := "text"
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the whole way of a pull, and explain what is wrong",
		Long: `Looks at the runtime's configuration, the daemon and its mirror, certificates,
schedulers, peers and the clock, and makes a real request through the mirror. For
each thing that keeps pulls from the mirror it says what it is and what to do. It
changes nothing. Exit code 0: all is well; 1: something is not.`,
		Example: `  shoal containerd doctor
  shoal containerd doctor --image registry.example.com/team/app:1.2 --output json`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := n.check(cmd); err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return &usageError{fmt.Errorf("--output: %q is none of text, json", output)}
			}
			for i, r := range cfg.Options.Registries {
				host, err := registryHost(r)
				if err != nil {
					return &usageError{fmt.Errorf("--registry: %w", err)}
				}
				cfg.Options.Registries[i] = host
			}
			return n.examine(cmd.Context(), cmd.OutOrStdout(), cfg, output)
		},
	}
	f := cmd.Flags()
	n.addPlace(f)
	f.StringVar(&cfg.Options.Config, "runtime-config", "", "`FILE` that is the runtime's main configuration, if it is at none of the usual places")
	f.StringVar(&cfg.Admin, "admin", cfg.Admin, "`HOST:PORT` of the daemon's --admin-listen")
	f.StringVar(&cfg.Options.Mirror, "mirror", "", "`URL` that the runtime is to ask (default where the daemon listens)")
	f.StringArrayVar(&cfg.Options.Registries, "registry", nil, "`HOST` of a registry for which the runtime must ask the mirror; repeatable (default those for which it does)")
	f.StringVar(&cfg.Image, "image", "", "`IMAGE` to ask for through the mirror (default a small public one)")
	f.StringVar(&output, "output", output, "text or json")
	return cmd
}

func (n *node) examine(ctx context.Context, w io.Writer, cfg doctor.Config, output string) error {
	disk := runtimes.Disk{Root: n.root}
	name, _, err := n.choose(disk)
	if err != nil {
		return err
	}
	cfg.Tree, cfg.Runtime = disk, name
	cfg.Options.Release = n.release(ctx, disk)
	state, err := disk.State(name)
	if err != nil {
		return err
	}
	cfg.Installed = state.Mirror
	if n.root == "/" {
		cfg.Started, cfg.Changed = runtimes.Started(name), disk.Changed
	}
	checks, good := doctor.Run(ctx, cfg)
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		err = e.Encode(struct {
			OK     bool           `json:"ok"`
			Checks []doctor.Check `json:"checks"`
		}{good, checks})
	} else {
		printChecks(w, checks)
	}
	if err == nil && !good {
		err = errTraps
	}
	return err
}

// printChecks writes a line for each check, and the remedy below a trap.
func printChecks(w io.Writer, checks []doctor.Check) {
	paint := func(code int, s string) string { return s }
	if f, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			paint = func(code int, s string) string { return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, s) }
		}
	}
	words := map[doctor.Status]string{doctor.OK: paint(32, "OK  "), doctor.Trap: paint(31, "TRAP"), doctor.Skipped: paint(2, "-   ")}
	for _, c := range checks {
		fmt.Fprintf(w, "%s  %-13s  %s\n", words[c.Status], c.Name, c.Text)
		if c.Remedy != "" {
			fmt.Fprintf(w, "%s%s %s\n", strings.Repeat(" ", 21), paint(1, "→"), c.Remedy)
		}
	}
}
