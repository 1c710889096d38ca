package sim

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

const blob = scheduler.Digest("sha256:simulated")

type world struct {
	cfg    Config
	rng    *rand.Rand
	now    time.Duration
	seq    uint64
	heap   []event
	net    network
	core   *scheduler.Core
	life   int32 // of the core
	layout piece.Layout
	n, nw  int
	peers  []*peer
	index  map[scheduler.PeerID]int32
	origin int32   // its uplink
	zoneUp []int32 // by zone
	zoneDn []int32
	left   int // peers that are not complete yet
	res    Result
	sent   float64
	cross  float64
	took   []float64
	last   time.Duration
}

// Run simulates one run to its end.
func Run(cfg Config) Result {
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 99)),
		layout: piece.NewLayout(cfg.Size), index: map[scheduler.PeerID]int32{},
	}
	w.n = w.layout.Count()
	w.nw = (w.n + 63) / 64
	w.core = w.newCore()
	w.origin = w.net.addLink(cfg.OriginRate)
	if cfg.Zones > 1 {
		for range cfg.Zones {
			w.zoneUp = append(w.zoneUp, w.net.addLink(cfg.ZoneRate))
			w.zoneDn = append(w.zoneDn, w.net.addLink(cfg.ZoneRate))
		}
	}
	for i := range cfg.Peers {
		p := w.addPeer(i)
		if i < cfg.Seeds {
			p.seed = true
			for q := range w.n {
				p.have.set(q)
			}
			p.count = w.n
			w.at(0, event{kind: evStart, a: p.id})
			continue
		}
		w.left++
		when := 10 * time.Millisecond
		if cfg.JoinOver > 0 {
			when += time.Duration(w.rng.Int64N(int64(cfg.JoinOver)))
		}
		w.at(when, event{kind: evStart, a: p.id})
	}
	w.at(tick, event{kind: evTick})
	if cfg.Churn > 0 {
		w.after(w.churnGap(), event{kind: evChurn})
	}
	if cfg.RestartAt > 0 {
		w.at(cfg.RestartAt, event{kind: evRestart})
	}
	if cfg.OutageAt > 0 {
		w.at(cfg.OutageAt, event{kind: evOrigin, b: 0})
		w.at(cfg.OutageAt+cfg.OutageFor, event{kind: evOrigin, b: int32(cfg.OriginRate / 1000)})
	}
	for len(w.heap) > 0 && w.left > 0 && w.now < cfg.Limit {
		e := w.pop()
		w.now = e.at
		w.res.Events++
		w.handle(&e)
	}
	return w.result()
}

const tick = 200 * time.Millisecond

func (w *world) newCore() *scheduler.Core {
	cfg := w.cfg.Core
	cfg.Seed = w.cfg.Seed + uint64(w.life)
	return scheduler.New(cfg)
}

func (w *world) handle(e *event) {
	switch e.kind {
	case evFinish:
		if f := &w.net.flows[e.a]; f.version == e.version {
			w.finish(e.a)
		}
	case evVerified:
		w.verified(w.peers[e.a], int(e.b))
	case evHave:
		w.heard(w.peers[e.a], int(e.b))
	case evToCore:
		if e.b == w.life {
			w.step(w.peers[e.a], e.in)
		}
	case evToPeer:
		if p := w.peers[e.a]; !p.gone && e.b == w.life {
			w.receive(p, e.out)
		}
	case evTick:
		w.post(w.timed(func() []scheduler.Out { return w.core.Tick(w.now) }))
		w.after(tick, event{kind: evTick})
	case evStart:
		w.startPeer(w.peers[e.a])
	case evBegin:
		w.begin(w.peers[e.a])
	case evRequest:
		w.request(w.peers[e.a], w.peers[e.b], int(e.version))
	case evRenew:
		w.renew(w.peers[e.a])
	case evIdle:
		w.idle(w.peers[e.a])
	case evChurn:
		w.churn()
	case evRestart:
		w.restart()
	case evReconnect:
		if p := w.peers[e.a]; !p.gone {
			w.connect(p, true)
		}
	case evOrigin:
		w.net.links[w.origin].rate = float64(e.b) * 1000
		w.settle([]int32{w.origin})
	}
}

