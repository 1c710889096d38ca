package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoalproject/shoal/piece"
)

func intro(change func(in map[string]any), size int) []byte {
	in := map[string]any{"m": map[string]int{"shoal_have": 1, "lt_donthave": 2}, "shoal": 1, "shoal_size": size}
	change(in)
	return bencode.MustMarshal(in)
}

func frame(kind pp.MessageType, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+1))
	return append(append(b, byte(kind)), body...)
}

// claimed is the beginning of a message that says it is long.
func claimed(length uint32, kind pp.MessageType) []byte {
	return append(binary.BigEndian.AppendUint32(nil, length), byte(kind))
}

// Whatever breaks a rule closes the connection, before and after the peer is
// known; an honest peer on the same endpoint is served all the while.
func TestHostile(t *testing.T) {
	src := newContent(9*piece.MinLength + 10) // spare bits in its bitfield
	size := len(src.b)
	seed := newEndpoint(t, Config{})
	addr := serve(t, seed, "127.0.0.1")
	open(t, seed, src.blob(nil, src.all()...))
	honest := dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")

	ours := introductionOf(int64(size))
	before := map[string][]byte{
		"request first":         must(request(0, 0, 10).MarshalBinary()),
		"block first":           frame(pp.Piece, make([]byte, 100)...),
		"have first":            frame(pp.Have, 0, 0, 0, 0),
		"bitfield short":        frame(pp.Bitfield, 0xff),
		"bitfield long":         frame(pp.Bitfield, 0xff, 0xff, 0),
		"bitfield spare bit":    frame(pp.Bitfield, 0xff, 0xe0),
		"bitfield huge":         claimed(1<<31, pp.Bitfield),
		"bitfield twice":        bytes.Repeat(frame(pp.Bitfield, 0xff, 0xc0), 2),
		"have all twice":        bytes.Repeat(frame(pp.HaveAll), 2),
		"introduction twice":    bytes.Repeat(must(extended(0, ours).MarshalBinary()), 2),
		"introduction empty":    must(extended(0, nil).MarshalBinary()),
		"introduction no dict":  must(extended(0, []byte("i1e")).MarshalBinary()),
		"introduction huge":     must(extended(0, []byte("d1:v100000000:")).MarshalBinary()),
		"introduction deep":     must(extended(0, bytes.Repeat([]byte("l"), maxIntroduction)).MarshalBinary()),
		"introduction long":     must(extended(0, make([]byte, maxIntroduction+1)).MarshalBinary()),
		"introduction trailing": must(extended(0, append(bytes.Clone(ours), 'x')).MarshalBinary()),
		"extension huge":        claimed(1<<32-1, pp.Extended),
		"version too old":       must(extended(0, intro(func(in map[string]any) { in["shoal"] = 0 }, size)).MarshalBinary()),
		"no version":            must(extended(0, intro(func(in map[string]any) { delete(in, "shoal") }, size)).MarshalBinary()),
		"other size":            must(extended(0, intro(func(map[string]any) {}, size+1)).MarshalBinary()),
		"negative size":         must(extended(0, intro(func(map[string]any) {}, -1)).MarshalBinary()),
		"message number":        must(extended(0, intro(func(in map[string]any) { in["m"] = map[string]int{"shoal_have": 256} }, size)).MarshalBinary()),
		"choke with a body":     frame(pp.Choke, 1),
		"unknown type":          frame(99),
		"longest length":        claimed(1<<32-1, pp.Piece),
	}
	after := map[string][]byte{
		"request of piece out of range": must(request(10, 0, 1).MarshalBinary()),
		"request of index 2^32-1":       must(request(1<<32-1, 0, 1).MarshalBinary()),
		"request beyond the piece":      must(request(9, 1, 10).MarshalBinary()),
		"request from beyond the piece": must(request(9, 11, 1).MarshalBinary()),
		"request that overflows":        must(request(0, 1<<32-1, 1<<32-1).MarshalBinary()),
		"request of nothing":            must(request(0, 0, 0).MarshalBinary()),
		"request of too much":           must(request(0, 0, piece.MinLength+1).MarshalBinary()),
		"request short":                 frame(pp.Request, 0, 0, 0, 0),
		"cancel out of range":           frame(pp.Cancel, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1),
		"block unasked":                 frame(pp.Piece, make([]byte, 108)...),
		"block empty":                   frame(pp.Piece, make([]byte, 8)...),
		"block without offset":          frame(pp.Piece, 0, 0, 0, 0),
		"block longer than any":         claimed(9+MaxBlock+1, pp.Piece),
		"reject unasked":                frame(pp.Reject, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
		"have out of range":             frame(pp.Have, 0, 0, 0, 10),
		"have of index 2^32-1":          frame(pp.Have, 0xff, 0xff, 0xff, 0xff),
		"suggest out of range":          frame(pp.Suggest, 0, 0, 0, 10),
		"bitfield late":                 frame(pp.Bitfield, 0xff, 0xc0),
		"have none late":                frame(pp.HaveNone),
		"introduction late":             must(extended(0, ours).MarshalBinary()),
		"extension unasked":             must(extended(7, []byte("x")).MarshalBinary()),
		"sums empty":                    must(extended(numberHave, nil).MarshalBinary()),
		"sums without sums":             must(extended(numberHave, []byte{0}).MarshalBinary()),
		"sums cut publisher":            must(extended(numberHave, []byte{200, 'a'}).MarshalBinary()),
		"sums cut":                      must(extended(numberHave, make([]byte, 36)).MarshalBinary()),
		"sums out of range":             must(extended(numberHave, appendSums(nil, "p", Have{Index: 10})).MarshalBinary()),
		"lost short":                    must(extended(numberLost, []byte{0}).MarshalBinary()),
		"done short":                    must(extended(numberDone, nil).MarshalBinary()),
		"lost out of range":             must(extended(numberLost, appendIndex(nil, 10)).MarshalBinary()),
		"hashes":                        frame(pp.Hashes, make([]byte, 48)...),
		"port":                          frame(pp.Port, 1, 2),
		"endless keepalives":            make([]byte, 4*20000),
		"endless haves":                 bytes.Repeat(frame(pp.Have, 0, 0, 0, 1), 20000),
		"endless interest":              bytes.Repeat(append(frame(pp.Interested), frame(pp.NotInterested)...), 10000),
		"endless cancels":               bytes.Repeat(must(pp.MakeCancelMessage(0, 0, 1).MarshalBinary()), 20000),
	}
	kicked := seed.Stats().Violations
	try := func(name string, known bool, b []byte) {
		t.Run(name, func(t *testing.T) {
			s := call(t, addr)
			if known {
				s.greet(src, pp.HaveAll)
			} else {
				s.shake(InfoHashOf(src.digest), NewID())
			}
			go s.raw(b)
			s.closed()
			kicked++
			if n := seed.Stats().Violations; n != kicked {
				t.Errorf("%d violations counted, should be %d", n, kicked)
			}
			mustGet(t, honest, src, 9)
		})
	}
	for name, b := range before {
		try(name, false, b)
	}
	for name, b := range after {
		try(name, true, b)
	}
}

// What is no handshake, or a handshake too slow, is closed.
func TestHostileHandshake(t *testing.T) {
	src := newContent(1000)
	e := newEndpoint(t, Config{HandshakeTimeout: 200 * time.Millisecond})
	addr := serve(t, e, "127.0.0.1")
	open(t, e, src.blob(nil, src.all()...))
	var good bytes.Buffer
	if err := (hello{InfoHashOf(src.digest), NewID()}).send(&good, 1000); err != nil {
		t.Fatal(err)
	}
	bare := bytes.Clone(good.Bytes())
	bare[25] = 0 // no extension protocol
	self := bytes.Clone(good.Bytes())
	id := e.ID()
	copy(self[48:], id[:])
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"half":            good.Bytes()[:40],
		"HTTP":            []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"TLS":             {22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"no extensions":   bare,
		"own ID":          self,
		"no introduction": good.Bytes()[:handshakeLength],
		"no statement":    good.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			s := call(t, addr)
			s.raw(b)
			s.closed()
		})
	}
}

