// Package wire carries the messages of package scheduler between a daemon and
// a scheduler over gRPC, both ends.
//
// It knows how a message looks on the network, its bounds, and the life of a
// stream. It must not know what a message means: who owns a core is package
// server's business, which scheduler is asked is package client's. Those two
// know nothing of gRPC; who puts a process together hands Dialer.Open to the
// one and Serve's streams to the other.
//
// # The protocol
//
// A daemon opens one stream (Swarms.Connect, see wirepb/swarm.proto) and sends
// Hello with the version that it speaks, its name and its address. The
// scheduler answers with Welcome, or with Goodbye, which says why not. Then
// each says what it has to say, several messages in one gRPC message when
// they come faster than the network takes them. A scheduler that ends the
// stream sends Goodbye; the daemon then closes it. A daemon just closes it.
// Unknown fields and messages are passed over.
//
// # What the network may do
//
// Everything is a claim until it was checked: names, addresses, digests,
// sizes, indexes and the number of each. A message out of bounds ends its
// stream with an error that names the field. What is longer than one message
// may be is cut into several that mean the same.
package wire

// Version is the protocol version that this package speaks, and Oldest the
// first that it still understands. Each end says its own and takes any from
// Oldest on, so that a cluster can be upgraded a process at a time: what is
// merely new the other end passes over, and what it would misunderstand must
// not be sent to an end that said an older version.
const (
	Version = 1
	Oldest  = 1
)
