package origin

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
)

// forbidden are the networks of which no origin has business with: the host
// itself, its link, groups, and the metadata services of clouds. Private
// networks (RFC 1918, ULA) are where clusters have their registries, and are
// not among them.
var forbidden = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), // Linux connects 0.0.0.0 to itself
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), // AWS, GCP, Azure, OpenStack, DigitalOcean
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
	netip.MustParsePrefix("fd00:ec2::254/128"), // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),  // GCP
}

// embedding are the networks whose addresses carry an IPv4 address, and at
// which byte: IPv4-compatible, NAT64 (RFC 6052, RFC 8215 with a /96), 6to4.
var embedding = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("::/96"), 12},
	{netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
}

// isForbidden reports whether addr is, or carries, a forbidden address.
func isForbidden(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if inForbidden(addr) {
		return true
	}
	for _, e := range embedding {
		if e.prefix.Contains(addr) {
			b := addr.As16()
			return inForbidden(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
		}
	}
	return false
}

func inForbidden(addr netip.Addr) bool {
	for _, p := range forbidden {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// control refuses a connection between the resolution of its name and the
// first packet, so that it does not matter what the name resolved to before.
func control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrForbiddenAddress, address)
	}
	if isForbidden(ap.Addr()) {
		return fmt.Errorf("%w: %s", ErrForbiddenAddress, ap.Addr())
	}
	return nil
}

// controlStrictly refuses private addresses too, unless the upstream's own
// server has one: what answers there is handed to callers.
func (e *endpoint) controlStrictly(ctx context.Context, network, address string, c syscall.RawConn) error {
	if err := control(ctx, network, address, c); err != nil {
		return err
	}
	if ap, err := netip.ParseAddrPort(address); err != nil || isPrivate(ap.Addr()) && !e.private.Load() {
		return fmt.Errorf("%w: %s", ErrForbiddenAddress, address)
	}
	return nil
}

// shared is the network of carrier-grade NAT (RFC 6598), which clouds use for
// addresses of their own.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// isPrivate reports whether addr is, or carries, an address of this host or of
// a private network.
func isPrivate(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if isForbidden(addr) || inPrivate(addr) {
		return true
	}
	for _, e := range embedding {
		if e.prefix.Contains(addr) {
			b := addr.As16()
			return inPrivate(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
		}
	}
	return false
}

func inPrivate(addr netip.Addr) bool { return addr.IsPrivate() || shared.Contains(addr) }

// isLocal reports whether host is a literal address or localhost: names that
// mean the same wherever they are resolved, and that are forbidden if one of
// a redirect.
func isLocal(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// namesForbidden reports whether host is written as a forbidden address.
func namesForbidden(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return isForbidden(addr)
	}
	return isLocal(host)
}

// hostPort returns the server of u as HOST:PORT in lower case, with the
// default port of the scheme if u names none.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return strings.ToLower(net.JoinHostPort(u.Hostname(), port))
}