// hostileSource is a peer that claims everything and answers a request as the
// test says.
func hostileSource(t *testing.T, cfg Config, size int) (*script, *Conn, *content, events) {
	t.Helper()
	src := newContent(size)
	ev := newEvents()
	e := newEndpoint(t, cfg)
	addr := serve(t, e, "127.0.0.1")
	open(t, e, src.blob(ev))
	s := call(t, addr)
	s.greet(src, pp.HaveAll)
	return s, ev.await(t, "opened").conn, src, ev
}

// Blocks that were not asked for, or not so, close the connection and fail
// the transfer with a reason that names the violation.
func TestHostileBlocks(t *testing.T) {
	const block = 64 << 10
	for name, m := range map[string]pp.Message{
		"other piece": {Index: 1, Piece: make([]byte, block)},
		"out of turn": {Begin: block, Piece: make([]byte, block)},
		"unaligned":   {Begin: 1, Piece: make([]byte, block)},
		"short":       {Piece: make([]byte, block-1)},
		"long":        {Piece: make([]byte, block+1)},
		"beyond":      {Begin: 4 * block, Piece: make([]byte, block)},
	} {
		t.Run(name, func(t *testing.T) {
			s, c, _, ev := hostileSource(t, Config{Block: block}, 2*piece.MinLength)
			tr := must(c.Request(0, &collector{}))
			s.await(pp.Request)
			m.Type = pp.Piece
			s.send(m)
			await(t, "the transfer to fail", tr.Done())
			var lost *LostError
			var v *ViolationError
			if err := tr.Err(); !errors.As(err, &lost) || !errors.As(err, &v) {
				t.Errorf("transfer failed with %v", err)
			}
			if got := ev.await(t, "closed").err; !errors.As(got, &v) {
				t.Errorf("closed with %v", got)
			}
			s.closed()
		})
	}
	t.Run("twice", func(t *testing.T) {
		s, c, src, _ := hostileSource(t, Config{}, 100)
		must(c.Request(0, &collector{}))
		b := pp.Message{Type: pp.Piece, Piece: src.b}
		s.await(pp.Request)
		s.send(b, b)
		s.closed()
	})
}

