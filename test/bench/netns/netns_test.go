package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

const procNetDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0      200       2    0    0    0     0       0          0
  eth0:12345      21    0    0    0     0          0         0    67890      16    0    0    0     0       0          0
`

func TestParseDevice(t *testing.T) {
	for name, want := range map[string][2]Traffic{
		"lo":   {{100, 1}, {200, 2}},
		"eth0": {{12345, 21}, {67890, 16}},
	} {
		if in, out, err := parseDevice(procNetDev, name); err != nil || in != want[0] || out != want[1] {
			t.Errorf("%s: %v, %v, %v; want %v", name, in, out, err, want)
		}
	}
	if _, _, err := parseDevice(procNetDev, "th0"); err == nil {
		t.Error("found a device that is not there")
	}
}

func TestParseClass(t *testing.T) {
	const out = `class htb 1:10 root prio 0 rate 20Mbit ceil 20Mbit burst 128Kb cburst 1600b 
 Sent 90 bytes 1 pkt (dropped 0, overlimits 0 requeues 0) 
 backlog 0b 0p requeues 0

class htb 1:20 root prio 0 rate 10Gbit ceil 10Gbit burst 0b cburst 0b 
 Sent 12345 bytes 67 pkt (dropped 0, overlimits 0 requeues 0) 
`
	for id, want := range map[string]Traffic{"1:10": {90, 1}, "1:20": {12345, 67}} {
		if got, err := parseClass(out, id); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", id, got, err, want)
		}
	}
	if _, err := parseClass(out, "1:2"); err == nil {
		t.Error("found a class that is not there")
	}
}

func TestRate(t *testing.T) {
	if got := (200 * Mbit).BytesPerSecond(); got != 25e6 {
		t.Errorf("200 Mbit/s are %v bytes per second", got)
	}
	if got := (200 * Mbit).String(); got != "200 Mbit/s" {
		t.Errorf("got %q", got)
	}
}

// testNetwork is a network that goes with the test.
func testNetwork(t *testing.T) *Network {
	t.Helper()
	lack := ""
	for _, program := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(program); err != nil {
			lack = err.Error()
		}
	}
	if os.Geteuid() != 0 {
		lack = "network namespaces need root"
	}
	if lack != "" && os.Getenv("CI") != "" {
		t.Fatal(lack)
	} else if lack != "" {
		t.Skip(lack)
	}
	nw, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nw.Close(); err != nil {
			t.Error(err)
		}
	})
	return nw
}

// send moves n bytes from one node to another over TCP, and returns how long
// that took. The sender speaks first, and is answered when all has arrived.
func send(t *testing.T, from, to *Node, n int64) time.Duration {
	t.Helper()
	var l net.Listener
	err := in(to.Netns, func() (err error) {
		l, err = net.Listen("tcp4", to.Addr+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		received <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := io.CopyN(io.Discard, c, n); err != nil {
				return err
			}
			_, err = c.Write([]byte{1})
			return err
		}()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Dial(ctx, from.Netns, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	return took
}

// near reports whether a count of payload is what it must be, within one in a
// hundred: packets are lost and sent again.
func near(got, want int64) bool { return got >= want && got <= want+want/100+1000 }

func TestShapedLink(t *testing.T) {
	const n = 2 << 20
	const rate = 20 * Mbit
	nw := testNetwork(t)
	var nodes [2]*Node
	for i := range nodes {
		var err error
		if nodes[i], err = nw.Add(rate); err != nil {
			t.Fatal(err)
		}
	}
	// No machine is so slow that this fails, nor so fast.
	ideal := time.Duration(float64(n-rate.burst()) / rate.BytesPerSecond() * float64(time.Second))
	if took := send(t, nodes[0], nodes[1], n); took < ideal {
		t.Errorf("%d bytes took %v at %v, less than %v", n, took, rate, ideal)
	}
	_, sent, err := nodes[0].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	received, _, err := nodes[1].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	if !near(sent.Payload(), n) || !near(received.Payload(), n) {
		t.Errorf("counted %d bytes sent and %d received of %d", sent.Payload(), received.Payload(), n)
	}
	if err := nodes[1].Unplug(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, nodes[0].Netns, nodes[1].Addr+":1")
	if silent, ok := errors.AsType[net.Error](err); !ok || !silent.Timeout() {
		t.Errorf("dialling a node without a link: %v", err)
	}
	if err := nodes[1].Plug(); err != nil {
		t.Fatal(err)
	}
	send(t, nodes[0], nodes[1], 1)
}

func TestZones(t *testing.T) {
	const n = 2 << 20
	const rate = 20 * Mbit
	nw := testNetwork(t)
	outer, err := nw.Add(0)
	if err != nil {
		t.Fatal(err)
	}
	var zones [2]*Zone
	var nodes [2][2]*Node
	for i := range zones {
		if zones[i], err = nw.AddZone(rate); err != nil {
			t.Fatal(err)
		}
		for j := range nodes[i] {
			if nodes[i][j], err = zones[i].Add(0); err != nil {
				t.Fatal(err)
			}
		}
	}
	crossed := func() (out [2][2]Traffic) {
		for i, z := range zones {
			if out[i][0], out[i][1], err = z.Crossed(); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	// What does not go between zones is not counted, and not held up: were it,
	// this would take seconds, but no clock is asked for that.
	send(t, nodes[0][0], nodes[0][1], n)
	send(t, outer, nodes[1][0], n)
	send(t, nodes[1][0], outer, n)
	for i, z := range crossed() {
		if z[0].Payload() > 1000 || z[1].Payload() > 1000 {
			t.Errorf("zone %d: %v crossed before anything did", i, z)
		}
	}
	ideal := time.Duration(float64(n-2*rate.burst()) / rate.BytesPerSecond() * float64(time.Second))
	if took := send(t, nodes[0][0], nodes[1][1], n); took < ideal {
		t.Errorf("%d bytes took %v between zones at %v, less than %v", n, took, rate, ideal)
	}
	z := crossed()
	if !near(z[0][1].Payload(), n) || !near(z[1][0].Payload(), n) {
		t.Errorf("counted %d bytes out of one zone and %d into the other, of %d", z[0][1].Payload(), z[1][0].Payload(), n)
	}
	if z[0][0].Payload() > 10_000 || z[1][1].Payload() > 10_000 {
		t.Errorf("counted %d bytes into the zone that sent and %d out of the one that received", z[0][0].Payload(), z[1][1].Payload())
	}
}
