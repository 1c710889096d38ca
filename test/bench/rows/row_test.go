package rows

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/report"
)

func TestZerosDigest(t *testing.T) {
	const small = 64 << 20
	want, err := registrytest.Digest(registrytest.Zeros{}, small)
	if err != nil {
		t.Fatal(err)
	}
	if zeros[small] != want {
		t.Errorf("%d zero bytes have %s, not %s", small, want, zeros[small])
	}
	for n, d := range zeros {
		if err := d.Validate(); err != nil {
			t.Errorf("the digest of %d zero bytes: %v", n, err)
		}
	}
}

func TestRunsTakeTurns(t *testing.T) {
	var order []string
	contender := func(name string, fail int) Contender {
		n := 0
		return Contender{Name: name, Measure: func(context.Context) (report.Sample, error) {
			if n++; n == fail {
				return report.Sample{}, errors.New("broken")
			}
			order = append(order, name)
			return report.Sample{Value: float64(n)}, nil
		}}
	}
	o := Options{Runs: 3, Log: io.Discard}
	l := Line{Name: "line", Contenders: []Contender{contender("a", 0), contender("b", 0)}}
	res := l.run(t.Context(), Row{ID: 1}, o)[0]
	if want := []string{"a", "b", "a", "b", "a", "b"}; !slices.Equal(order, want) || res.Err != "" {
		t.Errorf("ran %v, %q; want %v", order, res.Err, want)
	}
	l.Contenders = []Contender{contender("a", 0), contender("b", 2)}
	res = l.run(t.Context(), Row{ID: 1}, o)[0]
	if want := "run 2 of b: broken"; res.Err != want || res.Verdict() != report.Failed {
		t.Errorf("got %q, %s; want %q", res.Err, res.Verdict(), want)
	}
}

func TestNotesAreFigures(t *testing.T) {
	contender := func(name string, runs int, notes ...report.Note) Contender {
		return Contender{Name: name, Runs: runs, Measure: func(context.Context) (report.Sample, error) {
			return report.Sample{Value: 1, Notes: notes}, nil
		}}
	}
	l := Line{
		Name: "line", Plain: true,
		Contenders: []Contender{contender("a", 0, report.Note{Name: "x", Value: 3}, report.Note{Name: "y", Value: 7, Unit: "s"}), contender("b", 1, report.Note{Name: "x", Value: 2}), contender("c", 0)},
		Also:       []Also{{Row: 8, Title: "ratio", Note: "x", Goal: atMost(1.4)}, {Title: "plain", Note: "y", Goal: atMost(7), Plain: true}},
	}
	got := l.run(t.Context(), Row{ID: 1}, Options{Runs: 2, Log: io.Discard})
	if len(got) != 3 {
		t.Fatalf("got %d results, want 3", len(got))
	}
	if f := got[0].Figure().Median; f != 1 || len(got[0].Contenders[1].Samples) != 1 {
		t.Errorf("the line itself: %+v", got[0])
	}
	if f := got[1].Figure().Median; f != 1.5 || got[1].Row != 8 || len(got[1].Contenders) != 2 || got[1].Verdict() != report.Missed {
		t.Errorf("the ratio: %v of %+v", f, got[1])
	}
	if f := got[2].Figure().Median; f != 7 || got[2].Row != 1 || got[2].Unit != "s" || got[2].Verdict() != report.Pass {
		t.Errorf("the plain one: %v of %+v", f, got[2])
	}
}

func TestRowsAreComplete(t *testing.T) {
	seen := map[int]bool{}
	for _, r := range All {
		for _, id := range r.Covers {
			if seen[id] {
				t.Errorf("row %d is covered twice", id)
			}
			seen[id] = true
		}
		if seen[r.ID] || r.Title == "" || r.Lines == nil {
			t.Errorf("row %d is twice or not whole", r.ID)
		}
		seen[r.ID] = true
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{100 << 30: "100 GiB", 256 << 20: "256 MiB", 1536: "1.5 KiB", 7: "7 bytes"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}