// Wrong bytes with the right framing are the caller's to find: here the sink
// gets them as they are.
func TestWrongBytesReachTheSink(t *testing.T) {
	s, c, src, _ := hostileSource(t, Config{}, 100)
	var sink collector
	tr := must(c.Request(0, &sink))
	s.await(pp.Request)
	s.send(pp.Message{Type: pp.Piece, Piece: make([]byte, 100)})
	await(t, "the transfer", tr.Done())
	if tr.Err() != nil || piece.SumOf(sink.bytes()) == src.have(0).Sum {
		t.Errorf("transfer ended with %v", tr.Err())
	}
}

// A peer that never answers, or a byte at a time, shows as stalled or slow;
// what is asked of it can be cancelled, and is thrown away when it comes.
func TestStalledSource(t *testing.T) {
	s, c, src, _ := hostileSource(t, Config{}, 1000)
	if n, stalled := c.Progress(); n != 0 || stalled != 0 {
		t.Errorf("idle connection: %d bytes, stalled for %v", n, stalled)
	}
	var sink collector
	tr := must(c.Request(0, &sink))
	s.await(pp.Request)
	if _, stalled := c.Progress(); stalled <= 0 {
		t.Error("a peer that owes an answer does not show as stalled")
	}
	b := must(pp.Message{Type: pp.Piece, Piece: src.b}.MarshalBinary())
	s.raw(b[:pieceHeader+1])
	waitFor(t, "a byte", func() bool { n, _ := c.Progress(); return n == 1 })
	tr.Cancel()
	if !errors.Is(tr.Err(), ErrCancelled) {
		t.Errorf("cancelled transfer: %v", tr.Err())
	}
	if _, err := c.Request(0, &collector{}); !errors.Is(err, ErrFull) {
		t.Errorf("asking again before the end is certain: %v", err)
	}
	s.await(pp.Cancel)
	s.raw(b[pieceHeader+1:])
	waitFor(t, "the rest", func() bool { n, _ := c.Progress(); return n == 1000 })
	if len(sink.bytes()) != 0 || c.e.Stats().Wasted != 1000 {
		t.Errorf("sink got %d bytes after Cancel, %d wasted", len(sink.bytes()), c.e.Stats().Wasted)
	}
	waitFor(t, "the piece to be free", func() bool { tr, err := c.Request(0, &sink); return err == nil && tr != nil })
}

