package piece

import (
	"testing"

	"pgregory.net/rapid"
)

func TestLengthFor(t *testing.T) {
	const MiB = 1 << 20
	for _, c := range []struct{ size, want int64 }{
		{0, 256 << 10},
		{1, 256 << 10},
		{128 * MiB, 256 << 10},
		{128*MiB + 1, 512 << 10},
		{512 * MiB, 1 * MiB},
		{512*MiB + 1, 2 * MiB},
		{4096 * MiB, 8 * MiB},
		{100 << 30, 8 * MiB},
		{1 << 62, 8 * MiB},
	} {
		if got := LengthFor(c.size); got != c.want {
			t.Errorf("LengthFor(%d) = %d, want %d", c.size, got, c.want)
		}
	}
}

// Pieces tile the blob: in order, without gap or overlap, none empty.
func TestLayoutTiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLayout(rapid.Int64Range(0, 1<<33).Draw(t, "size"))
		var next int64
		for i := range l.Count() {
			off, n := l.Span(i)
			if off != next || n <= 0 || n > l.Length() {
				t.Fatalf("piece %d spans %d+%d after %d", i, off, n, next)
			}
			if l.Index(off) != i || l.Index(off+n-1) != i {
				t.Fatalf("piece %d: Index of its ends is %d, %d", i, l.Index(off), l.Index(off+n-1))
			}
			next = off + n
		}
		if next != l.Size() {
			t.Fatalf("pieces end at %d of %d", next, l.Size())
		}
	})
}

// A Set agrees with a map.
func TestSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 70).Draw(t, "n")
		s, model := NewSet(n), map[int]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				if n == 0 {
					t.Skip("no index to add")
				}
				i := rapid.IntRange(0, n-1).Draw(t, "i")
				if s.Add(i) == model[i] {
					t.Fatalf("Add(%d) misreports", i)
				}
				model[i] = true
			},
			"remove": func(t *rapid.T) {
				i := rapid.IntRange(-1, n).Draw(t, "i")
				if s.Remove(i) != model[i] {
					t.Fatalf("Remove(%d) misreports", i)
				}
				delete(model, i)
			},
			"": func(t *rapid.T) {
				if s.Count() != len(model) || s.Full() != (len(model) == n) || s.Len() != n {
					t.Fatalf("Count %d, Full %v, Len %d; model has %d of %d", s.Count(), s.Full(), s.Len(), len(model), n)
				}
				next := n
				for i := n; i >= -1; i-- {
					if s.Has(i) != model[i] {
						t.Fatalf("Has(%d) = %v", i, s.Has(i))
					}
					if i >= 0 && i < n && !model[i] {
						next = i
					}
					if i >= 0 && s.NextAbsent(i) != next {
						t.Fatalf("NextAbsent(%d) = %d, want %d", i, s.NextAbsent(i), next)
					}
				}
			},
		})
	})
}
