package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// chunk is how much payload is received before it is handed on, in bytes: it
// is hashed and written while it is in the processor's cache.
const chunk = 128 << 10

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// reader is the state of the goroutine that reads.
type reader struct {
	*Conn
	br     *bufio.Reader
	dec    pp.Decoder
	stated bool      // a bitfield, HAVE ALL or HAVE NONE came
	ruled  bool      // CHOKE or UNCHOKE came
	known  bool      // Opened was called
	until  time.Time // the deadline that is set
	low    int       // how many bytes reads wait for; 0 and 1 are any
	slow   bool      // the last chunk took so long that reads wait for nothing
}

// read receives messages until the connection breaks or the peer breaks a
// rule.
func (c *Conn) read() error {
	// The buffer is for messages; payload goes past it.
	r := &reader{Conn: c, br: bufio.NewReaderSize(c.nc, 4<<10), slow: true}
	r.dec = pp.Decoder{R: r.br, MaxLength: maxExtended + 2}
	r.deadline(time.Now().Add(c.e.cfg.HandshakeTimeout))
	for {
		err := r.message()
		if err == nil {
			continue
		}
		if since := c.overdue(); errors.Is(err, os.ErrDeadlineExceeded) && !since.IsZero() {
			err = fmt.Errorf("%w; it owes the answer to what was cancelled %v ago", err, time.Since(since).Round(time.Second))
		}
		return err
	}
}

// deadline sets by when reads must end, to the second: setting it costs.
func (r *reader) deadline(until time.Time) {
	if diff := until.Sub(r.until); diff > time.Second || diff < -time.Second {
		r.nc.SetReadDeadline(until)
		r.until = until
	}
}

// patience sets the deadline for a peer that may be silent for a while, unless
// it owes what was cancelled.
func (r *reader) patience() {
	until := time.Now().Add(r.e.cfg.KeepAlive * 5 / 2)
	if since := r.overdue(); !since.IsZero() {
		if answer := since.Add(r.e.cfg.CancelTimeout); answer.Before(until) {
			until = answer
		}
	}
	r.deadline(until)
}

// awaitMessage waits for the first byte of a message.
func (r *reader) awaitMessage() error {
	if r.known {
		r.patience()
	}
	if _, err := r.br.Peek(1); err != nil {
		return fmt.Errorf("peer: reading: %w", err)
	}
	r.mark(&r.heard)
	return nil
}

// message receives one message and does what it says.
func (r *reader) message() error {
	if err := r.awaitMessage(); err != nil {
		return err
	}
	complete := time.Now().Add(r.e.cfg.MessageTimeout)
	if r.known && r.br.Buffered() < pieceHeader {
		r.deadline(complete)
	}
	b, err := r.br.Peek(4)
	if err != nil {
		return cut(err)
	}
	length := binary.BigEndian.Uint32(b)
	if length == 0 {
		r.br.Discard(4)
		return r.charge(1)
	}
	if b, err = r.br.Peek(5); err != nil {
		return cut(err)
	}
	kind := pp.MessageType(b[4])
	if err := r.checkLength(kind, length); err != nil {
		return err
	}
	if kind == pp.Piece {
		return r.piece(length)
	}
	if r.known && r.br.Buffered() < 4+int(length) {
		r.deadline(complete)
	}
	var m pp.Message
	if err := r.dec.Decode(&m); err != nil {
		return cut(err)
	}
	if !r.known {
		return r.opening(&m)
	}
	return r.handle(&m)
}

func cut(err error) error { return fmt.Errorf("peer: reading a message: %w", err) }

// checkLength bounds a message before anything is allocated for it.
func (r *reader) checkLength(kind pp.MessageType, length uint32) error {
	body := int64(length) - 1
	var want int64
	switch kind {
	case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested, pp.HaveAll, pp.HaveNone:
	case pp.Have, pp.Suggest, pp.AllowedFast:
		want = 4
	case pp.Request, pp.Cancel, pp.Reject:
		want = 12
	case pp.Bitfield:
		want = int64(r.has.Len()+7) / 8
	case pp.Piece:
		// Of the length that was asked for, which piece checks.
		if body <= 8 || body > 8+MaxBlock {
			return violation("block of %d bytes", body-8)
		}
		return nil
	case pp.Extended:
		if body < 1 || body > 1+maxExtended {
			return violation("extension message of %d bytes", body)
		}
		return nil
	default:
		return violation("message of type %d", kind)
	}
	if body != want {
		return violation("%s of %d bytes, should have %d", kind, body, want)
	}
	return nil
}

// charge accounts for n messages: first to what this peer may have to say of
// the blob, then to what all connections of its party may say beyond.
func (r *reader) charge(n int) error {
	own := min(n, r.left)
	r.left -= own
	if n > own && !r.party.messages.AllowN(time.Now(), n-own) {
		return violation("too many messages")
	}
	return nil
}

