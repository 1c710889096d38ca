package scheduler

import (
	"fmt"
	"time"
)

// Config holds what the policy can be tuned by. The defaults were chosen with
// package sim; the figures stand in its README.
type Config struct {
	// Seed feeds the random choices. The same seed, messages and times give
	// the same answers.
	Seed uint64

	// Degree is how many neighbours a peer should have, MaxDegree how many
	// it may have within its zone. More spread faster, and cost HAVEs and
	// connections.
	Degree, MaxDegree int
	// LargeSwarm is the number of peers from which on LargeDegree and
	// LargeMaxDegree hold instead.
	LargeSwarm, LargeDegree, LargeMaxDegree int
	// Across is how many neighbours a peer gets in other zones. They serve
	// assigned pieces, and everything when no scheduler is left.
	Across int

	// Streams is how many peers fetch one blob from the origin at once. One
	// alone would have to send on all that comes.
	Streams int
	// Runs is into how many runs a blob is cut, MinRun how many bytes each
	// of them has at least, as long as there is one for each stream. Streams
	// are not equally fast, and only what comes in order can be hashed and
	// delivered: with long runs nobody is past the slowest one's, and all
	// have the rest to do at the end. Short ones make more requests.
	Runs   int
	MinRun int64
	// MaxStreams bounds the streams per blob that are opened because more
	// of them brought more.
	MaxStreams int
	// SplitBelow: with fewer streams than this at work, the longest run is
	// split for a peer that has none.
	SplitBelow int
	// SmallPieces: a blob of at most so many pieces is one run.
	SmallPieces int
	// SourceStreams bounds the streams of all blobs of one source.
	SourceStreams int
	// Lookahead: a peer whose run has at most so many pieces left may get
	// its next one.
	Lookahead int

	// Imports is how many pieces one seed, or another zone, is asked for at
	// once by assignment. It hides the round trip through the scheduler.
	Imports int

	// Renew is how often a peer reports progress, Lease how long an
	// assignment lives without, FirstByte the same until the first report.
	Renew, Lease, FirstByte time.Duration
	// Doubt is how long others may take to answer Ask.
	Doubt time.Duration
	// Settle is how long a swarm that existed before waits for inventories.
	Settle time.Duration
	// Cool is how long a peer gets no run after it let one stall. A peer
	// that did not reach the origin waits the same, doubled each time, at
	// most 32 times as long.
	Cool time.Duration

	// BanFor is how long a liar is banned, BanVotes how many proven
	// identities must accuse it. One accuser alone might be the liar.
	BanFor   time.Duration
	BanVotes int
	// MaxHold bounds what an origin's Retry-After can do.
	MaxHold time.Duration

	// Trust is how long seeds from which nobody has got a piece keep others
	// from the origin, counted from when the blob is first wanted, and how
	// long one piece may take from such a seed; both grow with the length of
	// a piece. Longer spares the origin where links are slow; shorter lets
	// false seeds delay a pull by less.
	Trust time.Duration

	// MaxPeers, MaxSwarms, MaxPieces (per blob) and MaxBlobs (per peer) bound
	// the tables. AllPieces bounds the pieces of all tables together; one
	// costs about 37 bytes.
	MaxPeers, MaxSwarms, MaxPieces, MaxBlobs, AllPieces int
	// IdentityPeers, IdentityWants, IdentitySeeds and IdentityPieces bound
	// what one identity may have: peers, blobs that they want and that they
	// hold (summed over peers), and pieces of the blobs that they want. One
	// identity may be an address that many honest peers share: the defaults
	// are enough for 64 peers that pull 50 layers of 512 pieces each at
	// once and hold 512 blobs each.
	IdentityPeers, IdentityWants, IdentitySeeds, IdentityPieces int
}

// DefaultConfig returns what package sim found best.
func DefaultConfig() Config {
	return Config{
		Seed:       1,
		Degree:     8,
		MaxDegree:  12,
		LargeSwarm: 400, LargeDegree: 16, LargeMaxDegree: 20,
		Across:        2,
		Streams:       3,
		Runs:          16,
		MinRun:        8 << 20,
		MaxStreams:    8,
		SplitBelow:    2,
		SmallPieces:   16,
		SourceStreams: 64,
		Lookahead:     2,
		Imports:       8,
		Renew:         400 * time.Millisecond,
		Lease:         1200 * time.Millisecond,
		FirstByte:     3 * time.Second,
		Doubt:         700 * time.Millisecond,
		Settle:        2 * time.Second,
		Cool:          5 * time.Second,
		BanFor:        10 * time.Minute,
		BanVotes:      2,
		MaxHold:       10 * time.Minute,
		MaxPeers:      1 << 16,
		MaxSwarms:     1 << 17,
		MaxPieces:     1 << 17,
		MaxBlobs:      1 << 14,
		Trust:         time.Second,
		AllPieces:     1 << 24,

		IdentityPeers:  128,
		IdentityWants:  1 << 13,
		IdentitySeeds:  1 << 15,
		IdentityPieces: 1 << 21,
	}
}

// Validate returns an error that names the first setting that makes no sense.
func (c Config) Validate() error {
	for _, f := range []struct {
		name    string
		v, from int
	}{
		{"Degree", c.Degree, 1}, {"MaxDegree", c.MaxDegree, c.Degree},
		{"LargeSwarm", c.LargeSwarm, 1}, {"LargeDegree", c.LargeDegree, 1}, {"LargeMaxDegree", c.LargeMaxDegree, c.LargeDegree},
		{"Across", c.Across, 0},
		{"Streams", c.Streams, 1}, {"Runs", c.Runs, 1}, {"MinRun", int(c.MinRun), 1}, {"MaxStreams", c.MaxStreams, c.Streams}, {"SplitBelow", c.SplitBelow, 0},
		{"SmallPieces", c.SmallPieces, 1}, {"SourceStreams", c.SourceStreams, 1}, {"Lookahead", c.Lookahead, 0},
		{"Imports", c.Imports, 1}, {"BanVotes", c.BanVotes, 1},
		{"Renew", int(c.Renew), 1}, {"Lease", int(c.Lease), int(c.Renew)}, {"FirstByte", int(c.FirstByte), int(c.Lease)},
		{"Doubt", int(c.Doubt), 0}, {"Settle", int(c.Settle), 0}, {"Cool", int(c.Cool), 0}, {"BanFor", int(c.BanFor), 0}, {"MaxHold", int(c.MaxHold), 0},
		{"MaxPeers", c.MaxPeers, 1}, {"MaxSwarms", c.MaxSwarms, 1}, {"MaxPieces", c.MaxPieces, 1}, {"MaxBlobs", c.MaxBlobs, 1},
		{"Trust", int(c.Trust), 0}, {"AllPieces", c.AllPieces, 1},
		{"IdentityPeers", c.IdentityPeers, 1}, {"IdentityWants", c.IdentityWants, 1}, {"IdentitySeeds", c.IdentitySeeds, 1}, {"IdentityPieces", c.IdentityPieces, 1},
	} {
		if f.v < f.from {
			return fmt.Errorf("scheduler: %s is %d, want at least %d", f.name, f.v, f.from)
		}
	}
	return nil
}
