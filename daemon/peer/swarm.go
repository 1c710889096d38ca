package peer

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// Blob is what this node says of one blob when its swarm is opened.
type Blob struct {
	Digest digest.Digest
	// Size is in bytes. Piece length and count follow from it.
	Size int64
	// Pieces are those that can be uploaded already.
	Pieces []Have
	// Content is where uploads are read from.
	Content Content
	// Handler is told what peers do. Nil: nobody wants to know, the node
	// only uploads.
	Handler Handler
}

// Have says that somebody holds a piece, and what it must hash to.
type Have struct {
	Index int
	// Sum is valid if Known. A peer may claim to hold a piece before or
	// without saying its sum.
	Sum   piece.Sum
	Known bool
	// Publisher names the peer that brought the piece from its origin and
	// computed the sum. At most MaxPublisher bytes.
	Publisher string
}

// MaxPublisher is the longest name of a publisher, in bytes.
const MaxPublisher = 255

// Content opens a blob for upload.
type Content interface {
	// Reader returns a reader for the use of one connection. It is called
	// from the goroutine of that connection, for each spell of uploads.
	Reader() (Reader, error)
}

// Reader reads the pieces that were announced.
type Reader interface {
	// CopyRange writes n bytes from off to w, with w.ReadFrom where w has
	// that. What it writes must be all or an error.
	CopyRange(w io.Writer, off, n int64) (int64, error)
	Close() error
}

// Handler is told what happens on the connections of one swarm. The calls for
// one connection come one after the other, first Opened, last Closed; those
// for several come at once. A Handler may call any method of Conn, Transfer
// and Swarm but Swarm.Close. Until it returns, nothing is read from that
// peer.
type Handler interface {
	// Opened is called when both sides have introduced themselves. Have
	// follows with what the peer holds, if anything.
	Opened(c *Conn)
	// Have is called when the peer claims pieces, or says their sums. Piece
	// indexes are within range and nothing else is certain. The slice is
	// good until Have returns.
	Have(c *Conn, pieces []Have)
	// Changed is called when the peer choked or unchoked this node, or lost
	// a piece (Conn.Has).
	Changed(c *Conn)
	// Closed is called when the connection is gone, with the reason. Its
	// transfers have failed by then.
	Closed(c *Conn, reason error)
}

// Finder finds complete blobs.
type Finder interface {
	// Find returns the blob with infohash h. It is called when a peer asks
	// for a blob that has no open Swarm. Any error means that there is none.
	Find(h InfoHash) (Blob, error)
}

var (
	// ErrClosed says that an Endpoint or Swarm was closed.
	ErrClosed = errors.New("peer: closed")
	// ErrOpen says that the swarm of a blob is open already.
	ErrOpen = errors.New("peer: swarm is open already")
)

// Swarm is what this node has of one blob, and its connections to others for
// it. It is safe for concurrent use.
type Swarm struct {
	e      *Endpoint
	hash   InfoHash
	digest digest.Digest
	layout piece.Layout
	found  atomic.Bool // by a Finder, or released: ends with its last connection

	mu sync.Mutex
	// Guarded by mu:
	content Content
	handler Handler
	have    *piece.Set
	pieces  []Have // valid where have
	conns   map[*Conn]struct{}
	closed  bool
}

// Open opens the swarm of a blob: peers that dial are let in, and Dial dials.
// Connections for which the blob was found before are closed. The error is
// ErrOpen if the swarm is open, ErrClosed after Endpoint.Close.
func (e *Endpoint) Open(b Blob) (*Swarm, error) {
	s, err := e.newSwarm(b)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch old := e.swarms[s.hash]; {
	case e.closed:
		return nil, ErrClosed
	case old != nil && !old.found.Load():
		return nil, fmt.Errorf("%w: %s", ErrOpen, b.Digest)
	case old != nil:
		// Who opens what it held complete does so because that is no longer
		// so, or is about to talk to these peers anyway.
		delete(e.swarms, s.hash)
		old.shut(fmt.Errorf("%w: blob is opened anew", ErrClosed))
	}
	e.swarms[s.hash] = s
	return s, nil
}

