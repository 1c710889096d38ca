package netns

import "testing"

const procNetDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0      200       1    0    0    0     0       0          0
  eth0:12345      21    0    0    0     0          0         0    67890      16    0    0    0     0       0          0
`

func TestParseCounter(t *testing.T) {
	for _, c := range []struct {
		device, name string
		want         int64
	}{
		{"eth0", "rx_bytes", 12345},
		{"eth0", "tx_bytes", 67890},
		{"lo", "tx_bytes", 200},
	} {
		if got, err := parseCounter(procNetDev, c.device, c.name); err != nil || got != c.want {
			t.Errorf("%s of %s: %d, %v; want %d", c.name, c.device, got, err, c.want)
		}
	}
	if _, err := parseCounter(procNetDev, "th0", "rx_bytes"); err == nil {
		t.Error("found a device that is not there")
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
