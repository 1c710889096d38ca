package registry

import (
	_ "crypto/sha256" // digests of both algorithms can be checked
	_ "crypto/sha512"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// ParseDigest returns s as a digest. Only sha256 and sha512 in lower-case
// hexadecimal of full length are accepted, the algorithms that the OCI
// image specification registers for general use; anything else is an error
// that names s.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.200q: %w", s, err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return "", fmt.Errorf("digest %.200q: algorithm %s is not supported, only sha256 and sha512", s, a)
	}
	return d, nil
}