// step gives the core a message, now.
func (w *world) step(p *peer, in scheduler.In) {
	w.res.In++
	w.post(w.timed(func() []scheduler.Out { return w.core.Step(w.now, p.name, in) }))
}

func (w *world) timed(f func() []scheduler.Out) []scheduler.Out {
	t := time.Now()
	out := f()
	d := time.Since(t)
	w.res.CPU += d
	w.res.CPUMax = max(w.res.CPUMax, d)
	return out
}

func (w *world) post(out []scheduler.Out) {
	for _, o := range out {
		w.res.Out++
		w.after(w.cfg.Latency, event{kind: evToPeer, a: w.index[o.To], b: w.life, out: o.Msg})
	}
}

// tell sends the core a message.
func (w *world) tell(p *peer, in scheduler.In) {
	if p.connected {
		w.after(w.cfg.Latency, event{kind: evToCore, a: p.id, b: w.life, in: in})
	}
}

func (w *world) churnGap() time.Duration {
	perSecond := w.cfg.Churn * float64(w.cfg.Peers) / 60
	return time.Duration(w.rng.ExpFloat64() / perSecond * 1e9)
}

// churn loses a peer and starts another.
func (w *world) churn() {
	if w.now > w.cfg.ChurnFor {
		return
	}
	w.after(w.churnGap(), event{kind: evChurn})
	for range 16 {
		p := w.peers[w.rng.IntN(len(w.peers))]
		if p.gone || !p.started || p.seed {
			continue
		}
		w.kill(p)
		if p.count < w.n {
			w.left--
		}
		w.left++
		w.after(0, event{kind: evStart, a: w.addPeer(len(w.peers)).id})
		return
	}
}

// restart replaces the scheduler. The peers find the new one within a second.
func (w *world) restart() {
	w.life++
	w.core = w.newCore()
	for _, p := range w.peers {
		if p.gone || !p.started {
			continue
		}
		p.connected = false
		w.after(time.Duration(w.rng.Int64N(int64(time.Second))), event{kind: evReconnect, a: p.id})
	}
}

func (w *world) result() Result {
	r := w.res
	ideal := float64(w.cfg.Size) / w.cfg.Rate
	r.Stuck = w.left
	r.Last = (w.last - 10*time.Millisecond).Seconds() / ideal
	slices.Sort(w.took)
	if n := len(w.took); n > 0 {
		r.Slowest, r.Median = w.took[n-1]/ideal, w.took[n/2]/ideal
	}
	r.OriginCopies = w.sent / float64(w.cfg.Size)
	r.CrossCopies = w.cross / float64(w.cfg.Size)
	links, alive := 0, 0
	for _, p := range w.peers {
		if p.seed {
			r.SeedCopies = max(r.SeedCopies, p.uploaded/float64(w.cfg.Size))
		}
		if !p.gone {
			links, alive = links+len(p.links), alive+1
		}
	}
	r.MeanDegree = float64(links) / float64(max(alive, 1))
	return r
}

func (r Result) String() string {
	return fmt.Sprintf("done %d stuck %d  last %.3f slowest %.3f median %.3f  origin %.3f (%d requests) seed %.3f cross %.3f  messages %d in %d out  cpu %v (max %v)  degree %.1f",
		r.Done, r.Stuck, r.Last, r.Slowest, r.Median, r.OriginCopies, r.OriginRequests, r.SeedCopies, r.CrossCopies, r.In, r.Out,
		r.CPU.Round(time.Microsecond), r.CPUMax.Round(time.Microsecond), r.MeanDegree)
}

// bitset is a set of pieces.
type bitset []uint64

func (b bitset) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b bitset) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) unset(i int)    { b[i/64] &^= 1 << (i % 64) }

// bytes returns the set as a bitfield of BEP 3.
func (b bitset) bytes(n int) []byte {
	out := make([]byte, (n+7)/8)
	for w, word := range b {
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			out[i/8] |= 0x80 >> (i % 8)
		}
	}
	return out
}
