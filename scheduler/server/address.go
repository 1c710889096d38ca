package server

import (
	"net"
	"net/netip"
	"strings"

	"github.com/shoalproject/shoal/scheduler"
)

// reachable returns where others reach a daemon: what it advertises, or with
// the address that it was seen at where it names no host. It refuses what
// would send its neighbours to themselves or to nowhere: an address that is
// loopback or link-local to them, unless the daemon was seen at one, too.
func reachable(advertised string, seen netip.Addr) (string, error) {
	host, port, err := net.SplitHostPort(advertised)
	if err != nil {
		return "", &Refusal{scheduler.ReasonInvalid, "hello.addr is not host:port"}
	}
	addr, err := netip.ParseAddr(host)
	if host != "" && err != nil {
		if strings.EqualFold(host, "localhost") && !seen.IsLoopback() {
			return "", &Refusal{scheduler.ReasonInvalid, "hello.addr is loopback, the daemon is not"}
		}
		return advertised, nil // a name
	}
	addr = addr.Unmap()
	switch {
	case host == "" || addr.IsUnspecified():
		if !seen.IsValid() {
			return "", &Refusal{scheduler.ReasonInvalid, "hello.addr names no host, and none is seen"}
		}
		return net.JoinHostPort(seen.String(), port), nil
	case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "", &Refusal{scheduler.ReasonInvalid, "hello.addr is not one host's"}
	case addr.IsLoopback() && !seen.IsLoopback():
		return "", &Refusal{scheduler.ReasonInvalid, "hello.addr is loopback, the daemon is not"}
	case addr.IsLinkLocalUnicast() && !seen.IsLinkLocalUnicast():
		return "", &Refusal{scheduler.ReasonInvalid, "hello.addr is link-local, the daemon is not"}
	}
	return advertised, nil
}
