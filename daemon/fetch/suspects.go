package fetch

import (
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// suspects are the pieces of a blob whose digest turned out wrong, and where each
// came from. A piece of the same sum is no better when it comes again.
type suspects struct {
	sums []piece.Sum
	own  *piece.Set // brought from the origin by this node itself
	from []provenance
	// blamed are the peers that were, so that each is once for this blob.
	blamed map[scheduler.PeerID]bool
	// leader is, of the nodes that this one knows in the swarm, the one that fetches
	// the blob afresh from the origin, or empty if that is this node itself. The
	// others follow: they wait until the leader has it verified, and take from that
	// one the pieces that differ.
	leader scheduler.Neighbour
	// patience is how long a follower waits: for half of it the leader has to be the
	// one, then any node will do.
	patience time.Duration
}

// leads reports whether this node fetches the blob afresh itself.
func (s *suspects) leads() bool { return s.leader.Peer == "" }

// followMost bounds how long a node waits for another to fetch a blob afresh.
const followMost = time.Minute

// leader returns the node, of those that this one has met in a swarm, that fetches
// a wrong blob afresh: each hashes all names with the digest, so that all come to
// the same one as far as they know each other. It is empty for this node itself.
// The caller holds the flight's mu.
func (m *Member) leader() (first scheduler.Neighbour) {
	if !m.connected || m.refused || m.fl.follows {
		return first
	}
	rank := func(name string) uint64 {
		h := fnv.New64a()
		h.Write([]byte(m.fl.digest))
		h.Write([]byte(name))
		return h.Sum64()
	}
	most := rank(m.fl.fetcher.cfg.Name)
	for id, n := range m.met {
		if r := rank(string(id)); r > most {
			first, most = n, r
		}
	}
	return first
}

// seekLeader sees to it that there is a connection to the leader, which answers
// once it has the blob. The error says that nobody has it for too long. The caller
// holds the flight's mu.
func (m *Member) seekLeader(now time.Time) error {
	s := m.fl.suspects
	if !m.fl.follows || m.vouched.sender != "" {
		return nil
	}
	if now.Sub(m.began) > s.patience {
		return errNobodyVouches
	}
	if n := m.near[s.leader.Peer]; n != nil {
		n.tries = min(n.tries, 2) // it is not dead, it is busy
	} else {
		m.approach(s.leader, 0)
	}
	for _, l := range m.x.links {
		m.vouch(l)
	}
	return nil
}

// vouch takes the word of a peer that says to have verified the whole blob, in a
// flight that follows: the pieces that came before and have the same sums are kept,
// the others are fetched from it. The digest has the last word. The caller holds
// the flight's mu.
func (m *Member) vouch(l *link) {
	if !m.fl.follows || m.vouched.sender != "" || !l.whole() {
		return
	}
	if s := m.fl.suspects; l.ID() != s.leader.Peer && time.Since(m.began) < s.patience/2 {
		return // any node may say so
	}
	m.vouched = provenance{publisher: string(l.ID()), sender: l.ID(), name: l.String()}
	differ := 0
	for i, sum := range m.fl.suspects.sums {
		if m.x.claimOf(l, i).sum != sum && m.fl.plan.claimed.Remove(i) {
			differ++
		}
	}
	m.progress = time.Now()
	m.fl.fetcher.cfg.Logger.Info("peer has verified the blob; taking the pieces that differ", "digest", m.fl.digest, "peer", l.String(), "id", l.ID(), "pieces", differ)
}

// errNobodyVouches ends a flight that follows when nobody leads.
var errNobodyVouches = errors.New("no peer has the blob verified")

// gatherSuspects notes who sent what of a blob that is wrong. It reports
// false if all of it came from the origin.
func (fl *flight) gatherSuspects(partial Partial) bool {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	n := fl.plan.layout.Count()
	if fl.plan.own.Count() == n {
		return false
	}
	s := &suspects{sums: make([]piece.Sum, n), own: fl.plan.own, from: make([]provenance, n), blamed: map[scheduler.PeerID]bool{}}
	if m := fl.member; m != nil {
		copy(s.from, m.from)
		s.leader = m.leader()
		s.patience = min(5*time.Second+3*time.Since(m.began), followMost)
	}
	for i := range n {
		s.sums[i], _ = partial.Sum(i)
	}
	fl.suspects = s
	return true
}

// compare blames the sender of a piece that is not what the origin sends. The
// caller holds mu.
func (fl *flight) compare(i int, sum piece.Sum) {
	s := fl.suspects
	if s == nil || i >= len(s.sums) || s.sums[i] == sum || s.from[i].sender == "" {
		if s != nil && i < len(s.sums) && s.sums[i] != sum {
			fl.fetcher.cfg.Logger.Warn("piece was wrong", "digest", fl.digest, "piece", i, "own", s.own.Has(i), "sum", s.sums[i], "origin", sum)
		}
		return
	}
	by := s.from[i]
	if s.blamed[by.sender] {
		return
	}
	s.blamed[by.sender] = true
	fl.fetcher.blame(fl.digest, by, fmt.Errorf("piece %d has sum %s by it, and %s from the origin", i, s.sums[i], sum))
}

// compareAll is compare for a blob that is verified.
func (fl *flight) compareAll(partial Partial) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for i := range fl.suspects.sums {
		if sum, ok := partial.Sum(i); ok {
			fl.compare(i, sum)
		}
	}
}

