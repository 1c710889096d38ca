package fetch

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// suspects are the pieces of a blob whose digest turned out wrong, and who is
// to blame if one of them is not what the origin sends.
type suspects struct {
	sums   []piece.Sum
	from   []provenance
	guilty map[scheduler.PeerID]bool
}

// gatherSuspects notes who sent what of a blob that is wrong. It reports
// false if all of it came from the origin.
func (fl *flight) gatherSuspects(partial Partial) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	m := fl.member
	if m == nil {
		return false
	}
	s := &suspects{sums: make([]piece.Sum, len(m.from)), from: m.from, guilty: map[scheduler.PeerID]bool{}}
	foreign := false
	for i := range m.from {
		s.sums[i], _ = partial.Sum(i)
		foreign = foreign || m.from[i] != provenance{}
	}
	if foreign {
		fl.suspects = s
	}
	return foreign
}

// compare blames those who sent a piece that is not what the origin sends.
// The caller holds mu.
func (fl *flight) compare(i int, sum piece.Sum) {
	s := fl.suspects
	if s == nil || fl.member != nil || i >= len(s.sums) || s.sums[i] == sum || s.from[i] == (provenance{}) {
		return
	}
	by := s.from[i]
	// Who passed it on had it from whoever published the sum, and could not
	// know better.
	id, name := scheduler.PeerID(by.publisher), by.publisher
	if id == "" || id == by.sender {
		id, name = by.sender, by.name
	}
	if s.guilty[id] {
		return
	}
	s.guilty[id] = true
	f := fl.fetcher
	f.stats.liars.Add(1)
	f.cfg.Logger.Error("peer lied; keeping away from it", "digest", fl.digest, "peer", name, "id", id,
		"cause", fmt.Sprintf("piece %d has sum %s by it, came from %s, and has sum %s from the origin", i, s.sums[i], by.name, sum))
	f.bans.add(id, banFor)
	if f.cfg.Cluster != nil {
		f.cfg.Cluster.Accuse(fl.digest, id)
	}
}

// bans are the nodes that this one keeps away from.
type bans struct {
	mu sync.Mutex
	// Guarded by mu:
	until *lru.Cache[scheduler.PeerID, time.Time]
}

// maxBans bounds the nodes that are remembered.
const maxBans = 4096

func newBans() *bans {
	until, err := lru.New[scheduler.PeerID, time.Time](maxBans)
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	return &bans{until: until}
}

func (b *bans) add(id scheduler.PeerID, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until.Add(id, time.Now().Add(d))
}

func (b *bans) has(id scheduler.PeerID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.until.Get(id)
	return ok && time.Now().Before(until)
}

// Ban keeps away from a node for a while.
func (f *Fetcher) Ban(id scheduler.PeerID, d time.Duration) {
	f.bans.add(id, d)
	f.mu.Lock()
	flights := make([]*flight, 0, len(f.flights))
	for _, fl := range f.flights {
		flights = append(flights, fl)
	}
	f.mu.Unlock()
	for _, fl := range flights {
		fl.mu.Lock()
		if m := fl.member; m != nil && m.x != nil {
			if l := m.x.byID(id); l != nil {
				l.Close(fmt.Errorf("peer %s is banned", id))
			}
			delete(m.near, id)
		}
		fl.mu.Unlock()
	}
}

// soloFor is how long a blob of which the swarm had a wrong size, or wrong
// bytes, comes from the origin alone.
const soloFor = time.Minute

// shun makes a blob come from the origin alone for a while.
func (f *Fetcher) shun(d digest.Digest) { f.solo.Add(d, time.Now().Add(soloFor)) }

func (f *Fetcher) shunned(d digest.Digest) bool {
	until, ok := f.solo.Get(d)
	return ok && time.Now().Before(until)
}
