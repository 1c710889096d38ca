package peer

import (
	"crypto/rand"
	"crypto/sha256"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/opencontainers/go-digest"
)

// InfoHash names a blob on the wire.
type InfoHash = metainfo.Hash

// InfoHashOf returns the infohash of the blob with digest d: the first 20
// bytes of the SHA-256 of "shoal:" and the digest as text.
func InfoHashOf(d digest.Digest) InfoHash {
	sum := sha256.Sum256([]byte("shoal:" + d.String()))
	return InfoHash(sum[:len(InfoHash{})])
}

// ID is the name that a peer gives itself in the handshake. It proves nothing:
// it tells peers apart and finds duplicate connections.
type ID [20]byte

// IDOf returns the ID of the node that schedulers know by name, so that who
// is told of the node recognizes it on the wire.
func IDOf(name string) ID {
	id := ID([]byte(idPrefix))
	sum := sha256.Sum256([]byte(name))
	copy(id[8:], sum[:])
	return id
}

// idPrefix is in the style of BEP 20. The rest of an ID replaces the blanks.
const idPrefix = "-SH0100-            "

// NewID returns a random ID in the style of BEP 20.
func NewID() ID {
	id := ID([]byte(idPrefix))
	rand.Read(id[8:]) // never fails
	return id
}
