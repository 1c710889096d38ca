package fetch

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/piece"
)

// Whatever readers and workers do, no piece belongs to two, none that is
// there is fetched again, and the work ends with all of them there.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "pieces")
		p := newPlan(piece.NewLayout(int64(n)*piece.MinLength - 7))
		for i := range n {
			switch rapid.IntRange(0, 5).Draw(t, "left from before") {
			case 0:
				p.have.Add(i)
			case 1:
				p.claimed.Add(i)
			}
		}
		done := 0
		finish := func(r *run) {
			if p.have.Has(r.next) {
				t.Fatalf("piece %d is fetched although it is there", r.next)
			}
			done++
			p.done(r)
		}
		t.Repeat(map[string]func(*rapid.T){
			"start": func(t *rapid.T) { p.start(rapid.IntRange(0, n-1).Draw(t, "i")) },
			"startAt": func(t *rapid.T) {
				i := rapid.IntRange(0, n-1).Draw(t, "i")
				if r := p.startAt(i); r != nil && r.next != i {
					t.Fatalf("startAt(%d) starts at %d", i, r.next)
				}
			},
			"work": func(t *rapid.T) {
				if len(p.runs) == 0 {
					t.Skip("nobody works")
				}
				r := rapid.SampledFrom(p.runs).Draw(t, "run")
				switch {
				case r.next >= r.end:
					p.stop(r)
				case r.recheck && rapid.Bool().Draw(t, "refuted"):
					p.refuted(r)
				default:
					finish(r)
				}
			},
			"give up": func(t *rapid.T) {
				if len(p.runs) == 0 {
					t.Skip("nobody works")
				}
				p.stop(rapid.SampledFrom(p.runs).Draw(t, "run"))
			},
			"": func(t *rapid.T) { checkPlan(t, p, n) },
		})
		// Whoever is left does the rest, alone.
		for _, r := range append([]*run(nil), p.runs...) {
			p.stop(r)
		}
		for r := p.start(0); r != nil; r = p.start(r.next) {
			for r.next < r.end {
				p.done(r)
			}
			p.stop(r)
		}
		if !p.have.Full() || p.claimed.Count() != 0 {
			t.Fatalf("%d of %d pieces are there, %d claimed", p.have.Count(), n, p.claimed.Count())
		}
		if end := p.readable(0); end != p.layout.Size() {
			t.Fatalf("readable to %d of %d", end, p.layout.Size())
		}
	})
}

func checkPlan(t *rapid.T, p *plan, n int) {
	owner := make([]*run, n)
	for _, r := range p.runs {
		for i := r.next; i < r.end; i++ {
			switch {
			case owner[i] != nil:
				t.Fatalf("piece %d belongs to two runs", i)
			case p.have.Has(i):
				t.Fatalf("piece %d is there and in a run", i)
			case p.claimed.Has(i) != r.recheck:
				t.Fatalf("piece %d: claimed %v in a run with recheck %v", i, p.claimed.Has(i), r.recheck)
			}
			owner[i] = r
		}
	}
	for i := range n {
		if p.have.Has(i) && p.claimed.Has(i) {
			t.Fatalf("piece %d is there and claimed", i)
		}
		off, _ := p.layout.Span(i)
		if end := p.readable(off); p.have.Has(i) != (end > off) {
			t.Fatalf("piece %d: there %v, readable to %d", i, p.have.Has(i), end-off)
		}
	}
}
