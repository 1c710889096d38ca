package scheduler

import "time"

// PeerID names a peer within the cluster. It is the peer's own choice and is
// the same on every connection.
type PeerID string

// Digest names a blob, as in "sha256:…". The scheduler compares it and no
// more.
type Digest string

// Run is Count neighbouring pieces from First on.
type Run struct{ First, Count int }

// End returns the index after the last piece.
func (r Run) End() int { return r.First + r.Count }

// In is a message from a peer. Every field is a claim: what is out of bounds
// is ignored, never believed. Messages of other packages may be In too, such
// as those of package jobs; the core takes no notice of them.
type In interface{ ToScheduler() }

// Hello opens a peer's connection and must be its first message. A second one
// from the same peer means that the peer has come back: the first connection
// counts as lost.
type Hello struct {
	// Addr is where other peers reach this one, host:port.
	Addr string
	// Zone is the failure and cost domain of the peer; may be empty.
	Zone string
	// Identity is who answers for the peer, and Proven whether a certificate
	// says so; else it is an address. They are not the peer's to say: the
	// edge sets them, and no wire carries them. Limits and votes go by
	// identity. Empty: the peer answers for itself, and nothing is proven.
	Identity string
	Proven   bool
	// Node is what operators know of the peer's node. The core has no use for
	// it.
	Node Node
	// Inventory lists the blobs that the peer holds whole. Those that it is
	// pulling it joins, each with what it has.
	Inventory []Holding
}

// Node is what a daemon says of its node.
type Node struct {
	// Name stays the same when the daemon is restarted.
	Name string
	// Platform is os/arch[/variant], Version that of the daemon.
	Platform, Version string
	Labels            map[string]string
	// Preheats says that it takes orders to preheat.
	Preheats bool
}

// Holding is one whole blob of an inventory.
type Holding struct {
	Blob Digest
	// Size of the blob in bytes.
	Size int64
}

// Bye says that the peer's connection ended, for whatever reason. What was
// assigned to it comes free.
type Bye struct{}

// Join says that the peer wants a blob. It is answered by Swarm, or by Probe
// when nobody knows the size, or by Refused.
type Join struct {
	Blob Digest
	// Size of the blob in bytes; 0 when the peer does not know it. (An empty
	// blob needs no swarm.)
	Size int64
	// Have is the bitfield (BEP 3) of what the peer has; nil is nothing. It
	// is taken with Again only: a peer that begins has nothing to report.
	Have []byte
	// Origin says that the peer may and can ask the origin.
	Origin bool
	// Source names what bounds the requests, such as upstream and
	// repository: a Hold concerns all blobs of one source.
	Source string
	// Again says that the peer was in this swarm already, under another
	// scheduler. A swarm that begins so waits for the others' inventories
	// (Config.Settle) before it lets a piece leave the origin.
	Again bool
	// Bringing lists the runs that the peer is fetching from the origin at
	// this moment, as it was told before. They are taken over as they are,
	// with Again only.
	Bringing []Run
}

// Have reports progress of what was assigned. Runs are the pieces that are
// now verified; other pieces than assigned ones need no report. With no runs
// it says that bytes of the assignment arrived. A peer sends one at least
// every Config.Renew while bytes arrive: it renews all its assignments of the
// blob. It also answers Ask.
type Have struct {
	Blob Digest
	Runs []Run
}

// Complete says that the peer holds the blob whole, its digest verified. From
// then on it is a seed until it leaves; it stands in for the origin once
// another peer has reported a piece from it. A link between two peers that are
// both complete lapses without a message. A peer may also say this of a blob
// that it never joined.
type Complete struct {
	Blob Digest
	Size int64
}

// Sized answers Probe: the size of the blob in bytes.
type Sized struct {
	Blob Digest
	Size int64
}

// GiveBack hands an assigned run back, or answers a Probe in vain (with an
// empty run). The pieces of the run that the peer already reported stay its.
type GiveBack struct {
	Blob   Digest
	Run    Run
	Reason Reason
	// RetryAfter is what the origin asked for, with RateLimited.
	RetryAfter time.Duration
}

// Leave says that the peer neither wants the blob any more nor serves it.
type Leave struct{ Blob Digest }

// Report accuses another peer of the swarm. The two are no longer neighbours.
// A liar is banned for all only among peers with certificates, when enough of
// those that had it as a neighbour say so; without certificates it is up to
// the peer that was harmed to keep away from it.
type Report struct {
	Blob   Digest
	Peer   PeerID
	Reason Reason
}