// waitFor polls for what a socket brings.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A sink that fails ends its transfer and nothing else.
func TestSinkFails(t *testing.T) {
	s, c, src, _ := hostileSource(t, Config{}, 2*piece.MinLength)
	full := errors.New("disk full")
	tr := must(c.Request(0, writerFunc(func([]byte) (int, error) { return 0, full })))
	m := s.await(pp.Request)
	s.send(pp.Message{Type: pp.Piece, Piece: src.piece(0)[:m.Length]})
	await(t, "the transfer to fail", tr.Done())
	if !errors.Is(tr.Err(), full) {
		t.Errorf("transfer failed with %v", tr.Err())
	}
	tr = must(c.Request(1, &collector{}))
	s.send(pp.Message{Type: pp.Piece, Index: 1, Piece: src.piece(1)})
	await(t, "the next", tr.Done())
	if tr.Err() != nil {
		t.Error(tr.Err())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// There are no more connections than allowed, from one party and altogether,
// and room again when one ends. Floods leave an honest peer alone.
func TestLimits(t *testing.T) {
	for _, cfg := range []Config{{Conns: 3}, {PerParty: 3}} {
		t.Run(fmt.Sprintf("%d of %d", cfg.PerParty, cfg.Conns), func(t *testing.T) {
			src := newContent(1000)
			e := newEndpoint(t, cfg)
			addr := serve(t, e, "127.0.0.1")
			open(t, e, src.blob(nil, src.all()...))
			honest := dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")
			idle := []*script{call(t, addr), call(t, addr)}
			for _, s := range idle {
				s.greet(src, pp.HaveNone)
			}
			waitFor(t, "the connections", func() bool { return e.Stats().Conns == 3 })
			for range 100 {
				s := call(t, addr)
				s.raw(handshakeOf(InfoHashOf(src.digest), NewID()))
				s.closed()
			}
			if n := e.Stats().TurnedAway; n != 100 {
				t.Errorf("%d turned away", n)
			}
			mustGet(t, honest, src, 0)
			idle[0].nc.Close()
			waitFor(t, "room", func() bool { return e.Stats().Conns == 2 })
			dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")
		})
	}
}

// Requests in excess of what was agreed are rejected, and a peer that does
// not read its rejects is closed before they fill the memory.
func TestRequestFlood(t *testing.T) {
	src := newContent(1000)
	e := newEndpoint(t, Config{})
	addr := serve(t, e, "127.0.0.1")
	open(t, e, src.blob(nil)) // holds nothing: rejects all
	s := call(t, addr)
	s.greet(src, pp.HaveAll)
	b := bytes.Repeat(must(request(0, 0, 1000).MarshalBinary()), 30000)
	go s.raw(b)
	s.closed()
	waitFor(t, "the violation", func() bool { return e.Stats().Violations == 1 })
	if n := e.Stats().Rejected; n > 30000 {
		t.Errorf("%d rejected", n)
	}
}

func TestViolationsAreNamed(t *testing.T) {
	_, err := decodeIntroduction([]byte("d5:shoali1e1:vi5ee"))
	if err == nil || !strings.Contains(err.Error(), "extension handshake") {
		t.Errorf("error is %v", err)
	}
}