func (e *Endpoint) newSwarm(b Blob) (*Swarm, error) {
	if err := b.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("peer: digest %q: %w", b.Digest, err)
	}
	if b.Size < 0 {
		return nil, fmt.Errorf("peer: %s cannot have %d bytes", b.Digest, b.Size)
	}
	l := piece.NewLayout(b.Size)
	s := &Swarm{
		e: e, hash: InfoHashOf(b.Digest), digest: b.Digest, layout: l,
		content: b.Content, handler: b.Handler,
		have: piece.NewSet(l.Count()), pieces: make([]Have, l.Count()),
		conns: make(map[*Conn]struct{}),
	}
	if s.handler == nil {
		s.handler = nobody{}
	}
	for _, h := range b.Pieces {
		if err := s.check(h); err != nil {
			return nil, err
		}
		s.have.Add(h.Index)
		s.pieces[h.Index] = h
	}
	return s, nil
}

func (s *Swarm) check(h Have) error {
	if h.Index < 0 || h.Index >= s.layout.Count() {
		return fmt.Errorf("peer: %s has no piece %d", s.digest, h.Index)
	}
	if len(h.Publisher) > MaxPublisher {
		return fmt.Errorf("peer: publisher of piece %d of %s has a name of %d bytes", h.Index, s.digest, len(h.Publisher))
	}
	return nil
}

// nobody handles the events of swarms that nobody handles.
type nobody struct{}

func (nobody) Opened(*Conn)        {}
func (nobody) Have(*Conn, []Have)  {}
func (nobody) Changed(*Conn)       {}
func (nobody) Closed(*Conn, error) {}

// Digest returns the blob's digest.
func (s *Swarm) Digest() digest.Digest { return s.digest }

// Layout returns how the blob is cut into pieces.
func (s *Swarm) Layout() piece.Layout { return s.layout }

// Have announces a piece, verified and readable, to every peer that lacks it.
func (s *Swarm) Have(h Have) error {
	if err := s.check(h); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	news := s.have.Add(h.Index)
	if !news && s.pieces[h.Index] == h {
		return nil
	}
	s.pieces[h.Index] = h
	for c := range s.conns {
		c.pushHave(h, news && s.have.Full())
	}
	return nil
}

// Publish names the publisher of all pieces that were announced, for peers that
// connect from now on, and if tell is set for those that are connected and lack
// the piece.
func (s *Swarm) Publish(name string, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.pieces {
		h := &s.pieces[i]
		if !s.have.Has(i) || h.Publisher == name {
			continue
		}
		h.Publisher = name
		for c := range s.conns {
			if tell {
				c.pushHave(*h, false)
			}
		}
	}
}

// Lost takes the announcement of a piece back.
func (s *Swarm) Lost(i int) {
	s.mu.Lock()
	had := s.have.Remove(i)
	if had {
		for c := range s.conns {
			c.pushLost(i)
		}
	}
	s.mu.Unlock()
	if !had {
		return
	}
	for _, c := range s.Conns() {
		c.drained()
	}
}

func (s *Swarm) holds(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.Has(i)
}

// Conns returns the connections of now.
func (s *Swarm) Conns() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Close closes the swarm and its connections, and returns when their
// goroutines have ended. It must not be called by a Handler.
func (s *Swarm) Close() {
	s.e.mu.Lock()
	if s.e.swarms[s.hash] == s {
		delete(s.e.swarms, s.hash)
	}
	s.e.mu.Unlock()
	for _, c := range s.shut(ErrClosed) {
		<-c.gone
	}
}

// Release lets go of a swarm. It goes on as one that a Finder found does:
// peers are let in and served, and it ends with its last connection. The
// Handler is still called. Peers that need nothing any more the caller
// disconnects.
func (s *Swarm) Release() {
	s.found.Store(true)
	s.retire()
}

// shut closes the swarm for newcomers and begins to close its connections.
func (s *Swarm) shut(reason error) []*Conn {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	conns := s.Conns()
	for _, c := range conns {
		c.Close(reason)
	}
	return conns
}

// admit takes a connection in, and queues what it is greeted with: what the
// swarm has at this moment. All that changes later is pushed.
func (s *Swarm) admit(c *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	for old := range s.conns {
		if old.id != c.id {
			continue
		}
		if !c.supersedes(old) {
			return &duplicateError{old}
		}
		old.Close(errors.New("peer: superseded by another connection of the same peer"))
	}
	s.conns[c] = struct{}{}
	c.greet(s.have)
	return nil
}

// leave takes a connection out that has ended.
func (s *Swarm) leave(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	last := len(s.conns) == 0
	s.mu.Unlock()
	if s.found.Load() && last {
		s.retire()
	}
}

// retire closes a swarm that nobody owns once it has no connection.
func (s *Swarm) retire() {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == 0 && !s.closed {
		s.closed = true
		if s.e.swarms[s.hash] == s {
			delete(s.e.swarms, s.hash)
		}
	}
}
