package sim

import (
	"math"
	"slices"
	"time"
)

// link is one direction of one wire, in bytes per second.
type link struct {
	rate  float64
	level float64 // what a transfer gets here that nothing else holds back
	flows []int32
}

// flow is one piece on its way.
type flow struct {
	links     [4]int32
	n         int // links in use
	rate      float64
	left      float64
	since     time.Duration // left is as of this time
	version   uint32        // of the finish event that counts
	src, dst  int32         // peers; src is -1 for the origin
	piece     int32
	assigned  bool
	scheduled time.Duration
}

type network struct {
	links []link
	flows []flow
	free  []int32
	caps  []float64
	seen  []int32
	mark  []uint32
	epoch uint32
}

func (n *network) addLink(rate float64) int32 {
	n.links = append(n.links, link{rate: rate, level: rate})
	n.mark = append(n.mark, 0)
	return int32(len(n.links) - 1)
}

// start begins a transfer of size bytes over links.
func (w *world) start(f flow, links ...int32) int32 {
	n := &w.net
	var id int32
	if last := len(n.free) - 1; last >= 0 {
		id, n.free = n.free[last], n.free[:last]
		f.version = n.flows[id].version
	} else {
		id = int32(len(n.flows))
		n.flows = append(n.flows, flow{})
	}
	f.n = copy(f.links[:], links)
	f.since = w.now
	f.scheduled = math.MaxInt64
	n.flows[id] = f
	for _, l := range links {
		n.links[l].flows = append(n.links[l].flows, id)
	}
	w.settle(links)
	return id
}

// stop ends a transfer, finished or not.
func (w *world) stop(id int32) {
	n := &w.net
	f := &n.flows[id]
	f.version++
	links := f.links
	for _, l := range links[:f.n] {
		flows := n.links[l].flows
		i := slices.Index(flows, id)
		flows[i] = flows[len(flows)-1]
		n.links[l].flows = flows[:len(flows)-1]
	}
	n.free = append(n.free, id)
	w.settle(links[:f.n])
}

// settle shares the links anew, and those at the other ends of the transfers
// that this changed.
func (w *world) settle(links []int32) {
	n := &w.net
	n.epoch++
	n.seen = n.seen[:0]
	for _, l := range links {
		n.mark[l] = n.epoch
		n.seen = append(n.seen, l)
	}
	first := len(n.seen)
	for _, l := range n.seen[:first] {
		n.share(l)
	}
	for _, l := range n.seen[:first] {
		for _, id := range n.links[l].flows {
			f := &n.flows[id]
			for _, other := range f.links[:f.n] {
				if n.mark[other] != n.epoch {
					n.mark[other] = n.epoch
					n.seen = append(n.seen, other)
					n.share(other)
				}
			}
		}
	}
	for _, l := range n.seen[:first] {
		n.share(l)
	}
	for _, l := range n.seen {
		for _, id := range n.links[l].flows {
			w.retime(id)
		}
	}
}

// share fills a link: transfers that another link holds back get that, the
// others the same each.
func (n *network) share(l int32) {
	k := &n.links[l]
	caps := n.caps[:0]
	for _, id := range k.flows {
		f := &n.flows[id]
		c := math.Inf(1)
		for _, other := range f.links[:f.n] {
			if other != l {
				c = min(c, n.links[other].level)
			}
		}
		caps = append(caps, c)
	}
	n.caps = caps
	// Few transfers share a link; insertion sort.
	for i := 1; i < len(caps); i++ {
		for j := i; j > 0 && caps[j] < caps[j-1]; j-- {
			caps[j], caps[j-1] = caps[j-1], caps[j]
		}
	}
	rest := k.rate
	for i, c := range caps {
		if fair := rest / float64(len(caps)-i); c > fair {
			k.level = fair
			return
		}
		rest -= c
	}
	k.level = rest
	if len(caps) > 0 {
		k.level += caps[len(caps)-1]
	}
}

// retime brings a transfer's progress up to now and foretells its end.
func (w *world) retime(id int32) {
	f := &w.net.flows[id]
	rate := math.Inf(1)
	for _, l := range f.links[:f.n] {
		rate = min(rate, w.net.links[l].level)
	}
	if math.Abs(rate-f.rate) <= 0.002*f.rate && f.scheduled != math.MaxInt64 {
		return
	}
	f.left -= f.rate * (w.now - f.since).Seconds()
	f.since = w.now
	f.rate = rate
	f.version++
	if rate <= 0 {
		f.scheduled = math.MaxInt64
		return
	}
	f.scheduled = w.now + time.Duration(max(f.left, 0)/rate*1e9)
	w.at(f.scheduled, event{kind: evFinish, a: id, version: f.version})
}
