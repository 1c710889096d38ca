package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

func newStatusCommand() *cobra.Command {
	var schedulers schedulerFlags
	output := "text"
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what the swarm is doing now",
		Long: `Shows the nodes that are connected, the swarms of blobs that nodes are fetching,
and preheat jobs, as the schedulers know them.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return &usageError{fmt.Errorf("--output: %q is none of text, json", output)}
			}
			client, err := schedulers.client()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if output == "json" {
				return json.NewEncoder(out).Encode(st)
			}
			b := &board{width: 80, rows: 1 << 20}
			if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				b.width = terminalWidth(f)
			}
			_, err = io.WriteString(out, b.draw(st, time.Now()))
			return err
		},
	}
	schedulers.add(cmd.Flags())
	cmd.Flags().StringVar(&output, "output", output, "`FORMAT`: text or json")
	cmd.Flags().String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

func newTopCommand() *cobra.Command {
	var schedulers schedulerFlags
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show live what the swarm is doing",
		Long: `Shows the same as status, again and again, with rates and progress, in as many
columns and rows as the terminal has. Ctrl-C ends it.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := applySettings(cmd.Flags()); err != nil {
				return err
			}
			if every < 500*time.Millisecond {
				return &usageError{errors.New("--interval must be at least 500ms")}
			}
			out, ok := cmd.OutOrStdout().(*os.File)
			if !ok || !term.IsTerminal(int(out.Fd())) {
				return &usageError{errors.New("top needs a terminal; status is for everything else")}
			}
			client, err := schedulers.client()
			if err != nil {
				return err
			}
			return top(cmd, client, out, every)
		},
	}
	schedulers.add(cmd.Flags())
	cmd.Flags().DurationVar(&every, "interval", every, "`TIME` between two looks")
	cmd.Flags().String("config", "", "YAML `FILE` with any of these settings")
	return cmd
}

// What terminals understand since the VT100: another screen and back, the
// cursor hidden and shown, home, clear to the end of line and of screen.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// top draws the board until it is interrupted.
func top(cmd *cobra.Command, client *api.Client, out *os.File, every time.Duration) error {
	ctx := cmd.Context()
	first, err := client.Status(ctx)
	if err != nil {
		return err // on the screen that stays
	}
	fmt.Fprint(out, enterScreen)
	defer fmt.Fprint(out, leaveScreen)
	b := &board{live: true}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for st := first; ; {
		b.width, b.rows = 80, 24
		if w, h, err := term.GetSize(int(out.Fd())); err == nil && w > 20 && h > 5 {
			b.width, b.rows = w, h
		}
		text := strings.TrimSuffix(b.draw(st, time.Now()), "\n")
		fmt.Fprint(out, home+strings.ReplaceAll(text, "\n", clearLine+"\r\n")+clearLine+clearRest)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		next, err := client.Status(ctx)
		switch {
		case err == nil:
			st, b.trouble = next, ""
		case ctx.Err() != nil:
			return nil
		default:
			b.trouble = err.Error()
		}
	}
}

// board is what status and top show.
type board struct {
	width, rows int
	live        bool // with rates
	trouble     string

	speeds map[string]*nodeSpeeds
}

type nodeSpeeds struct{ origin, in, out, served speed }

