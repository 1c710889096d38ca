// Package hostcheck refuses requests that a web page sends to a loopback
// listener under a name of its own (DNS rebinding).
//
// A browser on this machine can be made to connect to 127.0.0.1 under any name
// that the page's author controls. The Host header then carries that name, and
// a client of the machine's own never sends it.
package hostcheck

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// Error says that a request names a host that this listener does not have.
type Error struct{ Host string }

func (e *Error) Error() string {
	return fmt.Sprintf("the Host header %.100q is no name of this listener, which was reached over loopback; use 127.0.0.1 or localhost", e.Host)
}

// Handler hands to next each request that Check finds nothing wrong with, and
// answers the others with 421 and the reason.
func Handler(next http.Handler, allowed ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := Check(r, allowed...); err != nil {
			http.Error(w, err.Error(), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Check returns an *Error if a request came in on a loopback address and its
// Host is neither a loopback address, nor localhost, nor one of the names
// allowed, which are without a port. It goes by the address that the
// connection came in on, so that it holds for a listener on all addresses
// too. A request without a Host is no browser's.
func Check(r *http.Request, allowed ...string) error {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok || !local.IP.IsLoopback() || r.Host == "" {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	same := func(name string) bool { return strings.EqualFold(name, host) }
	if ip != nil && ip.IsLoopback() || same("localhost") || slices.ContainsFunc(allowed, same) {
		return nil
	}
	return &Error{r.Host}
}
