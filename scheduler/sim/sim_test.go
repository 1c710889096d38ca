package sim

import (
	"flag"
	"reflect"
	"testing"
	"time"
)

var (
	long   = flag.Bool("long", false, "run the scenarios of thousands of peers too")
	one    = flag.String("scenario", "", "run only this scenario, whatever its size")
	seeds  = flag.Int("seeds", 0, "seeds per scenario; 0 is the scenario's own number")
	first  = flag.Uint64("first", 0, "first seed")
	up     = flag.Int("uploads", 0, "uploads at once of one peer, instead of the default")
	down   = flag.Int("downloads", 0, "downloads at once of one peer")
	stream = flag.Int("streams", 0, "streams from the origin per blob")
	degree = flag.Int("degree", 0, "neighbours of a peer")
	may    = flag.Int("maxdegree", 0, "most neighbours of a peer")
)

// bound is what a scenario must reach with every seed; 0 is no bound.
type bound struct {
	last, slowest, origin, seed, cross float64
	requests                           int
}

var scenarios = []struct {
	name  string
	peers int
	set   func(*Config)
	bound bound
	seeds int
	long  bool
}{
	{"cold16", 16, nil, bound{last: 1.1, origin: 1.001, requests: 18}, 30, false},
	{"cold100", 100, nil, bound{last: 1.15, origin: 1.001, requests: 18}, 10, false},
	{"small16", 16, func(c *Config) { c.Size = 512 << 10 }, bound{origin: 1.001, requests: 1}, 20, false},
	{"seed16", 16, func(c *Config) { c.Seeds, c.NoOrigin = 1, true }, bound{last: 1.15, seed: 1.15}, 20, false},
	{"seeds100", 100, func(c *Config) { c.Seeds, c.NoOrigin = 4, true }, bound{last: 1.2}, 5, false},
	{"late16", 16, func(c *Config) { c.JoinOver = 16 * time.Second }, bound{slowest: 1.6, origin: 1.001, requests: 18}, 20, false},
	{"zones16", 16, func(c *Config) { c.Zones, c.ZoneRate = 2, c.Rate/4 }, bound{origin: 1.001, cross: 1.05}, 10, false},
	{"zones100", 100, func(c *Config) { c.Zones, c.ZoneRate = 2, c.Rate/2 }, bound{origin: 1.001, cross: 1.05}, 4, false},
	{"zoneseed16", 16, func(c *Config) { c.Zones, c.ZoneRate, c.Seeds, c.NoOrigin = 2, c.Rate, 1, true }, bound{last: 1.3, seed: 1.25, cross: 1.05}, 10, false},
	{"slow16", 16, func(c *Config) { c.Slow = 0.15 }, bound{last: 1.5, origin: 1.02}, 20, false},
	{"churn100", 100, func(c *Config) { c.Churn = 0.1 }, bound{slowest: 1.3, origin: 1.05}, 5, false},
	{"restart16", 16, func(c *Config) { c.RestartAt = 5 * time.Second }, bound{last: 1.2, origin: 1.05}, 20, false},
	{"restart100", 100, func(c *Config) { c.RestartAt = 5 * time.Second }, bound{last: 1.3, origin: 1.05}, 5, false},
	{"outage16", 16, func(c *Config) { c.OutageAt, c.OutageFor = 3*time.Second, 4*time.Second }, bound{origin: 1.2}, 10, false},
	{"cold1000", 1000, nil, bound{last: 1.2, origin: 1.001}, 2, true},
	{"churn1000", 1000, func(c *Config) { c.Churn = 0.1 }, bound{slowest: 1.3, origin: 1.02}, 1, true},
	{"crowd10000", 10000, func(c *Config) { c.JoinOver = 10 * time.Second }, bound{slowest: 1.3, origin: 1.02}, 1, true},
	{"flash10000", 10000, func(c *Config) { c.JoinOver = time.Second }, bound{slowest: 1.3, origin: 1.02}, 1, true},
}

// TestScenarios runs each scenario with several seeds. With -v it prints what
// each came to; -scenario and the other flags try something else.
func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		if *one != "" && *one != s.name || *one == "" && s.long && !*long {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			n := s.seeds
			if *seeds > 0 {
				n = *seeds
			}
			for seed := *first; seed < *first+uint64(n); seed++ {
				cfg := Default(s.peers)
				cfg.Seed = seed
				if s.set != nil {
					s.set(&cfg)
				}
				override(&cfg)
				began := time.Now()
				r := Run(cfg)
				t.Logf("seed %d: %v; ran %v", seed, r, time.Since(began).Round(time.Millisecond))
				b := s.bound
				if r.Stuck > 0 || over(r.Last, b.last) || over(r.Slowest, b.slowest) || over(r.OriginCopies, b.origin) ||
					over(r.SeedCopies, b.seed) || over(r.CrossCopies, b.cross) || over(float64(r.OriginRequests), float64(b.requests)) {
					t.Errorf("seed %d: %v\nwant at most %+v", seed, r, b)
				}
			}
		})
	}
}

func over(got, bound float64) bool { return bound > 0 && got > bound }

func override(cfg *Config) {
	for _, o := range []struct {
		flag int
		to   []*int
	}{
		{*up, []*int{&cfg.Uploads}},
		{*down, []*int{&cfg.Downloads}},
		{*stream, []*int{&cfg.Core.Streams}},
		{*degree, []*int{&cfg.Core.Degree, &cfg.Core.LargeDegree}},
		{*may, []*int{&cfg.Core.MaxDegree, &cfg.Core.LargeMaxDegree}},
	} {
		for _, to := range o.to {
			if o.flag > 0 {
				*to = o.flag
			}
		}
	}
}

// A seed reproduces a run, to the last byte and message.
func TestReproduces(t *testing.T) {
	cfg := Default(60)
	cfg.Churn, cfg.Slow, cfg.RestartAt, cfg.Zones, cfg.ZoneRate = 0.5, 0.1, 4*time.Second, 2, cfg.Rate
	a, b := Run(cfg), Run(cfg)
	a.CPU, a.CPUMax, b.CPU, b.CPUMax = 0, 0, 0, 0
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two runs of one seed differ:\n%v\n%v", a, b)
	}
}
