// Package sim runs the scheduler's core, the same code as in a cluster, with
// simulated daemons on a simulated network. Everything is seeded: the same
// Config gives the same Result, but for the CPU time.
//
// It knows the scheduler's messages and the rules by which daemons exchange
// pieces; it must not know sockets, files or real time.
//
// # The network
//
// Bytes are a fluid. Every transfer passes the sender's uplink, the
// receiver's downlink and, between zones, the zone's link; the origin is a
// sender too. Each link is shared max–min among its transfers, where a
// transfer that is held back by another of its links leaves what it cannot
// use to the others. The shares are settled two links deep when a transfer
// begins or ends, not to the global fixed point: exact for links whose
// transfers end at idle or saturated links, a few percent off otherwise, and
// O(transfers at the links concerned) for each event.
//
// # The daemons
//
// They follow section 5.2 of the design: what is assigned first, in order;
// then the rarest piece among those that neighbours with a free upload slot
// have, ties by lot; Downloads and Uploads transfers at once, and a few more
// while they leave the peer's own link idle; an uploader serves who lacks most
// first. A queue ahead is
// modelled by leaving no gap between two transfers to the same busy peer; one
// that was idle pays the latency. A piece is visible to others when it is
// verified.
//
// What it leaves out: wire overhead (about 5%), TCP's slow start and
// unfairness, blocks within pieces, and liars.
package sim
