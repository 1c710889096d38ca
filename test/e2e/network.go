package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Network is a bridge on this machine. The test and a registry sit on it in the
// machine's own network namespace, at Addr; each node that is made on it sits in
// a namespace of its own behind a pair of virtual links, which can be shaped.
type Network struct {
	// Addr is this machine's address on the bridge.
	Addr string

	id    string // begins the name of every interface and namespace
	six   bool   // IPv6 instead of IPv4
	nodes int
}

// maxNodes is how many addresses a network has.
const maxNodes = 200

// NewNetwork makes an IPv4 network without nodes. It goes with the test. A test
// has one at a time.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	return newNetwork(t, false)
}

// NewNetwork6 makes one whose nodes have IPv6 and no other address.
func NewNetwork6(t testing.TB) *Network {
	t.Helper()
	if off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil || strings.TrimSpace(string(off)) != "0" {
		missing(t, "needs IPv6: net.ipv6.conf.all.disable_ipv6 is %q (%v)", off, err)
	}
	return newNetwork(t, true)
}

func newNetwork(t testing.TB, six bool) *Network {
	t.Helper()
	NeedRoot(t)
	NeedProgram(t, "ip", "iproute2")
	NeedProgram(t, "nsenter", "util-linux")
	// Names are at most 15 bytes; the process id keeps two runs apart.
	nw := &Network{id: fmt.Sprintf("e2e%d", os.Getpid()), six: six}
	nw.Addr = nw.address(1)
	// By itself a bridge takes the lowest address of its ports, another one
	// perhaps with every node that is added, and drops what the older nodes
	// still send to the one before.
	nw.mustIP(t, "link", "add", nw.id, "address", "02:e2:e0:00:00:01", "type", "bridge")
	t.Cleanup(func() { nw.undo(t, "link", "delete", nw.id) })
	nw.mustIP(t, nw.assign(nw.Addr, nw.id)...)
	nw.mustIP(t, "link", "set", nw.id, "up")
	return nw
}

// NewNode makes a node with an address and a namespace of its own. Its link is
// [Network.Link] here and eth0 there.
func (nw *Network) NewNode(t testing.TB, name string) *Node {
	t.Helper()
	if nw.nodes == maxNodes {
		t.Fatalf("a network has at most %d nodes", maxNodes)
	}
	nw.nodes++
	netns := fmt.Sprintf("%s-%d", nw.id, nw.nodes)
	link := nw.Link(nw.nodes)
	addr := nw.address(nw.nodes + 1)
	nw.mustIP(t, "netns", "add", netns)
	t.Cleanup(func() { nw.undo(t, "netns", "delete", netns) })
	nw.mustIP(t, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns)
	// It would go with the namespace, but some time after that is deleted, and
	// the next network of this process takes the same name.
	t.Cleanup(func() { nw.undo(t, "link", "delete", link) })
	nw.mustIP(t, "link", "set", link, "master", nw.id, "up")
	nw.mustIP(t, append([]string{"-n", netns}, nw.assign(addr, "eth0")...)...)
	nw.mustIP(t, "-n", netns, "link", "set", "eth0", "up")
	nw.mustIP(t, "-n", netns, "link", "set", "lo", "up")
	n := NewNodeAt(t, name, addr, netns)
	n.link = link
	return n
}

// Link is the name of this machine's end of the link of the nth node, counted
// from 1.
func (nw *Network) Link(n int) string { return fmt.Sprintf("%sv%d", nw.id, n) }

// address is one of a range for benchmarks, which is routed nowhere: RFC 2544
// has 198.18.0.0/15, RFC 5180 has 2001:2::/48.
func (nw *Network) address(host int) string {
	if nw.six {
		return fmt.Sprintf("2001:2:0:%x::%x", os.Getpid()%(1<<16), host)
	}
	return fmt.Sprintf("198.18.%d.%d", os.Getpid()%256, host)
}

// assign gives a device an address. Nobody else can have it, so that none of
// IPv6 has to wait until that is known.
func (nw *Network) assign(addr, device string) []string {
	if nw.six {
		return []string{"address", "add", addr + "/64", "dev", device, "nodad"}
	}
	return []string{"address", "add", addr + "/24", "dev", device}
}

func (nw *Network) mustIP(t testing.TB, args ...string) {
	t.Helper()
	if _, err := nw.ip(args...); err != nil {
		t.Fatal(err)
	}
}

func (nw *Network) undo(t testing.TB, args ...string) {
	t.Helper()
	if _, err := nw.ip(args...); err != nil {
		t.Errorf("cleaning up the network: %v", err)
	}
}

func (nw *Network) ip(args ...string) (string, error) {
	out, err := (&Node{Dir: "/"}).Run("ip", args...)
	return strings.TrimSpace(out), err
}
