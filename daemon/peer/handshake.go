package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// handshakeLength is that of BEP 3: protocol, reserved bits, infohash, ID.
const handshakeLength = len(pp.Protocol) + 8 + 20 + 20

var reserved = pp.NewPeerExtensionBytes(pp.ExtensionBitFast, pp.ExtensionBitLtep)

// hello is one side's handshake. The library's Handshake answers any infohash
// before its caller can look that up, and starts a goroutine for each read;
// here who asks for an unknown blob gets no answer, and time is bounded by
// the connection's deadline.
type hello struct {
	hash InfoHash
	id   ID
}

// send sends the handshake and, in the same breath, the extension handshake:
// so the side that dialed spares a round trip before it is sent sums.
func (h hello) send(w io.Writer, size int64) error {
	var b bytes.Buffer
	b.WriteString(pp.Protocol)
	b.Write(reserved[:])
	b.Write(h.hash[:])
	b.Write(h.id[:])
	m := extended(pp.HandshakeExtendedID, introductionOf(size))
	_ = m.WriteTo(&b) // cannot fail
	_, err := w.Write(b.Bytes())
	return err
}

func readHello(r io.Reader) (h hello, err error) {
	var b [handshakeLength]byte
	// What is not this protocol is closed at its first bytes.
	p := b[:len(pp.Protocol)]
	if _, err := io.ReadFull(r, p); err != nil {
		return h, fmt.Errorf("reading handshake: %w", err)
	}
	if string(p) != pp.Protocol {
		return h, violation("not a BitTorrent handshake: %.20q", p)
	}
	rest := b[len(p):]
	if _, err := io.ReadFull(r, rest); err != nil {
		return h, fmt.Errorf("reading handshake: %w", err)
	}
	if bits := pp.PeerExtensionBits(rest[:8]); !bits.SupportsFast() || !bits.SupportsExtended() {
		return h, violation("peer offers no fast extension or no extension protocol: %s", bits)
	}
	copy(h.hash[:], rest[8:28])
	copy(h.id[:], rest[28:])
	return h, nil
}

// receive answers the handshake of a peer that dialed, and lets it into the
// swarm it asks for. t is its place among the strangers, place the one that it
// gets for t.
func (e *Endpoint) receive(nc net.Conn, t *ticket) (c *Conn, place *ticket, err error) {
	stop := context.AfterFunc(e.ctx, func() { nc.Close() })
	defer stop()
	nc.SetDeadline(time.Now().Add(min(e.cfg.StrangerTimeout, e.cfg.HandshakeTimeout)))
	defer func() { e.blame(err) }()
	raw, name := nc, ""
	tune(nc)
	var proof *tls.Conn
	if e.cfg.TLS != nil {
		proof = tls.Server(nc, e.cfg.TLS)
		if err := proof.Handshake(); err != nil {
			return nil, nil, &ViolationError{Reason: "TLS: " + err.Error()}
		}
		nc = proof
	}
	h, err := readHello(nc)
	if err != nil {
		return nil, nil, err
	}
	if h.id == e.cfg.ID {
		return nil, nil, errSelf
	}
	if proof != nil {
		if name, err = provenName(proof, h.id); err != nil {
			return nil, nil, err
		}
	}
	if c, err = e.seat(h, raw, nc, name); err != nil {
		return nil, nil, err
	}
	// Only now: without TLS nothing but the name of a blob that is here tells a
	// peer from a stranger.
	place = &ticket{party: c.party.name, accepted: true, evict: c.Close}
	e.promote(t)
	if err := e.enter(place); err != nil {
		c.drop()
		return nil, nil, err
	}
	if err := (hello{h.hash, e.cfg.ID}).send(nc, c.s.layout.Size()); err != nil {
		c.drop()
		e.exit(place)
		return nil, nil, fmt.Errorf("sending handshake: %w", err)
	}
	return c, place, nil
}