// blame takes note that a peer sent a piece that is not what the origin sends,
// although its sum was the one that the peer had said.
//
// A peer that passes on what another published cannot know better, and an honest
// node may publish what its own connection to the origin spoiled. So it is only
// remembered the first time, and the sender left alone after that, longer each
// time. Only a peer that said of two blobs that it had brought such a piece itself
// is taken for a liar.
func (f *Fetcher) blame(d digest.Digest, by provenance, cause error) {
	log := f.cfg.Logger
	away, self := f.bans.strike(by.sender, d, by.published())
	if by.published() {
		f.stats.liars.Add(1)
	} else {
		f.stats.passedOn.Add(1)
	}
	log.Warn("peer sent a wrong piece", "digest", d, "peer", by.name, "id", by.sender, "publisher", by.publisher, "away", away, "cause", cause)
	if self >= convictAfter {
		f.convict(d, by.sender)
	}
}

// convict keeps away from a node that is known to lie. Where its name is proved,
// the scheduler is told. Where it is not, the node may not have been the one.
func (f *Fetcher) convict(d digest.Digest, id scheduler.PeerID) {
	if id == "" || !f.cfg.Proven {
		return
	}
	f.cfg.Logger.Error("peer lied; keeping away from it", "digest", d, "id", id, "for", banFor, "blobs", convictAfter)
	f.bans.add(id, banFor)
	if f.cfg.Cluster != nil {
		f.cfg.Cluster.Accuse(d, id)
	}
}

// convictAfter is of how many blobs a peer has to have published a wrong piece.
const convictAfter = 2

// banFor is how long this node keeps away from one that lied to it, and after
// which what was held against it is forgotten.
var banFor = scheduler.DefaultConfig().BanFor

// strikeFor is how long a node is kept away from that sent a wrong piece for the
// second time; it doubles each time.
const strikeFor = 15 * time.Second

// bans are the nodes that this one keeps away from.
type bans struct {
	mu sync.Mutex
	// Guarded by mu:
	known *lru.Cache[scheduler.PeerID, record]
}

// record is what is held against a node.
type record struct {
	until   time.Time // it is kept away from
	strikes int
	last    time.Time     // of the strikes
	self    int           // of how many blobs it published wrong pieces
	blob    digest.Digest // the last of them
}

// maxBans bounds the nodes that are remembered.
const maxBans = 4096

func newBans() *bans {
	known, err := lru.New[scheduler.PeerID, record](maxBans)
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	return &bans{known: known}
}

func (b *bans) add(id scheduler.PeerID, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, _ := b.known.Get(id)
	r.until = later(r.until, time.Now().Add(d))
	b.known.Add(id, r)
}

// strike notes that a node sent a wrong piece of blob d, which it published
// itself or not. It returns for how long the node is kept away from, and of how
// many blobs it published wrong pieces lately.
func (b *bans) strike(id scheduler.PeerID, d digest.Digest, published bool) (away time.Duration, self int) {
	if id == "" {
		return 0, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	r, _ := b.known.Get(id)
	if now.Sub(r.last) > banFor {
		r.strikes, r.self, r.blob = 0, 0, ""
	}
	if published && r.blob != d {
		r.self++
		r.blob = d
	}
	if r.strikes > 0 {
		away = min(strikeFor<<min(r.strikes-1, 10), banFor)
	}
	r.strikes++
	r.last = now
	r.until = later(r.until, now.Add(away))
	b.known.Add(id, r)
	return away, r.self
}

func (b *bans) has(id scheduler.PeerID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.known.Get(id)
	return ok && time.Now().Before(r.until)
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
			m.returnImports(id, scheduler.ReasonStalled)
			m.schedule()
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