// handle does what a message of a known peer says.
func (r *reader) handle(m *pp.Message) error {
	if m.Type != pp.Request {
		if err := r.charge(1); err != nil {
			return err
		}
	}
	switch m.Type {
	case pp.Choke, pp.Unchoke:
		return r.choke(m.Type == pp.Choke)
	case pp.Interested:
	case pp.NotInterested:
		r.uninterested()
	case pp.Have:
		return r.have(int(m.Index))
	case pp.Request:
		return r.request(blockOf(m))
	case pp.Cancel:
		if err := r.s.checkBlock(blockOf(m)); err != nil {
			return err
		}
		r.cancelled(blockOf(m))
	case pp.Reject:
		return r.rejected(blockOf(m))
	case pp.Suggest, pp.AllowedFast: // advice that is not followed
		if int64(m.Index) >= int64(r.has.Len()) {
			return violation("%s of piece %d of %d", m.Type, m.Index, r.has.Len())
		}
	case pp.Extended:
		return r.extension(m.ExtendedID, m.ExtendedPayload)
	default:
		return violation("%s once the peer has introduced itself", m.Type)
	}
	return nil
}

func (r *reader) choke(choked bool) error {
	r.mu.Lock()
	changed := r.choked != choked
	r.choked = choked
	r.mu.Unlock()
	if changed {
		r.s.handler.Changed(r.Conn)
	}
	return nil
}

func (r *reader) have(i int) error {
	if i >= r.has.Len() {
		return violation("HAVE of piece %d of %d", i, r.has.Len())
	}
	r.mu.Lock()
	news := r.gains(i)
	r.mu.Unlock()
	if news {
		r.s.handler.Have(r.Conn, []Have{{Index: i}})
	}
	return nil
}

func (r *reader) request(b block) error {
	if err := r.s.checkBlock(b); err != nil {
		return err
	}
	// What is served is bounded by the socket; what is not, like all else, and
	// so are requests that cost more than they bring.
	if !r.asked(b) || b.length < MinBlock {
		return r.charge(1)
	}
	return nil
}

func (r *reader) extension(id pp.ExtensionNumber, payload []byte) error {
	switch id {
	case numberHave:
		pieces, err := decodeSums(payload, r.has.Len())
		if err != nil {
			return err
		}
		if err := r.charge(len(pieces)); err != nil {
			return err
		}
		r.mu.Lock()
		for _, h := range pieces {
			r.gains(h.Index)
		}
		r.mu.Unlock()
		r.s.handler.Have(r.Conn, pieces)
	case numberLost:
		if len(payload) != 4 {
			return violation("%s of %d bytes", nameLost, len(payload))
		}
		i := binary.BigEndian.Uint32(payload)
		if int64(i) >= int64(r.has.Len()) {
			return violation("%s of piece %d of %d", nameLost, i, r.has.Len())
		}
		r.mu.Lock()
		lost := r.loses(int(i))
		r.mu.Unlock()
		if lost {
			r.s.handler.Changed(r.Conn)
		}
	case numberDone:
		if len(payload) != 1 {
			return violation("%s of %d bytes", nameDone, len(payload))
		}
		if payload[0] != 0 {
			r.done()
		}
	case pp.HandshakeExtendedID:
		return violation("extension handshake again")
	default:
		return violation("extension message %d, which nobody asked for", id)
	}
	return nil
}

// done takes in that the peer has everything.
func (r *reader) done() {
	var news []Have
	r.mu.Lock()
	for i := range r.has.Len() {
		if r.gains(i) {
			news = append(news, Have{Index: i})
		}
	}
	r.mu.Unlock()
	if len(news) > 0 {
		r.s.handler.Have(r.Conn, news)
	}
}

// piece receives a block, handing its bytes on as they come.
func (r *reader) piece(length uint32) error {
	if !r.known {
		return violation("block before the peer has introduced itself")
	}
	h, err := r.br.Peek(pieceHeader)
	if err != nil {
		return cut(err)
	}
	index, begin := binary.BigEndian.Uint32(h[5:]), binary.BigEndian.Uint32(h[9:])
	b := block{int(index), int(begin), int(length) - (pieceHeader - 4)}
	r.br.Discard(pieceHeader)
	t, err := r.expect(b)
	if err != nil {
		return err
	}
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	defer r.gather(1)
	for left := b.length; left > 0; {
		n := min(left, chunk)
		began := time.Now()
		if err := r.payload(buf[:n], left); err != nil {
			return err
		}
		r.slow = time.Since(began) > slowChunk
		t.write(buf[:n])
		left -= n
	}
	r.arrived(b)
	return nil
}

// slowChunk is how long a chunk may take for reads to wait for as much: of a
// peer that is slow, what little it sends is to be seen.
const slowChunk = 100 * time.Millisecond

// gather makes reads wait until n bytes are there, which must come.
func (r *reader) gather(n int) {
	if r.slow {
		n = 1
	}
	if n = min(n, gathered); n != r.low && (n > 1 || r.low > 1) {
		lowWater(r.nc, n)
		r.low = n
	}
}

// payload fills b, of a block of which left bytes are to come.
func (r *reader) payload(b []byte, left int) error {
	for len(b) > 0 {
		r.patience()
		part := b
		if r.br.Buffered() == 0 {
			r.gather(left)
		}
		if limit := r.e.cfg.Download; limit != nil {
			part = b[:min(len(b), limit.Burst())]
		}
		n, err := r.br.Read(part)
		r.received.Add(int64(n))
		r.e.stats.down.Add(int64(n))
		r.mark(&r.paid)
		b = b[n:]
		left -= n
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && len(b) > 0 {
			return fmt.Errorf("peer: reading a block: %w", err)
		}
		if limit := r.e.cfg.Download; limit != nil && n > 0 {
			if err := limit.WaitN(r.ctx, n); err != nil {
				return fmt.Errorf("peer: waiting to download: %w", err)
			}
		}
	}
	return nil
}
