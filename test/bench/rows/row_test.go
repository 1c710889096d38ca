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
		return Contender{name, func(context.Context) (report.Sample, error) {
			if n++; n == fail {
				return report.Sample{}, errors.New("broken")
			}
			order = append(order, name)
			return report.Sample{Value: float64(n)}, nil
		}}
	}
	o := Options{Runs: 3, Log: io.Discard}
	l := Line{Name: "line", Contenders: []Contender{contender("a", 0), contender("b", 0)}}
	res := l.run(t.Context(), Row{ID: 1}, o)
	if want := []string{"a", "b", "a", "b", "a", "b"}; !slices.Equal(order, want) || res.Err != "" {
		t.Errorf("ran %v, %q; want %v", order, res.Err, want)
	}
	l.Contenders = []Contender{contender("a", 0), contender("b", 2)}
	res = l.run(t.Context(), Row{ID: 1}, o)
	if want := "run 2 of b: broken"; res.Err != want || res.Verdict() != report.Failed {
		t.Errorf("got %q, %s; want %q", res.Err, res.Verdict(), want)
	}
}

func TestRowsAreComplete(t *testing.T) {
	seen := map[int]bool{}
	for _, r := range All {
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