// draw returns the lines of a state, each at most width columns and all at
// most rows.
func (b *board) draw(st api.Status, now time.Time) string {
	b.measure(st, now)
	head := []string{fmt.Sprintf("shoal %s   %s   %s   %s   %s",
		st.Version, plural(len(st.Nodes), "node"), plural(st.Totals.Swarms, "blob"), plural(len(unfinished(st.Jobs)), "running job"), plural(st.Totals.Streams, "origin stream"))}
	if st.Totals.Bans+st.Totals.Holds > 0 {
		head[0] += fmt.Sprintf("   %d banned, %d origins resting", st.Totals.Bans, st.Totals.Holds)
	}
	if b.trouble != "" {
		head = append(head, "! "+b.trouble)
	}
	sections := [][]string{b.jobs(st.Jobs), b.nodes(st.Nodes), b.swarms(st.Swarms)}
	lines := head
	for i, s := range sections {
		// Each section that is left has its share of the rows.
		room := max((b.rows-len(lines))/(len(sections)-i)-1, 3)
		if more := len(s) - room; more > 0 {
			s = append(s[:room-1:room-1], fmt.Sprintf("  … and %d more", more+1))
		}
		if len(s) > 0 {
			lines = append(append(lines, ""), s...)
		}
	}
	lines = lines[:min(len(lines), b.rows)]
	for i, line := range lines {
		if runes := []rune(line); len(runes) > b.width {
			lines[i] = string(runes[:b.width])
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

func (b *board) measure(st api.Status, now time.Time) {
	old := b.speeds
	b.speeds = make(map[string]*nodeSpeeds, len(st.Nodes))
	for _, n := range st.Nodes {
		s := old[n.Name]
		if s == nil {
			s = &nodeSpeeds{}
		}
		s.origin.add(n.Vitals.FromOrigin, now)
		s.in.add(n.Vitals.FromPeers, now)
		s.out.add(n.Vitals.ToPeers, now)
		s.served.add(n.Vitals.Served, now)
		b.speeds[n.Name] = s
	}
}

func unfinished(list []jobs.Job) (out []jobs.Job) {
	for _, j := range list {
		if !j.Ended() {
			out = append(out, j)
		}
	}
	return out
}

// bar draws a share of a whole.
func bar(done, size int64, width int) string {
	full := 0
	if size > 0 {
		full = int(int64(width) * min(done, size) / size)
	}
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
}

func percent(done, size int64) string {
	if size <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*min(done, size)/size)
}

func (b *board) jobs(list []jobs.Job) []string {
	if len(list) == 0 {
		return nil
	}
	out := []string{fmt.Sprintf("%-17s %-9s %-14s %5s %9s %s", "JOB", "STATE", "", "", "NODES", "IMAGES")}
	for _, j := range list {
		names := make([]string, len(j.Images))
		for i, img := range j.Images {
			names[i] = path.Base(img.Name)
		}
		out = append(out, fmt.Sprintf("%-17s %-9s %-14s %5s %9s %s", j.ID, j.State, bar(j.Counts.Bytes, j.Counts.Size, 12),
			percent(j.Counts.Bytes, j.Counts.Size), fmt.Sprintf("%d/%d", j.Counts.Done, j.Counts.Nodes), strings.Join(names, " ")))
	}
	return out
}

// size is a number of bytes in six columns at most.
func size(n int64) string {
	return strings.ReplaceAll(strings.TrimSuffix(humanize.IBytes(uint64(max(n, 0))), "B"), " ", "")
}

func (b *board) nodes(list []jobs.NodeInfo) []string {
	const form = "%-24s %-10s %8s %8s %8s %8s %6s"
	out := []string{fmt.Sprintf(form, "NODE", "ZONE", "ORIGIN", "PEERS", "TO PEERS", "SERVED", "CACHE")}
	for _, n := range list {
		v := n.Vitals
		cells := []string{size(v.FromOrigin), size(v.FromPeers), size(v.ToPeers), size(v.Served)}
		if s := b.speeds[n.Name]; b.live {
			for i, one := range []*speed{&s.origin, &s.in, &s.out, &s.served} {
				cells[i] = "-"
				if one.rate >= 1 {
					cells[i] = size(int64(one.rate)) + "/s"
				}
			}
		}
		out = append(out, fmt.Sprintf(form, shorten(n.Name, 24), shorten(n.Zone, 10), cells[0], cells[1], cells[2], cells[3], percent(v.Used, v.Limit)))
	}
	return out
}

func (b *board) swarms(list []api.Swarm) []string {
	if len(list) == 0 {
		return nil
	}
	out := []string{fmt.Sprintf("%-24s %8s %8s %9s %8s", "BLOB", "SIZE", "FETCHING", "COMPLETE", "ORIGIN")}
	for _, s := range list {
		out = append(out, fmt.Sprintf("%-24s %8s %8d %9d %8d", s.Blob[:min(len(s.Blob), 23)], size(s.Size), s.Wanting, s.Complete, s.Streams))
	}
	return out
}
