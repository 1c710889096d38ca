package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// The sidecar of a complete blob, all numbers big-endian:
//
//	 8 bytes  "shoalsp1"
//	 8 bytes  size of the blob
//	 8 bytes  piece length
//	32 bytes  per piece, its BLAKE3 sum
//	32 bytes  BLAKE3 of all the above and the digest's text
//
// The last field finds rot in the sidecar itself, and a sidecar that stands
// beside another blob.
const (
	sidecarMagic  = "shoalsp1"
	sidecarHeader = 24
)

var errSidecar = errors.New("piece sums are damaged")

func sidecarSize(l piece.Layout) int64 {
	return sidecarHeader + piece.SumSize*int64(l.Count()+1)
}

func encodeSidecar(d digest.Digest, l piece.Layout, sums []piece.Sum) []byte {
	b := make([]byte, 0, int(sidecarSize(l))+len(d))
	b = append(b, sidecarMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Size()))
	b = binary.BigEndian.AppendUint64(b, uint64(l.Length()))
	for _, sum := range sums {
		b = append(b, sum[:]...)
	}
	check := piece.SumOf(append(b, d...))
	return append(b, check[:]...)
}

// decodeSidecar returns the sums of a blob of layout l. A piece length other
// than today's (left by another release) is an error like any other: the blob
// is fetched again.
func decodeSidecar(d digest.Digest, l piece.Layout, b []byte) ([]piece.Sum, error) {
	if int64(len(b)) != sidecarSize(l) {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", errSidecar, len(b), sidecarSize(l))
	}
	body, check := b[:len(b)-piece.SumSize], piece.Sum(b[len(b)-piece.SumSize:])
	h := piece.NewHash()
	h.Write(body)
	h.Write([]byte(d))
	if piece.Sum(h.Sum(nil)) != check {
		return nil, fmt.Errorf("%w: checksum", errSidecar)
	}
	if string(body[:8]) != sidecarMagic ||
		binary.BigEndian.Uint64(body[8:]) != uint64(l.Size()) ||
		binary.BigEndian.Uint64(body[16:]) != uint64(l.Length()) {
		return nil, fmt.Errorf("%w: header", errSidecar)
	}
	sums := make([]piece.Sum, l.Count())
	for i := range sums {
		sums[i] = piece.Sum(body[sidecarHeader+i*piece.SumSize:])
	}
	return sums, nil
}