// seat lets a peer that dialed into the swarm that it asks for.
func (e *Endpoint) seat(h hello, raw, nc net.Conn, name string) (*Conn, error) {
	var last error
	// What is in the way may be on its way out: the swarm that was found,
	// with its last connection; the peer's own last connection, if it dials
	// again at once. Hardly so twice.
	for attempt := range 3 {
		s, err := e.lookup(h.hash)
		if err != nil {
			return nil, err
		}
		c := newConn(s, raw, nc, h.id, name, true)
		if err = s.admit(c); err == nil {
			return c, nil
		}
		c.cancel()
		s.leave(c)
		last = err
		var dup *duplicateError
		switch {
		case errors.As(err, &dup) && attempt == 0:
			select {
			case <-dup.old.gone:
			case <-time.After(e.cfg.HandshakeTimeout / 10):
			case <-e.ctx.Done():
				return nil, ErrClosed
			}
		case !s.found.Load() || !errors.Is(err, ErrClosed):
			return nil, err
		}
	}
	return nil, last
}

// duplicateError says that there is a connection to the peer, which stays.
type duplicateError struct{ old *Conn }

func (e *duplicateError) Error() string { return "peer: there is a connection to " + e.old.String() }

// drop undoes newConn and admit for a connection that does not get to run.
func (c *Conn) drop() {
	c.Close(ErrClosed)
	c.mu.Lock()
	c.dequeue()
	c.mu.Unlock()
	c.s.leave(c)
	close(c.gone)
}

// introduce is receive for the side that dials.
func (s *Swarm) introduce(ctx context.Context, nc net.Conn, name string) (c *Conn, err error) {
	e := s.e
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		e.blame(err)
	}()
	nc.SetDeadline(time.Now().Add(e.cfg.HandshakeTimeout))
	raw, proven := nc, ""
	tune(nc)
	var proof *tls.Conn
	if e.cfg.TLS != nil {
		cfg := e.cfg.TLS.Clone()
		cfg.ServerName = name
		proof = tls.Client(nc, cfg)
		if err := proof.Handshake(); err != nil {
			return nil, &ViolationError{Reason: "TLS: " + err.Error()}
		}
		nc = proof
	}
	if err := (hello{s.hash, e.cfg.ID}).send(nc, s.layout.Size()); err != nil {
		return nil, fmt.Errorf("sending handshake: %w", err)
	}
	h, err := readHello(nc)
	if err != nil {
		return nil, err
	}
	switch {
	case h.hash != s.hash:
		return nil, violation("peer answers for infohash %s instead of %s", h.hash, s.hash)
	case h.id == e.cfg.ID:
		return nil, errSelf
	}
	if proof != nil {
		if proven, err = provenName(proof, h.id); err != nil {
			return nil, err
		}
	}
	c = newConn(s, raw, nc, h.id, proven, false)
	if err := s.admit(c); err != nil {
		c.drop()
		return nil, err
	}
	return c, nil
}

var errSelf = errors.New("peer: connected to itself")

// provenName returns the name in the peer's certificate that its ID on the wire
// stands for. A peer whose ID stands for another name is refused: it would be
// taken for another node, or for nobody, and blamed as such.
func provenName(t *tls.Conn, id ID) (string, error) {
	certs := t.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return "", violation("peer has no certificate")
	}
	names := certNames(certs[0])
	for _, name := range names {
		if IDOf(name) == id {
			return name, nil
		}
	}
	return "", violation("peer's ID %q stands for none of the names of its certificate: %q", id[:], names)
}

// certNames returns the names that a certificate proves; a scheduler goes by
// the same ones.
func certNames(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 && c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	return names
}

// ViolationError says that a peer broke the protocol, or a bound on it.
type ViolationError struct{ Reason string }

func (e *ViolationError) Error() string { return "peer: " + e.Reason }

func violation(format string, args ...any) error {
	return &ViolationError{Reason: fmt.Sprintf(format, args...)}
}

// blame counts a violation.
func (e *Endpoint) blame(err error) {
	var v *ViolationError
	if errors.As(err, &v) {
		e.stats.kicks.Add(1)
	}
}
