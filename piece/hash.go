package piece

import (
	"encoding/hex"
	"hash"

	"github.com/zeebo/blake3"
)

// SumSize is the length of a Sum in bytes.
const SumSize = 32

// Sum is the BLAKE3-256 hash of one piece.
type Sum [SumSize]byte

// String returns the sum in hexadecimal.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// NewHash returns a hash whose Sum is that of a piece. BLAKE3 is two to
// three times as fast as SHA-256, which every byte passes once more for the
// digest of the whole blob.
func NewHash() hash.Hash { return blake3.New() }

// SumOf returns the sum of b.
func SumOf(b []byte) Sum { return Sum(blake3.Sum256(b)) }
