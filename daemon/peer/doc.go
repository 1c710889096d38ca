// Package peer moves pieces between nodes: it speaks the BitTorrent peer wire,
// both ends of it, over TCP or over mutual TLS.
//
// It knows connections, messages and who may upload now. It must not know
// which piece is worth asking of whom, where a piece comes from first, how
// pieces are stored, or that there is a scheduler: the caller decides, tells
// it what to do, and is told what happened.
//
// # Wire
//
// One TCP connection per pair of peers and blob, as BEP 3 has it. Framing,
// handshake and messages are those of BEP 3 with the fast extension (BEP 6)
// and the extension protocol (BEP 10), both of which a peer must offer.
//
// The infohash is the first 20 bytes of SHA-256("shoal:" + digest): it is
// truncated as BEP 52 does it, and derived from the blob's digest, so that no
// metadata travels. Size and piece length follow from what both sides know
// already; the extension handshake repeats the size, and who disagrees is
// disconnected.
//
// Each side opens with
//
//	handshake            68 bytes; the one that dialed first
//	extended 0           dictionary: m, v, reqq, shoal (1), shoal_size (bytes)
//	have-all, have-none or bitfield
//	unchoke (or choke)
//	shoal_have …         the sums of the pieces just claimed
//
// and from then on pushes what changes. Three extension messages exist:
//
//	shoal_have           u8 length of publisher, publisher,
//	                     then (u32 piece index, 32 bytes BLAKE3 sum) …
//	lt_donthave          u32 piece index (BEP 54)
//	upload_only          u8 1 (BEP 21)
//
// A shoal_have says that the sender has each of the pieces, what each is to
// be checked against, and which peer first published that sum, so that a lie
// has a name. It takes the place of HAVE where both sides speak it; HAVE and
// a claim without sum are understood as well. Neither is sent of a piece that
// the other side has; so who has everything says so by upload_only, and
// connections of which neither side needs anything can be closed.
//
// Numbers are big-endian. A message has the length that its type demands, a
// bitfield that of the blob; nothing is allocated for a length that is merely
// claimed. A piece is asked for in blocks, all at once and in order, and
// answered in that order.
//
// # Upload slots
//
// Everybody starts unchoked and may ask. A peer whose requests find all slots
// taken is choked, its requests are rejected at once, and it stands in line;
// it is unchoked, with a slot kept for it, when its turn comes. Who has a slot
// keeps it while it keeps asking, but for one turn at most while others wait,
// and turns end between pieces. So nothing polls, and no request waits behind
// strangers.
//
// # State
//
// An Endpoint owns the sockets, the limits and the swarms; a Swarm what this
// node has of one blob, and its connections; a Conn what passes on one
// connection. Each has one mutex, taken in this order: Endpoint, Swarm, Conn,
// slots. None is held over I/O or a call to a Handler. Each connection has
// two goroutines, one that reads and one that writes; they end with it.
package peer
