// Command bench measures the figures that Shoal promises, contenders side by
// side in one run, and prints them as a table. README.md says how to read it.
//
// It exits with 0 if every figure is reached, 1 if one is missed or could not
// be measured, and 2 for bad usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/netns"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/rows"
)

func main() {
	// Nobody reading the output any more is no reason to leave things behind.
	// It cannot be waited for as the others are: then a write to a socket
	// whose other end is gone counts as well.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	switch {
	case len(args) > 0 && args[0] == "client":
		return client(ctx, args[1:])
	case len(args) == 4 && args[0] == "tap":
		if err := bed.ServeTap(ctx, args[1], args[2], args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	conf, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp): // is errFlags too
		return 0
	case errors.Is(err, errFlags):
		return 2
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	rep, err := conf.measure(ctx)
	if err == nil {
		err = conf.print(rep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if !rep.Good() {
		return 1
	}
	return 0
}

// errFlags is a wrong flag, of which package flag has said what is wrong.
var errFlags = errors.New("bad flags")

type config struct {
	rows.Options
	rows []rows.Row
	json string
	// trace is the file of Options.Trace.
	trace string
}

func parse(args []string) (*config, error) {
	c := &config{Options: rows.Options{Log: os.Stderr}}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	list := fs.String("rows", "", "`rows` to measure (default all)")
	fs.IntVar(&c.Runs, "runs", 5, "`number` of runs of each contender")
	fs.StringVar(&c.Only, "only", "", "only the lines whose name contains this `text`")
	fs.StringVar(&c.json, "json", "", "write the results to this `file` too, - for the standard output instead of the table")
	fs.StringVar(&c.Dir, "dir", "", "`directory` to work in, on the disk that is to be measured (default the system's for temporary files)")
	fs.StringVar(&c.Shoal, "shoal", "", "`binary` under test (default built from the repository)")
	quick := fs.Bool("quick", false, "small sizes and 2 runs: whether it works, not how fast it is")
	layer := fs.Int64("layer", 256, "`MiB` of the large layer")
	rate := fs.Float64("rate", 0, "`Mbit/s` of every shaped link (default 100, in row 5 200)")
	fs.IntVar(&c.Nodes, "nodes", 16, "`number` of nodes in a swarm; row 7 has 8")
	thin := fs.Float64("thin", 50, "`Mbit/s` between the zones of row 10")
	fs.StringVar(&c.Congestion, "congestion", "", "TCP's congestion `control` in a swarm (default the machine's)")
	fs.StringVar(&c.trace, "trace", "", "`file` to write the course of every pull by a swarm to")
	fs.BoolVar(&c.Brief, "brief", false, "leave out direct pulls by all nodes, which take as many times the ideal as there are nodes")
	fs.BoolVar(&c.Alone, "alone", false, "no scheduler: the daemons of a swarm know nothing of each other")
	fs.StringVar(&c.Liar, "liar", "", "`binary` that lies in row 13 (default built from the repository)")
	fs.StringVar(&c.Logs, "logs", "", "`directory` to keep what all processes log")
	fs.DurationVar(&c.HitTime, "hit-time", 3*time.Second, "`time` of a run of row 6")
	conns := fs.String("connections", "1,4", "`numbers` of connections of row 6")
	passing := fs.Int64("passing", 100, "`GiB` of the layer of row 9 that passes the store; 0 for none")
	stored := fs.Int64("stored", 16, "`GiB` of the layer of row 9 that goes into the store; 0 for none")
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("%w: %w", errFlags, err)
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("what is %q?", fs.Arg(0))
	}
	if *quick {
		given := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, set := range map[string]func(){
			"runs": func() { c.Runs = 2 }, "layer": func() { *layer = 64 }, "hit-time": func() { c.HitTime = time.Second },
			"passing": func() { *passing = 4 }, "stored": func() { *stored = 4 },
		} {
			if !given[name] {
				set()
			}
		}
	}
	c.Layer, c.Passing, c.Stored = *layer<<20, *passing<<30, *stored<<30
	c.Rate, c.Thin = netns.Rate(*rate*float64(netns.Mbit)), netns.Rate(*thin*float64(netns.Mbit))
	for name, v := range map[string]int64{"runs": int64(c.Runs), "layer": c.Layer, "hit-time": int64(c.HitTime), "thin": int64(c.Thin), "rate": int64(c.Rate) + 1} {
		if v <= 0 {
			return nil, fmt.Errorf("--%s must be more than 0", name)
		}
	}
	if c.Nodes < 2 || c.Nodes > 100 {
		return nil, errors.New("--nodes must be between 2 and 100")
	}
	var err error
	if c.Connections, err = numbers(*conns); err != nil {
		return nil, fmt.Errorf("--connections: %w", err)
	}
	if *list == "" {
		c.rows = rows.All
		return c, nil
	}
	wanted, err := numbers(*list)
	if err != nil {
		return nil, fmt.Errorf("--rows: %w", err)
	}
	c.rows, err = choose(wanted)
	return c, err
}

func numbers(s string) ([]int, error) {
	var out []int
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number from 1", f)
		}
		out = append(out, n)
	}
	return out, nil
}

// choose finds the rows that have the numbers; one that has several of them
// comes once.
func choose(ids []int) ([]rows.Row, error) {
	var out []rows.Row
	for _, id := range ids {
		has := func(r rows.Row) bool { return r.ID == id || slices.Contains(r.Covers, id) }
		at := slices.IndexFunc(rows.All, has)
		switch {
		case at < 0:
			return nil, fmt.Errorf("--rows: there is no row %d here", id)
		case !slices.ContainsFunc(out, has):
			out = append(out, rows.All[at])
		}
	}
	return out, nil
}

func (c *config) measure(ctx context.Context) (*report.Report, error) {
	if err := bed.ExtendPath(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "shoal-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := func(path *string, pkg string) (err error) {
		if *path == "" {
			*path, err = bed.Build(dir, pkg)
		}
		return err
	}
	if err := build(&c.Shoal, "cmd/shoal"); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(c.rows, func(r rows.Row) bool { return r.ID == 13 }) {
		if err := build(&c.Liar, "swarmtest/liar"); err != nil {
			return nil, err
		}
	}
	if c.trace != "" {
		f, err := os.Create(c.trace)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		c.Trace = f
	}
	rep := &report.Report{Started: time.Now(), Machine: machine()}
	if c.Congestion != "" {
		rep.Machine.Congestion += ", in swarms " + c.Congestion
	}
	for _, r := range c.rows {
		if ctx.Err() != nil {
			break // what was measured so far is worth showing
		}
		rep.Results = append(rep.Results, r.Run(ctx, c.Options)...)
	}
	return rep, nil
}

func (c *config) print(rep *report.Report) error {
	if c.json == "-" {
		return rep.WriteJSON(os.Stdout)
	}
	if c.json != "" {
		f, err := os.Create(c.json)
		if err != nil {
			return err
		}
		if err := rep.WriteJSON(f); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return rep.WriteTable(os.Stdout)
}

func machine() report.Machine {
	m := report.Machine{CPU: "unknown CPU", Cores: runtime.NumCPU(), Go: runtime.Version(), Congestion: "unknown"}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		m.Congestion = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	return m
}
