// Package scheduler decides which peer of a swarm brings which piece in from
// where, and which peers exchange the rest with each other.
//
// It is pure: a message or a tick goes in, messages come out. It knows peers,
// blobs, zones and pieces; it must not know goroutines, clocks, sockets,
// origins' protocols or the bytes themselves. The same messages at the same
// times, with the same seed, give the same answers, so that a simulation of
// ten thousand peers and a real cluster run one code (see package sim).
//
// # What it knows
//
// State is soft: it is learned from what peers announce, and a new scheduler
// learns it again from their Hello and Join alone. For each zone that wants a
// blob it remembers, per piece, one peer: the one that brought it in, or is
// bringing it. It does not follow who else holds it: pieces spread from
// neighbour to neighbour without it. When the one it remembers is lost, it
// asks that peer's neighbours who has the piece before it lets the piece
// leave the origin again.
//
// # Where a piece comes from
//
// In this order: from a peer of the zone that holds the blob whole (a seed),
// from a peer of another zone, from the origin. From each of these sources a
// piece goes to one peer per zone first; the exchange among neighbours does
// the rest. From the origin pieces go in long runs, one request each, few at
// a time.
//
// # Cost
//
// Per blob, work is O(pieces × zones + peers): a join looks at a bounded
// number of peers and of runs, the end of one piece at its own list. At most
// maxRings zones are told apart in one blob; the rest share one.
package scheduler
