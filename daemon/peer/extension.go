package peer

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/anacrolix/torrent/bencode"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoalproject/shoal/piece"
)

const (
	// version is that of the messages here, oldest the first that is still
	// understood. A peer of a later one is taken: new messages have names of
	// their own, which who does not know them does not ask for.
	version = 1
	oldest  = 1

	nameHave pp.ExtensionName = "shoal_have"
	nameLost pp.ExtensionName = "lt_donthave" // BEP 54
	nameDone pp.ExtensionName = "upload_only" // BEP 21

	// The numbers under which this node wants them.
	numberHave pp.ExtensionNumber = 1
	numberLost pp.ExtensionNumber = 2
	numberDone pp.ExtensionNumber = 3

	// maxIntroduction is the longest extension handshake, in bytes; that of
	// this package has about 100.
	maxIntroduction = 4 << 10
	// maxExtended is the longest extension message, in bytes.
	maxExtended = 16 << 10

	sumEntry = 4 + piece.SumSize
	// sumsPerMessage fill one shoal_have with the longest publisher.
	sumsPerMessage = (maxExtended - 2 - 1 - MaxPublisher) / sumEntry
)

// introduction is the extension handshake of BEP 10.
type introduction struct {
	Messages map[pp.ExtensionName]int64 `bencode:"m"`
	Client   string                     `bencode:"v,omitempty"`
	Requests int64                      `bencode:"reqq,omitempty"`
	Version  int64                      `bencode:"shoal"`
	Size     int64                      `bencode:"shoal_size"`
}

func introductionOf(size int64) []byte {
	return bencode.MustMarshal(introduction{
		Messages: map[pp.ExtensionName]int64{nameHave: int64(numberHave), nameLost: int64(numberLost), nameDone: int64(numberDone)},
		Client:   "shoal", Requests: maxRequests, Version: version, Size: size,
	})
}

// decodeIntroduction decodes an extension handshake. The library would
// allocate for a string of 128 MiB as soon as that length is claimed, unless
// told otherwise, and passes its own runtime errors on as panics.
func decodeIntroduction(b []byte) (in introduction, err error) {
	if len(b) > maxIntroduction {
		return in, violation("extension handshake of %d bytes", len(b))
	}
	defer func() {
		if r := recover(); r != nil {
			err = violation("extension handshake: %v", r)
		}
	}()
	d := bencode.NewDecoder(bytes.NewReader(b))
	d.MaxStrLen = maxIntroduction
	if err := d.Decode(&in); err != nil {
		return in, violation("extension handshake: %v", err)
	}
	if d.Offset != int64(len(b)) {
		return in, violation("%d bytes after the extension handshake", int64(len(b))-d.Offset)
	}
	if in.Version < oldest {
		return in, violation("peer speaks version %d, want at least %d", in.Version, oldest)
	}
	for _, name := range []pp.ExtensionName{nameHave, nameLost, nameDone} {
		if n := in.Messages[name]; n < 0 || n > 255 {
			return in, violation("%s is to be message %d", name, n)
		}
	}
	return in, nil
}

func extended(id pp.ExtensionNumber, payload []byte) pp.Message {
	return pp.Message{Type: pp.Extended, ExtendedID: id, ExtendedPayload: payload}
}

func appendIndex(b []byte, i int) []byte { return binary.BigEndian.AppendUint32(b, uint32(i)) }

// appendSums appends the payload of a shoal_have.
func appendSums(b []byte, publisher string, pieces ...Have) []byte {
	b = append(b, byte(len(publisher)))
	b = append(b, publisher...)
	for _, h := range pieces {
		b = appendIndex(b, h.Index)
		b = append(b, h.Sum[:]...)
	}
	return b
}

// decodeSums decodes the payload of a shoal_have about a blob of n pieces.
func decodeSums(b []byte, n int) ([]Have, error) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return nil, violation("%s without its publisher", nameHave)
	}
	publisher := string(b[1 : 1+int(b[0])])
	b = b[1+len(publisher):]
	if len(b) == 0 || len(b)%sumEntry != 0 {
		return nil, violation("%s with sums of %d bytes", nameHave, len(b))
	}
	pieces := make([]Have, 0, len(b)/sumEntry)
	for ; len(b) > 0; b = b[sumEntry:] {
		i := binary.BigEndian.Uint32(b)
		if int64(i) >= int64(n) {
			return nil, violation("%s of piece %d of %d", nameHave, i, n)
		}
		pieces = append(pieces, Have{Index: int(i), Sum: piece.Sum(b[4:sumEntry]), Known: true, Publisher: publisher})
	}
	return pieces, nil
}

// pushSums queues the sums of all pieces that this node has, as soon as the peer
// has said how. From then on HAVE carries them.
func (s *Swarm) pushSums(c *Conn, in introduction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.introduced = true
	c.haveID = pp.ExtensionNumber(in.Messages[nameHave])
	c.lostID = pp.ExtensionNumber(in.Messages[nameLost])
	c.doneID = pp.ExtensionNumber(in.Messages[nameDone])
	if s.have.Full() {
		c.sayDone()
	}
	if c.haveID == 0 {
		return
	}
	byPublisher := make(map[string][]Have)
	for i, h := range s.pieces {
		if s.have.Has(i) && h.Known {
			byPublisher[h.Publisher] = append(byPublisher[h.Publisher], h)
		}
	}
	for publisher, pieces := range byPublisher {
		for len(pieces) > 0 {
			n := min(len(pieces), sumsPerMessage)
			c.put(extended(c.haveID, appendSums(nil, publisher, pieces[:n]...)))
			pieces = pieces[n:]
		}
	}
}

// sayDone tells the peer that this node has everything: of pieces that the peer
// has itself it was not told. The caller holds mu.
func (c *Conn) sayDone() {
	if c.doneID != 0 {
		c.put(extended(c.doneID, []byte{1}))
	}
}

func (h Have) String() string {
	return fmt.Sprintf("piece %d, %s, published by %q", h.Index, h.Sum, h.Publisher)
}
