package netns

import (
	"fmt"
	"os"
	"strings"
)

// Traffic is what passed an interface.
type Traffic struct {
	// Bytes include the headers, as far down as Ethernet's. A packet that
	// offloading has left whole has them once.
	Bytes, Packets int64
}

// headers is what a packet of TCP over IPv4 has of them: 14 bytes of Ethernet,
// 20 of IP and 32 of TCP, which stamps every packet with the time. One that
// only acknowledges is no longer, unless packets were lost.
const headers = 66

// Payload is about how many bytes of the traffic were not headers: exactly, if
// all was TCP that lost nothing and opened no connection.
func (t Traffic) Payload() int64 { return t.Bytes - headers*t.Packets }

// Since is what passed after an earlier look.
func (t Traffic) Since(before Traffic) Traffic {
	return Traffic{Bytes: t.Bytes - before.Bytes, Packets: t.Packets - before.Packets}
}

// device reads the counters of an interface.
func device(netns, name string) (received, sent Traffic, err error) {
	var table []byte
	err = in(netns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return received, sent, fmt.Errorf("reading the counters of %s in %s: %w", name, netns, err)
	}
	return parseDevice(string(table), name)
}

// parseDevice finds an interface in /proc/net/dev: after its name come eight
// columns of what was received, first bytes and packets, then as many of what
// was sent.
func parseDevice(table, name string) (received, sent Traffic, err error) {
	for line := range strings.Lines(table) {
		dev, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || dev != name {
			continue
		}
		var skip string
		_, err := fmt.Sscan(rest, &received.Bytes, &received.Packets, &skip, &skip, &skip, &skip, &skip, &skip, &sent.Bytes, &sent.Packets)
		if err != nil {
			return received, sent, fmt.Errorf("the counters of %s: %w", name, err)
		}
		return received, sent, nil
	}
	return received, sent, fmt.Errorf("no %s in /proc/net/dev", name)
}

// class reads what a class of HTB has sent.
func class(e end, id string) (Traffic, error) {
	out, err := run("tc", "-n", e.netns, "-s", "class", "show", "dev", e.device)
	if err != nil {
		return Traffic{}, err
	}
	t, err := parseClass(out, id)
	if err != nil {
		return t, fmt.Errorf("%s in %s: %w", e.device, e.netns, err)
	}
	return t, nil
}

// parseClass finds a class in the output of `tc -s class show`, which is:
//
//	class htb 1:10 root prio 0 rate 20Mbit …
//	 Sent 90 bytes 1 pkt (dropped 0, overlimits 0 requeues 0)
//
// There, packets are counted as they would be without offloading.
func parseClass(out, id string) (Traffic, error) {
	_, rest, ok := strings.Cut(out, "class htb "+id+" ")
	if !ok {
		return Traffic{}, fmt.Errorf("no class %s", id)
	}
	var t Traffic
	_, rest, _ = strings.Cut(rest, "\n")
	if _, err := fmt.Sscanf(strings.TrimSpace(rest), "Sent %d bytes %d pkt", &t.Bytes, &t.Packets); err != nil {
		return t, fmt.Errorf("the counters of class %s: %w", id, err)
	}
	return t, nil
}
