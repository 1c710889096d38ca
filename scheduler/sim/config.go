package sim

import (
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// Config is one run. The zero values of what is not a size or a rate switch a
// thing off.
type Config struct {
	Seed  uint64
	Peers int
	// Size of the blob in bytes.
	Size int64
	// Rate of each peer's link, each way, and of the origin's, in bytes per
	// second.
	Rate, OriginRate float64
	// Latency is one way, between any two.
	Latency time.Duration
	// JoinOver is the time over which the peers come, evenly by lot.
	JoinOver time.Duration
	// Seeds hold the blob from the beginning; they count among Peers.
	Seeds int
	// NoOrigin: nobody may ask the origin.
	NoOrigin bool
	// Zones share the peers among them in turn. Each has a link of ZoneRate
	// bytes per second to and from all others; the origin is outside of
	// it.
	Zones    int
	ZoneRate float64

	// Downloads and Uploads are the transfers at once of one peer.
	Downloads, Uploads int

	// Slow is the fraction of peers with a tenth of Rate.
	Slow float64
	// Churn is the fraction of peers lost per minute; each is replaced by a
	// new one. It goes on for ChurnFor.
	Churn    float64
	ChurnFor time.Duration
	// RestartAt replaces the scheduler by an empty one, if not 0.
	RestartAt time.Duration
	// OutageAt cuts the origin off for OutageFor, if not 0.
	OutageAt, OutageFor time.Duration

	// Limit ends a run that does not get done.
	Limit time.Duration

	Core scheduler.Config
}

// Default returns a run as in the project's benchmark: 256 MiB at 200 Mbit/s.
func Default(peers int) Config {
	return Config{
		Seed: 1, Peers: peers, Size: 256 << 20, Rate: 25e6, OriginRate: 25e6,
		Latency: 500 * time.Microsecond, JoinOver: 100 * time.Millisecond,
		Zones: 1, Downloads: 2, Uploads: 2, ChurnFor: 30 * time.Second, Limit: 10 * time.Minute,
		Core: scheduler.DefaultConfig(),
	}
}

// Result is what a run came to.
type Result struct {
	// Done is how many peers completed; Stuck how many did not.
	Done, Stuck int
	// Last is the time from the first join to the last completion, and
	// Slowest and Median are of each peer's own time from join to
	// completion, all divided by Size / Rate. Slow peers and those that
	// were lost do not count in them.
	Last, Slowest, Median float64
	// OriginCopies, SeedCopies (per seed, the busiest) and CrossCopies are
	// bytes sent, divided by Size.
	OriginCopies, SeedCopies, CrossCopies float64
	// OriginRequests is the number of requests for a run.
	OriginRequests int
	// In and Out count messages, of the scheduler.
	In, Out int
	// CPU is the real time that the core took for all messages and ticks,
	// Slowest step among them.
	CPU, CPUMax time.Duration
	Events      int
	MeanDegree  float64
}
