package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Mbit is a million bits per second, in bytes per second.
const Mbit = 125_000

// Shape has the node's link carry at most rate bytes per second, headers
// included, each way. What a node says to itself is not limited.
func (n *Node) Shape(t testing.TB, rate int) {
	t.Helper()
	limit(t, &Node{Dir: "/"}, n.link, rate)
	limit(t, n, "eth0", rate)
}

// Shape has this machine send at most rate bytes per second, headers included,
// to all nodes of the network together.
func (nw *Network) Shape(t testing.TB, rate int) {
	t.Helper()
	limit(t, &Node{Dir: "/"}, nw.id, rate)
}

// limit bounds what leaves by a device. The bucket holds two of the largest
// packets that offloading makes, the queue behind it 50 ms, like a switch's.
func limit(t testing.TB, at *Node, device string, rate int) {
	t.Helper()
	NeedProgram(t, "tc", "iproute2")
	_, err := at.Run("tc", "qdisc", "replace", "dev", device, "root", "tbf",
		"rate", fmt.Sprintf("%dbps", rate), "burst", fmt.Sprint(max(128<<10, rate/200)), "latency", "50ms")
	if err != nil {
		t.Fatalf("shaping %s: %v", device, err)
	}
}

// Cut drops every packet between the node and some IP addresses, both ways and
// without a word to either end, until [Node.Mend]. Connections stay as they are.
func (n *Node) Cut(t testing.TB, addrs ...string) {
	t.Helper()
	NeedProgram(t, "nft", "nftables")
	var rules strings.Builder
	rules.WriteString("table inet e2e {\n")
	for _, way := range []struct{ hook, field string }{{"input", "saddr"}, {"output", "daddr"}} {
		fmt.Fprintf(&rules, "chain %[1]s {\ntype filter hook %[1]s priority 0; policy accept;\n", way.hook)
		for _, addr := range addrs {
			family := "ip"
			if strings.Contains(addr, ":") {
				family = "ip6"
			}
			fmt.Fprintf(&rules, "%s %s %s drop\n", family, way.field, addr)
		}
		rules.WriteString("}\n")
	}
	rules.WriteString("}\n")
	if _, err := n.Run("nft", rules.String()); err != nil {
		t.Fatalf("cutting %s off from %v: %v", n.Name, addrs, err)
	}
}

// Mend ends what [Node.Cut] did.
func (n *Node) Mend(t testing.TB) {
	t.Helper()
	if _, err := n.Run("nft", "delete table inet e2e"); err != nil {
		t.Fatalf("mending the link of %s: %v", n.Name, err)
	}
}

// Dial connects to an IP address and port from where the node is.
func (n *Node) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var dialer net.Dialer
	if n.NetNS == "" {
		return dialer.DialContext(ctx, network, addr)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never given back: the thread ends with this goroutine, so that
		// nothing else finds itself in the wrong network. A connection stays
		// in that in which it was made.
		runtime.LockOSThread()
		if err := enter("/var/run/netns/" + n.NetNS); err != nil {
			done <- result{err: err}
			return
		}
		conn, err := dialer.DialContext(ctx, network, addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// enter moves the calling thread into a network namespace.
func enter(netns string) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the network namespace %s: %w", netns, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", netns, err)
	}
	return nil
}

// HTTP is a client that runs on the node, as its container runtime does: its
// way to the node's own servers is not the node's link. It keeps no connection.
func (n *Node) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: n.Dial, DisableKeepAlives: true, DisableCompression: true,
		ResponseHeaderTimeout: time.Minute,
	}}
}