// Missing says that for seconds no neighbour had these pieces and nothing
// else was left to fetch. It is the road out of whatever the scheduler
// believes wrongly. The answer is new neighbours and, for pieces that
// somebody is known to hold, an Assign from there.
type Missing struct {
	Blob Digest
	Runs []Run
}

// Reason says why a run is handed back, a peer accused or a join refused.
type Reason uint8

const (
	// Refused: the origin refused this peer (401, 403, 404). It is not
	// asked again for this blob.
	ReasonRefused Reason = iota + 1
	// Unreachable: this peer does not reach the source. It is asked again
	// later.
	ReasonUnreachable
	// RateLimited: 429, or 503 with Retry-After. The peers of this identity do
	// not ask this source until then; nobody does once a second identity says
	// the same.
	ReasonRateLimited
	// Stalled: the source makes no progress.
	ReasonStalled
	// Liar: wrong bytes, or wrong piece hashes.
	ReasonLiar
	// Dead: the peer does not answer.
	ReasonDead
	// Unwanted: the peer has no use for the run any more.
	ReasonUnwanted
	// Banned: the peer is banned for now.
	ReasonBanned
	// Full: a table is full.
	ReasonFull
	// Invalid: the message makes no sense.
	ReasonInvalid
)

var reasonNames = [...]string{"unknown", "refused", "unreachable", "rate-limited", "stalled", "liar", "dead", "unwanted", "banned", "full", "invalid"}

// String returns the reason in one word.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return reasonNames[0]
}

// Out is a message to one peer.
type Out struct {
	To  PeerID
	Msg any // *Swarm, *Assign, *Revoke, *Ask, *Probe, *Hold, *Ban or *Refused
}

// Neighbour is a peer as another one is told of it.
type Neighbour struct {
	Peer PeerID
	Addr string
	Zone string
	// Reserved: ask it only for what was assigned from it. Seeds are so
	// while their pieces are first dealt out, and peers across zones
	// always. It binds while a scheduler is connected.
	Reserved bool
}

// Swarm tells a peer about its swarm: the size, and how its neighbours
// change. A neighbour that is added twice replaces what was told before.
type Swarm struct {
	Blob   Digest
	Size   int64
	Add    []Neighbour
	Remove []PeerID
}

// Assign makes one peer responsible for a run: fetch it from where it says,
// before anything else, in order, and report it with Have. From the origin
// (From.Peer is empty) a run is one request; a run that continues one still
// in work may continue its stream. A piece that the peer already has, or that
// a neighbour in its zone offers, it need not fetch, only report.
type Assign struct {
	Blob Digest
	Run  Run
	From Neighbour
}

// Revoke takes a run, or a part of it, back: it is another's now. What is on
// its way may be finished; nothing more may be asked for.
type Revoke struct {
	Blob Digest
	Run  Run
}

// Ask wants to know which of these pieces the peer has, at once, by Have: the
// one that was known to hold them is gone.
type Ask struct {
	Blob Digest
	Runs []Run
}

// Probe asks one peer to find out the size of a blob at the origin and to
// answer with Sized or GiveBack.
type Probe struct{ Blob Digest }

// Hold says that nobody should open a request to this source for so long.
type Hold struct {
	Source string
	For    time.Duration
}

// Ban says that a peer has been found lying: no connection with it, and
// nothing from it, for so long. The banned peer itself is told too.
type Ban struct {
	Peer PeerID
	For  time.Duration
}

// Refused says that a Join was not accepted; the peer must do without a
// swarm.
type Refused struct {
	Blob   Digest
	Reason Reason
}

// ToScheduler implements In.
func (Hello) ToScheduler() {}

// ToScheduler implements In.
func (Bye) ToScheduler() {}

// ToScheduler implements In.
func (Join) ToScheduler() {}

// ToScheduler implements In.
func (Have) ToScheduler() {}

// ToScheduler implements In.
func (Complete) ToScheduler() {}

// ToScheduler implements In.
func (Sized) ToScheduler() {}

// ToScheduler implements In.
func (GiveBack) ToScheduler() {}

// ToScheduler implements In.
func (Leave) ToScheduler() {}

// ToScheduler implements In.
func (Report) ToScheduler() {}

// ToScheduler implements In.
func (Missing) ToScheduler() {}
