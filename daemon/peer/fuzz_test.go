package peer

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoalproject/shoal/piece"
)

// asker asks for whatever is claimed, and cancels every other piece.
type asker struct{ sink io.Writer }

func (asker) Opened(*Conn) {}
func (a asker) Have(c *Conn, pieces []Have) {
	for _, h := range pieces {
		if t, err := c.Request(h.Index, a.sink); err == nil && h.Index%2 == 1 {
			t.Cancel()
		}
	}
}
func (asker) Changed(*Conn)       {}
func (asker) Closed(*Conn, error) {}

// play sends bytes to an endpoint after the first n messages of a proper
// greeting, and checks that nothing is left behind when the socket closes.
func play(t *testing.T, src *content, polite int, b []byte) {
	e, err := New(Config{Slots: 1, Turn: 1, HandshakeTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(src.blob(asker{io.Discard}, src.have(0), src.have(1))); err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	e.accept(near)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, far)
	}()
	greeting := [][]byte{
		handshakeOf(InfoHashOf(src.digest), ID{9}),
		must(extended(0, introductionOf(int64(len(src.b)))).MarshalBinary()),
		frame(pp.HaveAll),
		frame(pp.Unchoke),
	}
	far.SetWriteDeadline(time.Now().Add(patience))
	far.Write(append(bytes.Join(greeting[:polite], nil), b...))
	far.Close()
	<-drained
	e.Close()
	if len(e.slots.owners) != 0 || len(e.slots.line) != 0 {
		t.Errorf("%d slots owned, %d in line", len(e.slots.owners), len(e.slots.line))
	}
	if st := e.Stats(); st.Conns != 0 || st.Strangers != 0 || e.queued.Load() != 0 {
		t.Errorf("left behind: %+v, %d bytes queued", st, e.queued.Load())
	}
}

func handshakeOf(hash InfoHash, id ID) []byte {
	var b bytes.Buffer
	if err := (hello{hash, id}).send(&b, 0); err != nil {
		panic(err)
	}
	return b.Bytes()[:handshakeLength]
}

// FuzzBytes sends anything at any stage.
func FuzzBytes(f *testing.F) {
	src := newContent(2*piece.MinLength + 9)
	f.Add(uint8(0), []byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(uint8(1), must(extended(0, []byte("d1:md10:shoal_havei300eee")).MarshalBinary()))
	f.Add(uint8(2), frame(pp.Bitfield, 0xe0))
	f.Add(uint8(4), must(request(0, 0, 9).MarshalBinary()))
	f.Add(uint8(4), frame(pp.Piece, make([]byte, 17)...))
	f.Add(uint8(4), must(extended(numberHave, appendSums(nil, "x", src.have(2))).MarshalBinary()))
	f.Fuzz(func(t *testing.T, polite uint8, b []byte) {
		play(t, src, int(polite)%5, b)
	})
}

// FuzzSequence sends well-formed messages in any order, with fields in range
// and out of it.
func FuzzSequence(f *testing.F) {
	src := newContent(2*piece.MinLength + 9)
	f.Add([]byte{6, 0, 6, 1, 8, 0, 2, 0, 3, 0, 6, 0, 7, 0, 16, 0})
	f.Add([]byte{0, 0, 1, 0, 20, 1, 20, 2, 6, 2, 6, 2, 8, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var b bytes.Buffer
		for ; len(ops) >= 2 && b.Len() < 1<<20; ops = ops[2:] {
			b.Write(message(ops[0], ops[1], src))
		}
		play(t, src, 4, b.Bytes())
	})
}

// message makes a message of a type and a selector of its fields.
func message(kind, arg byte, src *content) []byte {
	index, quarter := int(arg&3), int(arg>>2&3)
	n := 9
	if index < 2 {
		n = piece.MinLength
	}
	m := pp.Message{Type: pp.MessageType(kind % 24), Index: pp.Integer(index)}
	switch m.Type {
	case pp.Request, pp.Cancel, pp.Reject:
		m.Begin, m.Length = pp.Integer(quarter*n/4), pp.Integer(n/(1+quarter))
	case pp.Piece:
		m.Begin, m.Piece = pp.Integer(quarter*n), make([]byte, n)
	case pp.Bitfield:
		m.Bitfield = make([]bool, 3)
	case pp.Extended:
		m.ExtendedID = pp.ExtensionNumber(index)
		switch index {
		case 0:
			m.ExtendedPayload = introductionOf(int64(len(src.b)))
		case 1:
			m.ExtendedPayload = appendSums(nil, "liar", Have{Index: quarter})
		default:
			m.ExtendedPayload = binary.BigEndian.AppendUint32(nil, uint32(quarter))
		}
	}
	b, err := m.MarshalBinary()
	if err != nil {
		return frame(m.Type)
	}
	return b
}

// FuzzHello reads any handshake; what passes is the protocol's, and says the
// same when it is sent again.
func FuzzHello(f *testing.F) {
	src := newContent(9)
	f.Add(handshakeOf(InfoHashOf(src.digest), ID{9}))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n"))
	f.Add([]byte(pp.Protocol))
	f.Add(append([]byte(pp.Protocol), make([]byte, 48)...)) // no extensions
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again := handshakeOf(h.hash, h.id)
		if !bytes.Equal(again[:20], b[:20]) || !bytes.Equal(again[28:], b[28:handshakeLength]) {
			t.Errorf("%x was read as %x", b[:handshakeLength], again)
		}
		if bits := pp.PeerExtensionBits(b[20:28]); !bits.SupportsFast() || !bits.SupportsExtended() {
			t.Errorf("passed without the extensions: %x", b[20:28])
		}
	})
}

// FuzzIntroduction decodes any extension handshake; what passes is within
// bounds.
func FuzzIntroduction(f *testing.F) {
	f.Add(introductionOf(1 << 40))
	f.Add([]byte("d1:md0:i1eee"))
	f.Add([]byte("d5:shoali1e10:shoal_sizei99999999999999999999999ee"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := decodeIntroduction(b)
		if err != nil {
			return
		}
		if in.Version < oldest || in.Messages[nameHave] < 0 || in.Messages[nameHave] > 255 {
			t.Errorf("passed: %+v", in)
		}
		if again, err := decodeIntroduction(bencode.MustMarshal(in)); err != nil || again.Size != in.Size {
			t.Errorf("decoded %+v, which does not encode: %v", in, err)
		}
	})
}

// FuzzSums decodes any shoal_have; what passes encodes to the same.
func FuzzSums(f *testing.F) {
	f.Add(appendSums(nil, "somebody", Have{Index: 1}, Have{Index: 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		pieces, err := decodeSums(b, 3)
		if err != nil {
			return
		}
		for _, h := range pieces {
			if h.Index < 0 || h.Index >= 3 || !h.Known {
				t.Errorf("passed: %v", h)
			}
		}
		if again := appendSums(nil, pieces[0].Publisher, pieces...); !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}
