package attack

import (
	"math/rand/v2"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// upstream is the name of the registry under which the daemons know the origin.
const upstream = "r.test"

// at is the --registry value that sends requests for upstream to an origin.
func at(o *registrytest.Origin) string { return upstream + "=" + o.URL() }

// noise returns n bytes that are the same for the same seed.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// copies is the number of copies of a blob of size bytes that the origin sent.
func copies(o *registrytest.Origin, size int) float64 {
	return float64(o.SentTotal()) / float64(size)
}
