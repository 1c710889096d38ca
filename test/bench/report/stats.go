package report

import (
	"math"
	"slices"
)

// Spread is the middle and the ends of some measured values.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// SpreadOf returns the spread of values: NaN for none. The median of an even
// number is the mean of the middle two.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// Ratio is how a relates to b. The middle is that of the medians; the ends are
// those of the ratios of one run each, a[i]/b[i], which were taken close
// together in time: on a noisy machine they tell how far the middle is to be
// believed.
func Ratio(a, b []float64) Spread {
	pairs := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		pairs = append(pairs, a[i]/b[i])
	}
	s := SpreadOf(pairs)
	s.Median = SpreadOf(a).Median / SpreadOf(b).Median
	return s
}
