package peer

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
)

// ErrForbiddenAddress is wrapped by the error of Dial for a name that stands
// for no other node.
var ErrForbiddenAddress = errors.New("address is loopback, link-local or not one host's")

// guard returns a net.Dialer's Control that refuses what host may not stand
// for, or nil. It looks between the resolution and the first packet, so it does
// not matter what a name stood for before. Addresses, and "localhost", were held
// by the scheduler against the address that it sees the peer at; any other name
// it cannot know better than who dials.
func guard(host string) func(network, address string, _ syscall.RawConn) error {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	here := strings.EqualFold(host, "localhost")
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("%s is at %s: %w", host, address, err)
		}
		a := ap.Addr().Unmap()
		if a.IsLoopback() && !here || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
			return fmt.Errorf("%s is at %s: %w", host, a, ErrForbiddenAddress)
		}
		return nil
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
