package wire

import (
	"net/netip"
	"testing"
)

// A certificate is one identity whichever of its names is claimed, an address
// of IPv4 is one, and so is all that one host of IPv6 has.
func TestIdentity(t *testing.T) {
	of := func(addr string, names ...string) string {
		if addr == "" {
			return identity(names, netip.Addr{})
		}
		return identity(names, netip.MustParseAddr(addr))
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{of("192.0.2.1"), of("192.0.2.1"), true},
		{of("192.0.2.1"), of("192.0.2.2"), false},
		{of("2001:db8::1"), of("2001:db8::ffff:2"), true},
		{of("2001:db8::1"), of("2001:db8:0:1::1"), false},
		{of("fe80::1%eth0"), of("fe80::1%eth1"), true},
		{of("192.0.2.1", "n1", "n2"), of("192.0.2.9", "n2", "n1"), true},
		{of("192.0.2.1", "n1"), of("192.0.2.1", "n1", "n2"), false},
		{of("192.0.2.1", "n1"), of("192.0.2.1"), false},
		{of(""), of(""), true},
	} {
		if (c.a == c.b) != c.same {
			t.Errorf("%s and %s: want them the same: %v", c.a, c.b, c.same)
		}
	}
}
