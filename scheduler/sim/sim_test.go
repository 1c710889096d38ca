package sim

import (
	"flag"
	"testing"
	"time"
)

var (
	long    = flag.Bool("long", false, "run the big simulations too")
	try     = flag.String("try", "", "run this one")
	ups     = flag.Int("u", 2, "uploads")
	downs   = flag.Int("d", 2, "downloads")
	streams = flag.Int("streams", 3, "streams")
	degree  = flag.Int("degree", 0, "degree")
	may     = flag.Int("may", 0, "max degree")
	seeds   = flag.Int("seeds", 3, "seeds of -try")
)

func TestTry(t *testing.T) {
	runs := map[string]func() Config{
		"cold16":   func() Config { return Default(16) },
		"cold100":  func() Config { return Default(100) },
		"cold1000": func() Config { return Default(1000) },
		"cold10000": func() Config {
			c := Default(10000)
			c.JoinOver = 10 * time.Second
			return c
		},
		"seed16": func() Config { c := Default(16); c.Seeds = 1; c.NoOrigin = true; return c },
		"zones16": func() Config {
			c := Default(16)
			c.Zones = 2
			c.ZoneRate = c.Rate / 4
			return c
		},
		"zones100": func() Config {
			c := Default(100)
			c.Zones = 2
			c.ZoneRate = c.Rate / 2
			return c
		},
		"zoneseed16": func() Config {
			c := Default(16)
			c.Zones = 2
			c.ZoneRate = c.Rate
			c.Seeds = 1
			c.NoOrigin = true
			return c
		},
		"late16": func() Config { c := Default(16); c.JoinOver = 16 * time.Second; return c },
		"slow16": func() Config { c := Default(16); c.Slow = 0.15; return c },
		"churn100": func() Config {
			c := Default(100)
			c.Churn = 0.1
			return c
		},
		"churn1000": func() Config {
			c := Default(1000)
			c.Churn = 0.1
			return c
		},
		"restart16":  func() Config { c := Default(16); c.RestartAt = 5 * time.Second; return c },
		"restart100": func() Config { c := Default(100); c.RestartAt = 5 * time.Second; return c },
		"outage16":   func() Config { c := Default(16); c.OutageAt = 3 * time.Second; c.OutageFor = 5 * time.Second; return c },
	}
	if *try == "" {
		t.Skip("no -try")
	}
	for seed := range uint64(*seeds) {
		cfg := runs[*try]()
		cfg.Seed = seed
		cfg.Uploads, cfg.Downloads, cfg.Core.Streams = *ups, *downs, *streams
		cfg.Core.MaxStreams = max(cfg.Core.MaxStreams, *streams)
		if *degree > 0 {
			cfg.Core.Degree, cfg.Core.MaxDegree = *degree, *may
			cfg.Core.LargeDegree, cfg.Core.LargeMaxDegree = *degree, *may
		}
		start := time.Now()
		t.Log(Run(cfg), time.Since(start))
	}
}
