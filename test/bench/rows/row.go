// Package rows is the table of figures to reach: for each row what is needed,
// who contends, and how one run of it is measured. Adding a row is adding a
// [Row] to [All].
package rows

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/netns"
	"github.com/shoalproject/shoal/test/bench/report"
)

// Options are what the sizes of all rows come from.
type Options struct {
	// Runs of each contender, unless a line says otherwise.
	Runs int
	// Only keeps the lines whose name contains it.
	Only string
	// Dir is where directories to work in are made.
	Dir string
	// Shoal is the path of the binary under test.
	Shoal string
	// Log gets a line per run.
	Log io.Writer

	// Logs is a directory that keeps what processes log, "" for none.
	Logs string

	// Layer is the size of the one large layer, in bytes.
	Layer int64
	// Rate of the links; 0 is for what a row takes by itself.
	Rate netns.Rate
	// Nodes of a swarm.
	Nodes int
	// Thin is the rate between the zones of row 10.
	Thin netns.Rate
	// Congestion is TCP's congestion control in a swarm; "" is the machine's.
	Congestion string
	// Trace gets the course of every pull by a swarm, unless it is nil.
	Trace io.Writer
	// Brief leaves out contenders that take long and are in no figure.
	Brief bool
	// Alone starts the daemons of a swarm without a scheduler.
	Alone bool
	// Liar is the path of the binary that lies in row 13.
	Liar string
	// HitTime is how long one run of row 6 reads.
	HitTime time.Duration
	// Connections of row 6, a line each.
	Connections []int
	// Passing and Stored are the sizes of row 9 in bytes: of a layer that the
	// store does not take, and of one that it does. 0 leaves the line out.
	Passing, Stored int64
}

// Row is one row of the table.
type Row struct {
	ID    int
	Title string
	// Covers are further rows that its lines have figures of.
	Covers []int
	// Root: it makes network namespaces.
	Root  bool
	Needs []bed.Need
	// Lines prepares what the lines have in common and returns them. What it
	// starts goes with the bed.
	Lines func(ctx context.Context, b *bed.Bed, o Options) ([]Line, error)
}

// Line is one comparison within a row.
type Line struct {
	Name string
	Unit string
	// Runs is 0 for as many as the options say.
	Runs int
	// Goal is nil if the line only informs.
	Goal *report.Goal
	// Contenders: ours first, then the one that it is compared with.
	Contenders []Contender
	// Plain: the figure is our own value; see [report.Result].
	Plain bool
	// Also are further figures that the same runs give.
	Also []Also
}

// Also is a figure that is among the notes of the samples.
type Also struct {
	// Row is the number of the row that it belongs to, 0 for that of the line.
	Row   int
	Title string
	// Note is its name among the notes. Contenders without it are left out.
	Note  string
	Goal  *report.Goal
	Plain bool
}

// Contender is one of those that are compared.
type Contender struct {
	Name string
	// Measure does one run.
	Measure func(context.Context) (report.Sample, error)
	// Runs is how many at most, 0 for as many as the line has.
	Runs int
}

// All are the rows that can be measured so far.
var All = []Row{row1, row4, row5, row6, row7, row9, row10, row12, row13}

// Run measures the row. What goes wrong is in the results.
func (r Row) Run(ctx context.Context, o Options) (results []report.Result) {
	failed := func(err error) []report.Result {
		return append(results, report.Result{Row: r.ID, Title: r.Title, Line: r.Title, Goal: nil, Err: err.Error()})
	}
	if err := bed.Missing(r.Root, r.Needs...); err != nil {
		return failed(err)
	}
	b, err := bed.New(o.Dir, o.Shoal)
	if err != nil {
		return failed(err)
	}
	b.Logs = o.Logs
	defer func() {
		if err := b.Close(); err != nil {
			results = failed(fmt.Errorf("cleaning up: %w", err))
		}
	}()
	lines, err := r.Lines(ctx, b, o)
	if err != nil {
		return failed(err)
	}
	for _, l := range lines {
		if strings.Contains(l.Name, o.Only) && ctx.Err() == nil {
			results = append(results, l.run(ctx, r, o)...)
		}
	}
	return results
}

// run takes the contenders in turn, so that what the machine does besides
// meets them alike.
func (l Line) run(ctx context.Context, r Row, o Options) []report.Result {
	res := report.Result{Row: r.ID, Title: r.Title, Line: l.Name, Unit: l.Unit, Goal: l.Goal, Plain: l.Plain}
	for _, c := range l.Contenders {
		res.Contenders = append(res.Contenders, report.Contender{Name: c.Name})
	}
	runs := l.Runs
	if runs == 0 {
		runs = o.Runs
	}
	for run := range runs {
		for i, c := range l.Contenders {
			if c.Runs > 0 && run >= c.Runs {
				continue
			}
			err := ctx.Err()
			var s report.Sample
			if err == nil {
				s, err = c.Measure(ctx)
			}
			if err != nil {
				res.Err = fmt.Sprintf("run %d of %s: %v", run+1, c.Name, err)
				return l.with(res)
			}
			fmt.Fprintf(o.Log, "row %d, %s, run %d of %d, %s: %v\n", r.ID, l.Name, run+1, runs, c.Name, s.In(l.Unit))
			res.Contenders[i].Samples = append(res.Contenders[i].Samples, s)
		}
	}
	return l.with(res)
}

// with adds the further figures to the one of the line.
func (l Line) with(res report.Result) []report.Result {
	out := []report.Result{res}
	for _, a := range l.Also {
		also := report.Result{Row: a.Row, Title: a.Title, Line: a.Title + ": " + l.Name, Goal: a.Goal, Plain: a.Plain, Err: res.Err}
		if a.Row == 0 {
			also.Row = res.Row
		}
		for _, c := range res.Contenders {
			has := report.Contender{Name: c.Name}
			for _, s := range c.Samples {
				for _, n := range s.Notes {
					if n.Name == a.Note {
						has.Samples = append(has.Samples, report.Sample{Value: n.Value})
						also.Unit = n.Unit
					}
				}
			}
			if has.Samples != nil {
				also.Contenders = append(also.Contenders, has)
			}
		}
		out = append(out, also)
	}
	return out
}

// atMost and atLeast are goals.
func atMost(f float64) *report.Goal  { return &report.Goal{Bound: f} }
func atLeast(f float64) *report.Goal { return &report.Goal{Bound: f, AtLeast: true} }

// gib is a number of bytes in GiB.
func gib(n int64) float64 { return float64(n) / (1 << 30) }

// size writes a number of bytes for people.
func size(n int64) string {
	for _, u := range []struct {
		unit  string
		shift int
	}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n >= 1<<u.shift {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(int64(1)<<u.shift), u.unit)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// closing joins the error of a Close to another.
func closing(err *error, close func() error) {
	*err = errors.Join(*err, close())
}
