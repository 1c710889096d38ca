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

	// Layer is the size of the one large layer of rows 5 and 6, in bytes.
	Layer int64
	// Rate is that of the link to the origin of row 5.
	Rate netns.Rate
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
}

// Contender is one of those that are compared.
type Contender struct {
	Name string
	// Measure does one run.
	Measure func(context.Context) (report.Sample, error)
}

// All are the rows that can be measured so far.
var All = []Row{row5, row6, row9}

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
		if strings.Contains(l.Name, o.Only) {
			results = append(results, l.run(ctx, r, o))
		}
	}
	return results
}

// run takes the contenders in turn, so that what the machine does besides
// meets them alike.
func (l Line) run(ctx context.Context, r Row, o Options) report.Result {
	res := report.Result{Row: r.ID, Title: r.Title, Line: l.Name, Unit: l.Unit, Goal: l.Goal}
	for _, c := range l.Contenders {
		res.Contenders = append(res.Contenders, report.Contender{Name: c.Name})
	}
	runs := l.Runs
	if runs == 0 {
		runs = o.Runs
	}
	for run := range runs {
		for i, c := range l.Contenders {
			if err := ctx.Err(); err != nil {
				res.Err = err.Error()
				return res
			}
			s, err := c.Measure(ctx)
			if err != nil {
				res.Err = fmt.Sprintf("run %d of %s: %v", run+1, c.Name, err)
				return res
			}
			fmt.Fprintf(o.Log, "row %d, %s, run %d of %d, %s: %v\n", r.ID, l.Name, run+1, runs, c.Name, s.In(l.Unit))
			res.Contenders[i].Samples = append(res.Contenders[i].Samples, s)
		}
	}
	return res
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
