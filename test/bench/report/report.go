// Package report turns measured samples into figures, a table and JSON. It
// knows nothing of how they were measured.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// Sample is what one run of one contender gave.
type Sample struct {
	// Value is the measured value in the unit of its result.
	Value float64 `json:"value"`
	// Notes are measured beside it, the same ones in every sample.
	Notes []Note `json:"notes,omitempty"`
}

// In writes the sample for people, its value in the unit of its result.
func (s Sample) In(unit string) string {
	out := fmt.Sprintf("%.*f %s", digits(s.Value), s.Value, unit)
	for _, n := range s.Notes {
		out += ", " + n.String()
	}
	return out
}

func (n Note) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %.*f %s", n.Name, digits(n.Value), n.Value, n.Unit))
}

// Note is a value that explains a figure without being one.
type Note struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
}

// Contender is one of those that are compared.
type Contender struct {
	Name    string   `json:"name"`
	Samples []Sample `json:"samples"`
}

func (c Contender) values() []float64 {
	v := make([]float64, len(c.Samples))
	for i, s := range c.Samples {
		v[i] = s.Value
	}
	return v
}

// Goal is the figure to reach.
type Goal struct {
	Bound float64 `json:"bound"`
	// AtLeast: the figure must not be below the bound. Otherwise it must not
	// be above it.
	AtLeast bool `json:"at_least"`
}

// Reached reports whether the figure is on the right side of the bound.
func (g Goal) Reached(figure float64) bool {
	if g.AtLeast {
		return figure >= g.Bound
	}
	return figure <= g.Bound
}

// Result is one line of a row: contenders that did the same thing.
type Result struct {
	Row   int    `json:"row"`
	Title string `json:"title"`
	Line  string `json:"line"`
	// Unit of the samples' values, and of the figure if there is one
	// contender.
	Unit string `json:"unit"`
	// Goal is nil for a line that only informs.
	Goal *Goal `json:"goal,omitempty"`
	// Contenders: ours first. With two or more the figure is the ratio of the
	// first to the second; with one it is the value itself.
	Contenders []Contender `json:"contenders"`
	// Plain: the figure is the value of the first contender in any case. The
	// others are there to compare.
	Plain bool `json:"plain,omitempty"`
	// Err is why nothing or not all was measured.
	Err string `json:"error,omitempty"`
}

// Figure is the figure of the line. All are NaN without samples.
func (r Result) Figure() Spread {
	switch {
	case len(r.Contenders) == 0:
		return SpreadOf(nil)
	case !r.relative():
		return SpreadOf(r.Contenders[0].values())
	}
	return Ratio(r.Contenders[0].values(), r.Contenders[1].values())
}

// relative reports whether the figure is a ratio.
func (r Result) relative() bool { return len(r.Contenders) >= 2 && !r.Plain }

// Verdict is what became of a line.
type Verdict string

// The verdicts.
const (
	Pass   Verdict = "pass"
	Missed Verdict = "MISSED"
	Info   Verdict = "info"
	Failed Verdict = "FAILED" // could not be measured
)

// Verdict judges the figure by its middle.
func (r Result) Verdict() Verdict {
	f := r.Figure().Median
	switch {
	case r.Err != "" || math.IsNaN(f):
		return Failed
	case r.Goal == nil:
		return Info
	case r.Goal.Reached(f):
		return Pass
	}
	return Missed
}

// Report is everything of one run.
type Report struct {
	Machine Machine   `json:"machine"`
	Started time.Time `json:"started"`
	Results []Result  `json:"results"`
}

// Machine is what the figures were measured on.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	// Congestion is TCP's congestion control.
	Congestion string `json:"congestion"`
}

// Good reports whether every figure was reached.
func (r *Report) Good() bool {
	for _, res := range r.Results {
		if v := res.Verdict(); v == Missed || v == Failed {
			return false
		}
	}
	return true
}

// WriteJSON writes the report with its figures, by which machines compare.
func (r *Report) WriteJSON(w io.Writer) error {
	type judged struct {
		Result
		Figure  *Spread `json:"figure,omitempty"` // NaN is not JSON
		Verdict Verdict `json:"verdict"`
	}
	out := struct {
		*Report
		Results []judged `json:"results"`
	}{Report: r, Results: make([]judged, len(r.Results))}
	for i, res := range r.Results {
		out.Results[i] = judged{Result: res, Verdict: res.Verdict()}
		if f := res.Figure(); !math.IsNaN(f.Median) {
			out.Results[i].Figure = &f
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		return fmt.Errorf("writing the report as JSON: %w", err)
	}
	return nil
}
