package fetch

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/scheduler"
)

// Cluster is the other nodes, as far as flights need them.
type Cluster interface {
	// Enter makes m the node's member in the swarm of d. What a scheduler
	// says of the blob, and that schedulers come and go, reaches m until
	// Leave or Seed returns.
	Enter(d digest.Digest, m *Member) (Swarm, error)
	// Complete is told of a blob that is complete and of which the node was
	// in no swarm. public says that no source had a credential, or that it is
	// known that everyone may have the blob.
	Complete(d digest.Digest, size int64, public bool)
	// Accuse tells the scheduler of a blob that a node lied about it.
	Accuse(d digest.Digest, id scheduler.PeerID)
	// Fetching tells that a run from an origin begins, or ends, that is meant
	// for a swarm too.
	Fetching(begins bool)
	// Known returns nodes that were neighbours in any swarm lately, at most
	// a few, and the same ones on each node as far as that can be: where
	// there is no scheduler, those who want d shall meet.
	Known(d digest.Digest) []scheduler.Neighbour
}

// Swarm is the node's place in the swarm of one blob.
type Swarm interface {
	// Send hands a message to the blob's scheduler. It waits while that one
	// does not read, and reports nothing: what is lost is said again.
	Send(ctx context.Context, msg scheduler.In)
	// Open lets peers in. What they do reaches the member until Leave or
	// Seed.
	Open(size int64, have []Have, content func() (PartialReader, error)) (Wire, error)
	// Seed ends the membership with the blob complete: it is announced, and
	// peers are served on.
	Seed(size int64)
	// Leave ends the membership.
	Leave()
}

// Wire is the exchange with peers, of one blob.
type Wire interface {
	// Dial connects to a peer; Member.Opened tells of it. The error says
	// that it is not reached, or does not know the blob.
	Dial(ctx context.Context, n scheduler.Neighbour) error
	// Have announces a piece to all who are connected.
	Have(h Have)
	// Publish says of all pieces that were announced that the node of this name
	// answers for them: to peers that connect from now on, and if tell is set to
	// those that are connected and lack the piece.
	Publish(name string, tell bool)
}

// Have says that somebody holds a piece, what it hashes to, and which node
// brought it from its origin and computed that hash.
type Have struct {
	Index     int
	Sum       piece.Sum
	Known     bool // the sum was said
	Publisher string
}

// Peer is a connection to another node for one blob. Two that are equal are
// the same.
type Peer interface {
	// ID names the node: what its certificate proves, or without TLS what it
	// claims to be. It may be empty while no scheduler has told of it.
	ID() scheduler.PeerID
	// Named reports whether a scheduler has told of the node. A stranger that
	// dials is served, but nothing is asked of it.
	Named() bool
	// Party is what the peer cannot choose for itself: the name in its
	// certificate, or without TLS the network of its address.
	Party() string
	// String names it for people.
	String() string
	// Request asks for a piece, whose bytes are written to w as they come.
	Request(i int, w io.Writer) (Transfer, error)
	// Has and Choked say what the peer claims to have, and whether it
	// rejects requests now.
	Has(i int) bool
	Choked() bool
	// Received returns how many bytes of pieces have come from the peer.
	Received() int64
	// Unneeded tells the peer not to keep an upload slot.
	Unneeded()
	// Close ends the connection for a reason.
	Close(reason error)
}

// Transfer is one piece on its way from a peer.
type Transfer interface {
	// Done is closed when it is over. Err is nil then if the piece is
	// complete.
	Done() <-chan struct{}
	Err() error
	// Cancel ends it. The writer is not used after it returns.
	Cancel()
}
