package report

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func samples(values ...float64) []Sample {
	s := make([]Sample, len(values))
	for i, v := range values {
		s[i] = Sample{Value: v, Notes: []Note{{Name: "cpu", Value: 2 * v, Unit: "s/GiB"}}}
	}
	return s
}

func TestSpreadOf(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9}},
	} {
		in := append([]float64(nil), c.in...)
		if got := SpreadOf(in); got != c.want {
			t.Errorf("SpreadOf(%v) = %v, want %v", c.in, got, c.want)
		}
		for i := range in {
			if in[i] != c.in[i] {
				t.Errorf("SpreadOf has reordered its argument: %v", in)
			}
		}
	}
	if got := SpreadOf(nil); !math.IsNaN(got.Median) {
		t.Errorf("SpreadOf(nil) = %v, want NaN", got)
	}
}

func TestRatioPairsRuns(t *testing.T) {
	// The machine halved its speed after the first run: the values spread
	// twofold, the ratios do not.
	got := Ratio([]float64{11, 22, 22}, []float64{10, 20, 20})
	if got.Min != 1.1 || got.Max != 1.1 || got.Median != 1.1 {
		t.Errorf("got %v, want 1.1 throughout", got)
	}
}

func TestVerdict(t *testing.T) {
	two := func(a, b float64) []Contender {
		return []Contender{{"shoal", samples(a)}, {"other", samples(b)}}
	}
	for _, c := range []struct {
		name string
		res  Result
		want Verdict
	}{
		{"at the bound", Result{Goal: &Goal{Bound: 1.5}, Contenders: two(3, 2)}, Pass},
		{"above", Result{Goal: &Goal{Bound: 1.5}, Contenders: two(3.1, 2)}, Missed},
		{"high enough", Result{Goal: &Goal{Bound: 0.95, AtLeast: true}, Contenders: two(96, 100)}, Pass},
		{"too low", Result{Goal: &Goal{Bound: 0.95, AtLeast: true}, Contenders: two(94, 100)}, Missed},
		{"a value of its own", Result{Goal: &Goal{Bound: 128}, Contenders: two(100, 0)[:1]}, Pass},
		{"no goal", Result{Contenders: two(3, 2)}, Info},
		{"no sample", Result{Contenders: []Contender{{Name: "shoal"}, {Name: "other"}}}, Failed},
		{"cut short", Result{Contenders: two(1, 1), Err: "the disk is full"}, Failed},
	} {
		if got := c.res.Verdict(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	r := &Report{
		Machine: Machine{CPU: "abacus", Cores: 2, Kernel: "6.1", Congestion: "cubic", Go: "go1.26"},
		Results: []Result{
			{Row: 5, Line: "one layer", Unit: "s", Goal: &Goal{Bound: 1.03},
				Contenders: []Contender{{"shoal", samples(10.1, 10.3)}, {"direct", samples(10, 10)}}},
			{Row: 9, Line: "100 GiB", Unit: "MiB", Err: "no\nway", Goal: &Goal{Bound: 128}},
		},
	}
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want := `abacus, 2 cores, Linux 6.1, TCP cubic, go1.26

row  line       contender  median  min–max    runs  figure  min–max      reach   verdict  besides
5    one layer  shoal      10.2 s  10.1–10.3  2     1.020   1.010–1.030  ≤ 1.03  pass     cpu 20.4 s/GiB
                direct     10.0 s  10.0–10.0  2                                           cpu 20.0 s/GiB
9    100 GiB                                                             ≤ 128   FAILED   

row 9, 100 GiB: no
way
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if r.Good() {
		t.Error("a report with a failed line is good")
	}
}

func TestJSON(t *testing.T) {
	r := &Report{Results: []Result{{Row: 9}, {Row: 5, Contenders: []Contender{{"a", samples(3)}, {"b", samples(2)}}}}}
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Results []struct {
			Row     int
			Figure  *Spread
			Verdict string
		}
	}
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Results) != 2 || back.Results[0].Figure != nil || back.Results[1].Figure.Median != 1.5 || back.Results[1].Verdict != "info" {
		t.Errorf("got %s", b.String())
	}
}
