package peer

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"
)

// script is a peer that does what a test says, over a bare socket and with
// the library's own encoder and decoder: what it understands is on the wire.
type script struct {
	t   testing.TB
	nc  net.Conn
	dec pp.Decoder
}

func newScript(t testing.TB, nc net.Conn) *script {
	t.Cleanup(func() { nc.Close() })
	return &script{t: t, nc: nc, dec: pp.Decoder{R: bufio.NewReader(nc), MaxLength: 64 << 20}}
}

// call dials an endpoint.
func call(t testing.TB, addr string) *script {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newScript(t, nc)
}

// shake does the handshake by means of the library.
func (s *script) shake(hash InfoHash, id ID) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	res, err := pp.Handshake(ctx, s.nc, &hash, id, reserved)
	if err != nil {
		s.t.Fatalf("handshake: %v", err)
	}
	if res.Hash != hash || !res.SupportsExtended() || !res.SupportsFast() {
		s.t.Fatalf("endpoint introduces itself as %+v", res)
	}
}

func (s *script) send(ms ...pp.Message) {
	for _, m := range ms {
		s.raw(must(m.MarshalBinary()))
	}
}

// raw sends bytes. An endpoint that has closed is no error of the script's.
func (s *script) raw(b []byte) { s.nc.Write(b) }

// greet does all that comes before a peer is known.
func (s *script) greet(src *content, statement pp.MessageType) {
	s.t.Helper()
	s.shake(InfoHashOf(src.digest), NewID())
	s.send(extended(0, introductionOf(int64(len(src.b)))), pp.Message{Type: statement}, pp.Message{Type: pp.Unchoke})
}

// next receives a message.
func (s *script) next() (m pp.Message, err error) {
	s.nc.SetReadDeadline(time.Now().Add(patience))
	err = s.dec.Decode(&m)
	return m, err
}

// await receives messages until one of this type.
func (s *script) await(kind pp.MessageType) pp.Message {
	s.t.Helper()
	for {
		m, err := s.next()
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", kind, err)
		}
		if m.Type == kind && !m.Keepalive {
			return m
		}
	}
}

// closed waits until the endpoint has closed the connection.
func (s *script) closed() {
	s.t.Helper()
	for {
		_, err := s.next()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			s.t.Fatal("endpoint has not closed the connection")
		}
		if err != nil {
			return
		}
	}
}

func request(i, begin, n int) pp.Message {
	return pp.Message{Type: pp.Request, Index: pp.Integer(i), Begin: pp.Integer(begin), Length: pp.Integer(n)}
}

// A peer made of nothing but the library's protocol package understands the
// endpoint, and is understood.
func TestInterop(t *testing.T) {
	src := newContent(2*256<<10 + 100)
	ev := newEvents()
	e := newEndpoint(t, Config{})
	addr := serve(t, e, "127.0.0.1")
	open(t, e, src.blob(ev, src.have(0), src.have(2)))
	s := call(t, addr)
	s.shake(InfoHashOf(src.digest), NewID())

	m := must(s.next())
	var in pp.ExtendedHandshakeMessage
	if err := bencode.Unmarshal(m.ExtendedPayload, &in); m.Type != pp.Extended || err != nil || in.M["shoal_have"] == 0 || in.Reqq == 0 {
		t.Fatalf("first comes %v %+v, %v", m.Type, in, err)
	}
	if m = must(s.next()); m.Type != pp.Bitfield || !m.Bitfield[0] || m.Bitfield[1] || !m.Bitfield[2] {
		t.Errorf("then %+v", m)
	}
	if m = must(s.next()); m.Type != pp.Unchoke {
		t.Errorf("then %v", m.Type)
	}

	s.send(extended(0, introductionOf(int64(len(src.b)))), pp.Message{Type: pp.HaveAll}, pp.Message{Type: pp.Unchoke})
	if got, err := decodeSums(s.await(pp.Extended).ExtendedPayload, 3); err != nil || len(got) != 2 || got[1] != src.have(2) {
		t.Errorf("sums are %v, %v", got, err)
	}
	s.send(pp.Message{Type: pp.Interested}, request(2, 0, 100))
	if m := s.await(pp.Piece); m.Index != 2 || m.Begin != 0 || string(m.Piece) != string(src.piece(2)) {
		t.Errorf("wrong block %d+%d", m.Index, m.Begin)
	}
	s.send(request(1, 0, 100))
	if m := s.await(pp.Reject); m.RequestSpec() != (pp.RequestSpec{Index: 1, Length: 100}) {
		t.Errorf("what is not held is answered by %v", m.RequestSpec())
	}

	c := ev.await(t, "opened").conn
	var sink collector
	tr := must(c.Request(1, &sink))
	m = s.await(pp.Request)
	s.send(pp.Message{Type: pp.Piece, Index: m.Index, Begin: m.Begin, Piece: src.piece(1)[m.Begin:][:m.Length]})
	await(t, "the piece", tr.Done())
	if tr.Err() != nil || string(sink.bytes()) != string(src.piece(1)) {
		t.Errorf("piece from the library: %v", tr.Err())
	}
}

// An endpoint that is dialed by the library gets on as well as one that dials
// it: here the endpoint dials.
func TestInteropDialed(t *testing.T) {
	src := newContent(1000)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		if _, err := pp.Handshake(context.Background(), nc, nil, NewID(), reserved); err != nil {
			t.Errorf("library: %v", err)
			return
		}
		s := newScript(t, nc)
		s.send(extended(0, introductionOf(1000)), pp.Message{Type: pp.HaveAll}, pp.Message{Type: pp.Unchoke})
		for {
			m, err := s.next()
			if err != nil {
				return
			}
			if m.Type == pp.Request {
				s.send(pp.Message{Type: pp.Piece, Piece: src.b})
			}
		}
	}()
	e := newEndpoint(t, Config{})
	c := dial(t, open(t, e, src.blob(nil)), l.Addr().String(), "")
	mustGet(t, c, src, 0)
	c.Close(nil)
	await(t, "the library to end", done)
}

// Who asks for a blob that is not here gets no answer at all.
func TestUnknownBlob(t *testing.T) {
	addr := serve(t, newEndpoint(t, Config{}), "127.0.0.1")
	s := call(t, addr)
	if err := (hello{InfoHash{1}, NewID()}).send(s.nc, 1); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s.nc); len(b) > 0 || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("answered with %d bytes, %v", len(b), err)
	}
}
