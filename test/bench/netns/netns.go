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
	// Congestion is TCP's congestion control of nodes that are added; "" is
	// the machine's. It decides over what shaped links cost: BBR sends little
	// at a time, and takes about twice the CPU of Reno.
	Congestion string

	id    string
	nodes []*Node
	zones []*Zone
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

// 198.18.0.0/15 is for benchmarks (RFC 2544) and routed nowhere. The nodes of
// a network are in 198.18.0.0/24, those of its first zone in 198.18.1.0/24.
const (
	maxNodes = 200
	maxZones = 9 // names of namespaces stay short
	subnet   = "198.18.%d.%d"
	outside  = "198.18.0.0/24"
)

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
func (nw *Network) Add(rate Rate) (*Node, error) { return nw.add(nw.id, 0, rate) }

func (nw *Network) add(hub string, zone int, rate Rate) (*Node, error) {
	n := len(nw.nodes) + 1
	if n > maxNodes {
		return nil, fmt.Errorf("a network has at most %d nodes", maxNodes)
	}
	node := &Node{Netns: fmt.Sprintf("%s-%d", nw.id, n), Addr: fmt.Sprintf(subnet, zone, n), hub: hub, link: fmt.Sprintf("v%d", n)}
	nw.nodes = append(nw.nodes, node)
	err := ip(
		"netns add "+node.Netns,
		"-n "+hub+" link add "+node.link+" type veth peer name eth0 netns "+node.Netns,
		"-n "+hub+" link set "+node.link+" master br0 up",
		"-n "+node.Netns+" address add "+node.Addr+"/16 dev eth0",
		"-n "+node.Netns+" link set lo up",
		"-n "+node.Netns+" link set eth0 up",
	)
	if err != nil {
		return nil, err
	}
	if err := nw.congestion(node.Netns); err != nil {
		return nil, err
	}
	return node, node.Shape(rate)
}

func (nw *Network) congestion(netns string) error {
	if nw.Congestion == "" {
		return nil
	}
	const allowed = "net.ipv4.tcp_allowed_congestion_control"
	err := in(netns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(nw.Congestion), 0)
	})
	if err != nil {
		return fmt.Errorf("congestion control %q (is it in %s?): %w", nw.Congestion, allowed, err)
	}
	return nil
}

// Shape gives the node's link another rate, each way.
func (n *Node) Shape(rate Rate) error {
	return shape(rate, end{n.hub, n.link}, end{n.Netns, "eth0"})
}

// Unplug takes the node's link down: nothing comes or goes, and nobody is
// told.
func (n *Node) Unplug() error { return ip("-n " + n.hub + " link set " + n.link + " down") }

// Plug undoes Unplug.
func (n *Node) Plug() error { return ip("-n " + n.hub + " link set " + n.link + " up") }

// Traffic returns what the node has received and sent on its link.
func (n *Node) Traffic() (received, sent Traffic, err error) { return device(n.Netns, "eth0") }

// Close takes the network away. What still runs there loses its links.
func (nw *Network) Close() error {
	var errs []error
	for _, n := range nw.nodes {
		errs = append(errs, ip("netns delete "+n.Netns))
	}
	for _, z := range nw.zones {
		errs = append(errs, ip("netns delete "+z.hub))
	}
	errs = append(errs, ip("netns delete "+nw.id))
	nw.nodes, nw.zones = nil, nil
	return errors.Join(errs...)
}

// ip runs the ip program with each of the lines, until one fails.
func ip(lines ...string) error {
	for _, l := range lines {
		if _, err := run("ip", strings.Fields(l)...); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
