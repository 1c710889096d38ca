// Package netns makes networks of nodes on one machine: each node a network
// namespace behind a link that is shaped both ways. It knows nothing of what
// runs there. Everything needs root.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Rate is bits per second, as links are named; 0 is unshaped.
type Rate int64

// Mbit is a million bits per second.
const Mbit Rate = 1_000_000

// BytesPerSecond is the rate of a link with nothing but payload on it.
func (r Rate) BytesPerSecond() float64 { return float64(r) / 8 }

func (r Rate) String() string { return fmt.Sprintf("%g Mbit/s", float64(r)/float64(Mbit)) }

// Network is a bridge in a namespace of its own; nothing of it is in the
// machine's own network. Its methods must not be called concurrently.
type Network struct {
	id    string
	nodes []*Node
	// zones are further bridges, behind a link of their own to the first.
	zones int
}

// Node is a namespace with one address.
type Node struct {
	// Netns is the name for `ip netns`.
	Netns string
	// Addr is the node's IPv4 address on eth0.
	Addr string

	hub  string // where the other end of its link is
	link string // the name of that end
}

// maxNodes is how many addresses a network has.
const maxNodes = 200

// New makes a network without nodes. Close takes it away.
func New() (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	// The process id keeps two runs apart; interfaces have at most 15 bytes.
	nw := &Network{id: fmt.Sprintf("shoalb%d", os.Getpid())}
	if err := nw.bridge(nw.id); err != nil {
		return nil, errors.Join(err, nw.Close())
	}
	return nw, nil
}

func (nw *Network) bridge(netns string) error {
	return ip(
		"netns add "+netns,
		"-n "+netns+" link add br0 type bridge",
		"-n "+netns+" link set br0 up",
	)
}

// Add makes a node whose link carries rate each way.
func (nw *Network) Add(rate Rate) (*Node, error) { return nw.add(nw.id, rate) }

func (nw *Network) add(hub string, rate Rate) (*Node, error) {
	n := len(nw.nodes) + 1
	if n > maxNodes {
		return nil, fmt.Errorf("a network has at most %d nodes", maxNodes)
	}
	// 198.18.0.0/15 is for benchmarks (RFC 2544) and routed nowhere.
	node := &Node{Netns: fmt.Sprintf("%s-%d", nw.id, n), Addr: fmt.Sprintf("198.18.0.%d", n), hub: hub, link: fmt.Sprintf("v%d", n)}
	nw.nodes = append(nw.nodes, node)
	err := ip(
		"netns add "+node.Netns,
		"-n "+hub+" link add "+node.link+" type veth peer name eth0 netns "+node.Netns,
		"-n "+hub+" link set "+node.link+" master br0 up",
		"-n "+node.Netns+" address add "+node.Addr+"/24 dev eth0",
		"-n "+node.Netns+" link set lo up",
		"-n "+node.Netns+" link set eth0 up",
	)
	if err != nil {
		return nil, err
	}
	return node, node.Shape(rate)
}

// Zone is a part of a network behind a link that all of its nodes share.
type Zone struct {
	nw   *Network
	hub  string
	link string
}

// AddZone makes a zone whose link to the rest carries rate each way.
func (nw *Network) AddZone(rate Rate) (*Zone, error) {
	nw.zones++
	z := &Zone{nw: nw, hub: fmt.Sprintf("%s-z%d", nw.id, nw.zones), link: fmt.Sprintf("z%d", nw.zones)}
	if err := nw.bridge(z.hub); err != nil {
		return nil, err
	}
	err := ip(
		"-n "+nw.id+" link add "+z.link+" type veth peer name up netns "+z.hub,
		"-n "+nw.id+" link set "+z.link+" master br0 up",
		"-n "+z.hub+" link set up master br0 up",
	)
	if err != nil {
		return nil, err
	}
	return z, shape(rate, end{nw.id, z.link}, end{z.hub, "up"})
}

// Add makes a node in the zone whose link carries rate each way.
func (z *Zone) Add(rate Rate) (*Node, error) { return z.nw.add(z.hub, rate) }

// Crossed returns how many bytes, headers included, went into and out of the
// zone.
func (z *Zone) Crossed() (in, out int64, err error) {
	if in, err = counter(z.hub, "up", "rx_bytes"); err != nil {
		return 0, 0, err
	}
	out, err = counter(z.hub, "up", "tx_bytes")
	return in, out, err
}

// Shape gives the node's link another rate, each way.
func (n *Node) Shape(rate Rate) error {
	return shape(rate, end{n.hub, n.link}, end{n.Netns, "eth0"})
}

// Traffic returns how many bytes, headers included, the node has received and
// sent.
func (n *Node) Traffic() (received, sent int64, err error) {
	if received, err = counter(n.Netns, "eth0", "rx_bytes"); err != nil {
		return 0, 0, err
	}
	sent, err = counter(n.Netns, "eth0", "tx_bytes")
	return received, sent, err
}

// Close takes the network away. What still runs there loses its links.
func (nw *Network) Close() error {
	var errs []error
	for _, n := range nw.nodes {
		errs = append(errs, ip("netns delete "+n.Netns))
	}
	for i := range nw.zones {
		errs = append(errs, ip(fmt.Sprintf("netns delete %s-z%d", nw.id, i+1)))
	}
	errs = append(errs, ip("netns delete "+nw.id))
	nw.nodes, nw.zones = nil, 0
	return errors.Join(errs...)
}

type end struct{ netns, device string }

// shape limits what leaves each end. The bucket holds about 5 ms, and at least
// two of the largest packets that offloading makes; the queue behind it holds
// 50 ms, like a switch's.
func shape(rate Rate, ends ...end) error {
	for _, e := range ends {
		if rate == 0 {
			// There may be none to delete.
			_ = run("tc", "-n", e.netns, "qdisc", "delete", "dev", e.device, "root")
			continue
		}
		burst := max(128<<10, int64(rate.BytesPerSecond()*0.005))
		err := run("tc", "-n", e.netns, "qdisc", "replace", "dev", e.device, "root", "tbf",
			"rate", fmt.Sprintf("%dbit", rate), "burst", fmt.Sprint(burst), "latency", "50ms")
		if err != nil {
			return err
		}
	}
	return nil
}

func counter(netns, device, name string) (int64, error) {
	out, err := exec.Command("nsenter", "--net=/run/netns/"+netns, "cat", "/proc/net/dev").Output()
	if err != nil {
		return 0, fmt.Errorf("reading the counters of %s in %s: %w", device, netns, err)
	}
	return parseCounter(string(out), device, name)
}

// parseCounter finds a counter in /proc/net/dev: after the device's name come
// eight columns of what was received, the bytes first, and then of what was
// sent.
func parseCounter(table, device, name string) (int64, error) {
	column := map[string]int{"rx_bytes": 0, "tx_bytes": 8}[name]
	for line := range strings.Lines(table) {
		dev, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(rest)
		if !ok || dev != device || column >= len(fields) {
			continue
		}
		var v int64
		if _, err := fmt.Sscan(fields[column], &v); err != nil {
			return 0, fmt.Errorf("%s of %s: %w", name, device, err)
		}
		return v, nil
	}
	return 0, fmt.Errorf("no %s of %s in /proc/net/dev", name, device)
}

// ip runs the ip program with each of the lines, until one fails.
func ip(lines ...string) error {
	for _, l := range lines {
		if err := run("ip", strings.Fields(l)...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
