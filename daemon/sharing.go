package daemon

import (
	"slices"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
)

// maxPublic bounds the blobs that are remembered as public while they are not
// in the store, where a mark says it.
const maxPublic = 1 << 14

// sharing decides which blobs other nodes may be told of and given.
//
// Peers know no callers, so without TLS whoever reaches the peer port and knows
// a digest gets the blob. Then only public blobs are shared: those that an origin
// has given to a request without any credential, or that a manifest names which
// it has given so. All else is fetched and served on this node alone.
type sharing struct {
	// all: every blob is shared, be it public or not.
	all   bool
	cfg   *settings
	store *store.Store
	known *lru.Cache[digest.Digest, struct{}]
	// unfinished reports whether an earlier request has left a part of d.
	unfinished func(d digest.Digest) bool
	// published are blobs that turned out to be public after they came.
	published chan digest.Digest
}

func newSharing(s *settings) (*sharing, error) {
	known, err := lru.New[digest.Digest, struct{}](maxPublic)
	if err != nil {
		return nil, err
	}
	return &sharing{all: s.identity != nil || s.PeerPlaintextPrivate, cfg: s, known: known, published: make(chan digest.Digest, maxPublic)}, nil
}

// may reports whether d may be shared.
func (s *sharing) may(d digest.Digest) bool {
	return s.all || s.known.Contains(d) || s.store.Marked(d)
}

// publish notes that everyone may have d.
func (s *sharing) publish(d digest.Digest) {
	if s.all || s.may(d) {
		return
	}
	s.known.Add(d, struct{}{})
	if _, here := s.store.Stat(d); here {
		select {
		case s.published <- d:
		default: // it is announced when somebody pulls it again
		}
	}
}

// complete reports whether d, which has just come, may be shared, and marks it
// if it is public.
func (s *sharing) complete(d digest.Digest, public bool) (share bool, err error) {
	if s.all {
		return true, nil
	}
	if !public && !s.may(d) {
		return false, nil
	}
	return true, s.store.Mark(d)
}

// Local reports that d stays on this node if it is fetched in the name of c. A
// part that is left of it may have come by a credential.
func (s *sharing) Local(c mirror.Caller, repo registry.Repository, d digest.Digest) bool {
	return !s.may(d) && (s.cfg.credentialed(c, repo.Host) || s.unfinished(d))
}

// Given notes that the origin has given d to c.
func (s *sharing) Given(c mirror.Caller, repo registry.Repository, d digest.Digest) {
	if !s.cfg.credentialed(c, repo.Host) {
		s.publish(d)
	}
}

// Names notes that the manifest d names others.
func (s *sharing) Names(d digest.Digest, named []digest.Digest) {
	if s.all || !s.may(d) {
		return
	}
	for _, n := range named {
		s.publish(n)
	}
}

// credentialed reports whether a request in the name of c brings the origin
// anything that not everybody has.
func (s *settings) credentialed(c mirror.Caller, host string) bool {
	switch {
	case c.Public:
		return false
	case c.Authorization != "":
		return true
	}
	for _, e := range s.endpoints {
		if e.Host == host && e.ClientCert != nil {
			return true
		}
	}
	return !c.Anonymous && s.authFor(host) != mirror.Open
}

// bare returns the endpoints without the client certificates that the node has
// for them.
func (s *settings) bare() []origin.Endpoint {
	list := slices.Clone(s.endpoints)
	for i := range list {
		list[i].ClientCert = nil
	}
	return list
}
