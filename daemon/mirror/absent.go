package mirror

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoalproject/shoal/registry"
)

const (
	// absentFor is how long the origin's word that something does not exist
	// answers further requests. Something pushed meanwhile is seen that much
	// later.
	absentFor = 3 * time.Second
	// maxAbsent bounds what is remembered, at about 200 bytes each.
	maxAbsent = 4096
)

// absent remembers for a moment what does not exist for which caller, so that
// asking again and again does not reach the origin. What one caller is told is
// never told to another: to some, registries say 404 of what they may not see.
type absent struct {
	cache *lru.Cache[absentKey, absence]
}

// absentKey is a hash of caller, repository and what was asked for.
type absentKey [sha256.Size]byte

type absence struct {
	err *registry.Error
	at  time.Time
}

func newAbsent() (*absent, error) {
	cache, err := lru.New[absentKey, absence](maxAbsent)
	if err != nil {
		return nil, err
	}
	return &absent{cache}, nil
}

func (c *call) absentKey() absentKey {
	key := "caller " + c.caller.ID + "\x00" + c.repo.String() + "\x00" + c.path.Tag + "\x00" + c.path.Digest.String()
	switch c.path.Kind {
	case registry.Manifests:
		key += "\x00manifest"
		if c.path.Tag != "" {
			key += "\x00" + acceptKey(c.r.Header["Accept"])
		}
	case registry.Blobs:
		key += "\x00blob"
	default:
		key += "\x00listing\x00" + c.query.Encode()
	}
	return sha256.Sum256([]byte(key))
}

// knownAbsent returns the 404 that the origin gave this caller a moment ago.
func (c *call) knownAbsent() error {
	a, ok := c.absent.cache.Get(c.absentKey())
	if !ok || time.Since(a.at) >= absentFor {
		return nil
	}
	return &again{said: a.err}
}

// noteAbsent remembers err if it is a 404 that is news.
func (c *call) noteAbsent(err error) {
	var e *registry.Error
	var old *again
	if c.repo.Host != "" && errors.As(err, &e) && e.Status == http.StatusNotFound && !errors.As(err, &old) {
		c.absent.cache.Add(c.absentKey(), absence{e, time.Now()})
	}
}

// again is an answer that was given before.
type again struct{ said *registry.Error }

func (a *again) Error() string { return a.said.Error() }

func (a *again) Unwrap() error { return a.said }
