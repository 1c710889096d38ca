package daemon

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/scheduler"
)

// membership is a flight's place in the swarm of a blob: its way to the
// scheduler and to peers, and theirs to it. It handles the connections also
// when the flight is over and the blob complete.
type membership struct {
	c      *cluster
	digest digest.Digest
	member atomicMember // nil when the flight is over
	swarm  *peer.Swarm  // nil before Open
}

// Send hands a message to the scheduler.
func (ms *membership) Send(ctx context.Context, msg scheduler.In) { ms.c.send(ctx, msg) }

// Open lets peers in.
func (ms *membership) Open(size int64, have []fetch.Have, content func() (fetch.PartialReader, error)) (fetch.Wire, error) {
	pieces := make([]peer.Have, len(have))
	for i, h := range have {
		pieces[i] = peer.Have(h)
	}
	swarm, err := ms.c.endpoint.Open(peer.Blob{Digest: ms.digest, Size: size, Pieces: pieces, Content: growing(content), Handler: ms})
	if err != nil {
		return nil, err
	}
	ms.swarm = swarm
	return wireSwarm{swarm}, nil
}

// end takes the membership off the books and returns when the member hears of
// nothing any more but what is under way.
func (ms *membership) end() {
	ms.c.mu.Lock()
	if ms.c.members[ms.digest] == ms {
		delete(ms.c.members, ms.digest)
	}
	ms.c.mu.Unlock()
	ms.member.Store(nil)
}

// Seed goes on serving the blob, which is complete.
func (ms *membership) Seed(size int64) {
	ms.end()
	if ms.swarm != nil {
		for _, conn := range ms.swarm.Conns() {
			if conn.Complete() {
				conn.Close(errComplete)
			}
		}
		ms.swarm.Release()
	}
	ms.c.Complete(ms.digest, size, true) // what is in a swarm came without a credential, or is public
}

// Leave leaves scheduler and peers.
func (ms *membership) Leave() {
	ms.end()
	if ms.swarm != nil {
		ms.swarm.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	ms.c.send(ctx, scheduler.Leave{Blob: scheduler.Digest(ms.digest)})
}

// Opened is told of a new connection.
func (ms *membership) Opened(c *peer.Conn) {
	if m := ms.member.Load(); m != nil {
		m.Opened(wirePeer{c, ms.c})
	}
}

// Have is told what a peer has.
func (ms *membership) Have(c *peer.Conn, pieces []peer.Have) {
	m := ms.member.Load()
	if m == nil {
		seeding{}.Have(c, pieces)
		return
	}
	claims := make([]fetch.Have, len(pieces))
	for i, h := range pieces {
		claims[i] = fetch.Have(h)
	}
	m.Claimed(wirePeer{c, ms.c}, claims)
}

// Changed is told that a peer serves this node or does not.
func (ms *membership) Changed(c *peer.Conn) {
	if m := ms.member.Load(); m != nil {
		m.Changed(wirePeer{c, ms.c})
	}
}

// Closed is told that a connection is gone.
func (ms *membership) Closed(c *peer.Conn, reason error) {
	if m := ms.member.Load(); m != nil {
		m.Closed(wirePeer{c, ms.c}, reason)
	}
}

// growing is a blob for upload that is still coming.
type growing func() (fetch.PartialReader, error)

func (g growing) Reader() (peer.Reader, error) { return g() }

// wireSwarm is a swarm of the peer wire as package fetch wants it.
type wireSwarm struct{ *peer.Swarm }

func (s wireSwarm) Dial(ctx context.Context, n scheduler.Neighbour) error {
	_, err := s.Swarm.Dial(ctx, n.Addr, string(n.Peer))
	return err
}

func (s wireSwarm) Have(h fetch.Have) {
	// It fails when the swarm is closed, which the flight finds out anyway.
	_ = s.Swarm.Have(peer.Have(h))
}

func (s wireSwarm) Publish(name string, tell bool) { s.Swarm.Publish(name, tell) }

// wirePeer is a connection as package fetch wants it.
type wirePeer struct {
	*peer.Conn
	c *cluster
}

// ID returns the name of the node: with TLS the one that its certificate
// proves, which the wire holds its ID to; else the one that a scheduler gave for
// the ID that the peer claims.
func (p wirePeer) ID() scheduler.PeerID {
	if name := p.Name(); name != "" {
		return scheduler.PeerID(name)
	}
	id, _ := p.c.ids.Get(p.Conn.ID())
	return id
}

// Named reports whether a scheduler has told of the node.
func (p wirePeer) Named() bool { return p.c.ids.Contains(p.Conn.ID()) }

func (p wirePeer) Request(i int, w io.Writer) (fetch.Transfer, error) {
	t, err := p.Conn.Request(i, w)
	if err != nil {
		return nil, err
	}
	return t, nil
}
