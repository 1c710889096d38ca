package netns

import (
	"fmt"
	"strings"
)

// delay is how long a full queue before a link takes to pass it, like that of
// a switch.
const delay = 0.05 // seconds

type end struct{ netns, device string }

// burst is how many bytes a link may pass at once: about 5 ms of it, and at
// least two of the largest packets that offloading makes.
func (r Rate) burst() int64 { return max(128<<10, int64(r.BytesPerSecond()*0.005)) }

// shape limits what leaves each end.
func shape(rate Rate, ends ...end) error {
	for _, e := range ends {
		if rate == 0 {
			// There may be none to delete.
			_, _ = run("tc", "-n", e.netns, "qdisc", "delete", "dev", e.device, "root")
			continue
		}
		_, err := run("tc", "-n", e.netns, "qdisc", "replace", "dev", e.device, "root", "tbf",
			"rate", fmt.Sprintf("%dbit", rate), "burst", fmt.Sprint(rate.burst()), "latency", fmt.Sprintf("%gms", delay*1000))
		if err != nil {
			return err
		}
	}
	return nil
}

// Zone is a part of a network. Nodes of different zones share a thin link for
// what they send each other; the network's own nodes are not behind it.
type Zone struct {
	nw   *Network
	hub  string
	link string
	n    int
}

// Classes of what passes a zone's link: between zones, and between the zone
// and the network's own nodes.
const (
	across = "1:10"
	beside = "1:20"
)

// AddZone makes a zone. What it sends to other zones, and receives from them,
// is shaped to rate each way.
func (nw *Network) AddZone(rate Rate) (*Zone, error) {
	n := len(nw.zones) + 1
	if n > maxZones {
		return nil, fmt.Errorf("a network has at most %d zones", maxZones)
	}
	z := &Zone{nw: nw, hub: fmt.Sprintf("%s-z%d", nw.id, n), link: fmt.Sprintf("z%d", n), n: n}
	nw.zones = append(nw.zones, z)
	if err := nw.bridge(z.hub); err != nil {
		return nil, err
	}
	err := ip(
		"-n "+nw.id+" link add "+z.link+" type veth peer name uplink netns "+z.hub,
		"-n "+nw.id+" link set "+z.link+" master br0 up",
		"-n "+z.hub+" link set uplink master br0 up",
	)
	if err != nil {
		return nil, err
	}
	// The network's own nodes are who sends into the zone, and who is sent to
	// out of it.
	if err := thin(rate, end{nw.id, z.link}, "src"); err != nil {
		return nil, err
	}
	return z, thin(rate, end{z.hub, "uplink"}, "dst")
}

// Add makes a node in the zone whose link carries rate each way.
func (z *Zone) Add(rate Rate) (*Node, error) { return z.nw.add(z.hub, z.n, rate) }

// Crossed returns what went from other zones into this one, and out of it to
// them.
func (z *Zone) Crossed() (in, out Traffic, err error) {
	if in, err = class(end{z.nw.id, z.link}, across); err != nil {
		return in, out, err
	}
	out, err = class(end{z.hub, "uplink"}, across)
	return in, out, err
}

// thin limits what leaves an end to rate, but for packets whose source or
// destination (which) is outside of all zones.
func thin(rate Rate, e end, which string) error {
	const wide = 100_000 * Mbit
	if rate == 0 {
		rate = wide
	}
	limit := max(rate.burst(), int64(rate.BytesPerSecond()*delay))
	// The quantum is how much one class sends before it is another's turn; the
	// default follows from the rate and is too large for these.
	htb := func(class string, r Rate) string {
		return fmt.Sprintf("class replace dev %s parent 1: classid %s htb rate %dbit burst %d cburst %[4]d quantum 65536", e.device, class, r, r.burst())
	}
	for _, line := range []string{
		"qdisc replace dev " + e.device + " root handle 1: htb default 10",
		htb(across, rate),
		fmt.Sprintf("qdisc replace dev %s parent %s bfifo limit %d", e.device, across, limit),
		htb(beside, wide),
		fmt.Sprintf("filter replace dev %s parent 1: protocol ip prio 1 handle 800::1 u32 match ip %s %s flowid %s", e.device, which, outside, beside),
	} {
		if _, err := run("tc", append([]string{"-n", e.netns}, strings.Fields(line)...)...); err != nil {
			return err
		}
	}
	return nil
}
