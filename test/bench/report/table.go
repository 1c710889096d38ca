package report

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// WriteTable writes the report for people: per line one row of text for each
// contender, with the figure beside the first.
func (r *Report) WriteTable(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "%s, %d cores, Linux %s, TCP %s, %s\n\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Congestion, r.Machine.Go); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "row\tline\tcontender\tmedian\tmin–max\truns\tfigure\tmin–max\treach\tverdict\tbesides")
	for _, res := range r.Results {
		res.writeRows(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, res := range r.Results {
		if res.Err == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "\nrow %d, %s: %s\n", res.Row, res.Line, res.Err); err != nil {
			return err
		}
	}
	return nil
}

func (r Result) writeRows(w io.Writer) {
	if len(r.Contenders) == 0 {
		fmt.Fprintf(w, "%d\t%s\t\t\t\t\t\t\t%s\t%s\t\n", r.Row, r.Line, r.reach(), r.Verdict())
	}
	for i, c := range r.Contenders {
		row, line, figure := "", "", "\t\t\t"
		if i == 0 {
			row, line = fmt.Sprint(r.Row), r.Line
			f := r.Figure()
			d := r.figureDigits(f)
			figure = strings.Join([]string{number(f.Median, d), span(f, d), r.reach(), string(r.Verdict())}, "\t")
		}
		s := SpreadOf(c.values())
		d := digits(s.Median)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s %s\t%s\t%d\t%s\t%s\n", row, line, c.Name,
			number(s.Median, d), r.Unit, span(s, d), len(c.Samples), figure, c.notes())
	}
}

// figureDigits is three for ratios, which are near 1.
func (r Result) figureDigits(f Spread) int {
	if r.relative() {
		return 3
	}
	return digits(f.Median)
}

// number leaves out what is none.
func number(v float64, digits int) string {
	if math.IsNaN(v) {
		return ""
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

func span(s Spread, digits int) string {
	if math.IsNaN(s.Median) {
		return ""
	}
	return number(s.Min, digits) + "–" + number(s.Max, digits)
}

func (r Result) reach() string {
	if r.Goal == nil {
		return ""
	}
	sign := "≤"
	if r.Goal.AtLeast {
		sign = "≥"
	}
	return fmt.Sprintf("%s %g", sign, r.Goal.Bound)
}

// notes are the medians of what was measured besides.
func (c Contender) notes() string {
	if len(c.Samples) == 0 {
		return ""
	}
	var out []string
	for i, n := range c.Samples[0].Notes {
		var v []float64
		for _, s := range c.Samples {
			if i < len(s.Notes) {
				v = append(v, s.Notes[i].Value)
			}
		}
		n.Value = SpreadOf(v).Median
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}

// digits is how many decimals show what a noisy measurement is good for.
func digits(v float64) int {
	switch {
	case v >= 100:
		return 0
	case v >= 10:
		return 1
	}
	return 2
}
