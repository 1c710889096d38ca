package server

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Config holds the bounds of a server. The zero value of a field means its
// default.
type Config struct {
	// Core is the policy. Default: scheduler.DefaultConfig.
	Core *scheduler.Config
	// Tick is how often the core is ticked, default 100 ms. More often
	// finds stalls sooner and costs CPU.
	Tick time.Duration
	// MaxPeers bounds the daemons, default and at most Core.MaxPeers.
	MaxPeers int
	// Queue is how many messages wait for one daemon at most, default
	// 4096. A daemon that lets more pile up is dropped: it would act on
	// old news.
	Queue int
	// SendTimeout is how long one write to a daemon may take, default 10 s.
	SendTimeout time.Duration
	// Rate is how many messages per second one daemon may send, default
	// 2000; a piece or blob named in them counts a hundredth. Burst is how
	// many at once, default 40,000: more than an inventory of
	// Core.MaxBlobs. One that sends more is read more slowly.
	Rate, Burst int
	// IdentityRate and IdentityBurst bound in the same way what all daemons
	// of one identity send, default 8000 and 160,000.
	IdentityRate, IdentityBurst int
	// Jobs hears what concerns preheat jobs. Nil: nobody does.
	Jobs Jobs
	// Log is where the server says what happens. Nil: slog.Default.
	Log *slog.Logger
}

// Jobs are the preheat jobs, as far as the server has to do with them. Its
// methods must not wait.
type Jobs interface {
	// Connected and Gone tell of a daemon, by its peer ID. Connected returns
	// the name by which it is known: another than it gave if that is taken.
	Connected(id string, facts jobs.Facts) (name string)
	Gone(id string)
	// Report and Vitals take what a daemon says.
	Report(id string, r jobs.Report)
	Vitals(id string, v jobs.Vitals)
}

func (c Config) withDefaults() (Config, error) {
	if c.Core == nil {
		core := scheduler.DefaultConfig()
		c.Core = &core
	}
	if err := c.Core.Validate(); err != nil {
		return c, err
	}
	def(&c.Tick, 100*time.Millisecond)
	def(&c.MaxPeers, c.Core.MaxPeers)
	c.MaxPeers = min(c.MaxPeers, c.Core.MaxPeers)
	def(&c.Queue, 4096)
	def(&c.SendTimeout, 10*time.Second)
	def(&c.Rate, 2000)
	def(&c.Burst, 40_000)
	def(&c.IdentityRate, 8000)
	def(&c.IdentityBurst, 160_000)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Tick < 0 || c.MaxPeers < 0 || c.Queue < 0 || c.SendTimeout < 0 || c.Rate < 0 || c.Burst < 0 || c.IdentityRate < 0 || c.IdentityBurst < 0 {
		return c, fmt.Errorf("scheduler server: a bound is negative: %+v", c)
	}
	return c, nil
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}
