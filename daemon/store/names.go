package store

import (
	"fmt"
	"path/filepath"
	"strings"

	"crypto/sha256"
	"crypto/sha512"
	"hash"

	"github.com/opencontainers/go-digest"
)

const (
	sidecarSuffix = ".pieces"
	journalSuffix = ".journal"
	markSuffix    = ".public"
)

// algorithms are those under which blobs are stored. The hash must be able to
// clone itself, for Partial.HashState.
var algorithms = map[digest.Algorithm]struct {
	hexLen int
	new    func() hash.Hash
}{
	digest.SHA256: {2 * sha256.Size, sha256.New},
	digest.SHA512: {2 * sha512.Size, sha512.New},
}

// split returns the parts of d that make names on disk. Nothing but digits
// and a to f of the right number passes, so no name leaves the directory.
func split(d digest.Digest) (alg digest.Algorithm, hex string, err error) {
	a, hex, found := strings.Cut(string(d), ":")
	alg = digest.Algorithm(a)
	known, ok := algorithms[alg]
	if !found || !ok {
		return "", "", fmt.Errorf("store: digest %.80q is not of sha256 or sha512", string(d))
	}
	if !isHex(hex, known.hexLen) {
		return "", "", fmt.Errorf("store: digest %.140q is not %d lower-case hexadecimal digits", string(d), known.hexLen)
	}
	return alg, hex, nil
}

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

func (s *Store) lockPath() string   { return filepath.Join(s.dir, "lock") }
func (s *Store) blobsDir() string   { return filepath.Join(s.dir, "blobs") }
func (s *Store) partialDir() string { return filepath.Join(s.dir, "partial") }

// fixedDirs are the directories under the data directory that always exist,
// parents first.
func (s *Store) fixedDirs() []string {
	dirs := []string{s.blobsDir(), s.partialDir()}
	for alg := range algorithms {
		dirs = append(dirs, filepath.Join(s.blobsDir(), string(alg)))
	}
	return dirs
}

// blobPath and partialPath take validated digests.
func (s *Store) blobPath(d digest.Digest) string {
	alg, hex, _ := strings.Cut(string(d), ":")
	return filepath.Join(s.blobsDir(), alg, hex[:2], hex)
}

func (s *Store) partialPath(d digest.Digest) string {
	return filepath.Join(s.partialDir(), strings.Replace(string(d), ":", "-", 1))
}
