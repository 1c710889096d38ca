// Package origin makes requests to an origin: the registry that answers for
// an upstream. It knows tokens, ranges, redirects, back-off, and which
// address may be reached and which host may see a credential. It must not
// know the swarm, the store, or who asks.
//
// # Rules
//
// Two rules are kept at the lowest level, so that nothing above them can
// forget: endpoint.send decides whether a request may bear a credential, and
// endpoint.dial decides whether an address may be reached. Both see every
// request, those after a redirect and those to a token service included.
//
// # Proxies
//
// HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured. The proxy is the
// operator's choice and may have any address. It resolves names itself, so
// that behind it only literal addresses and localhost are refused here, and
// the addresses that names resolve to are the proxy's to guard.
//
// # Why not oras' auth.Client
//
// It sends credentials to whatever public realm a server names, refuses
// realms on private addresses, has no fallback from POST to GET, reads only
// the first challenge, ignores expires_in, and prints URLs with their query.
package origin
