package mirror

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/shoalproject/shoal/registry"
)

// tagKey is a question that an origin may answer differently from another.
type tagKey struct {
	repo   registry.Repository
	tag    string
	caller string // callerKey
	accept string // acceptKey
}

// callerKey tells callers apart without keeping what they sent.
func callerKey(c Caller) string {
	switch {
	case c.Authorization != "":
		sum := sha256.Sum256([]byte(c.Authorization))
		return string(sum[:])
	case c.Anonymous:
		return "anonymous"
	default:
		return ""
	}
}

// acceptKey is one for Accept headers that differ only in order and spacing.
func acceptKey(accept []string) string {
	types := acceptList(accept)
	slices.Sort(types)
	key := strings.Join(slices.Compact(types), ",")
	if len(key) > 1024 {
		sum := sha256.Sum256([]byte(key))
		return string(sum[:])
	}
	return key
}

func acceptList(accept []string) []string {
	var types []string
	for _, t := range strings.Split(strings.Join(accept, ","), ",") {
		if t = strings.TrimSpace(t); t != "" {
			types = append(types, t)
		}
	}
	return types
}

// tags resolves tags, at most once in a while each.
type tags struct {
	origin Origin
	ttl    time.Duration
	log    *slog.Logger
	cache  *lru.Cache[tagKey, resolved]
	group  singleflight.Group
}

type resolved struct {
	Descriptor
	at time.Time
}

func newTags(origin Origin, ttl time.Duration, log *slog.Logger) (*tags, error) {
	cache, err := lru.New[tagKey, resolved](maxTags)
	if err != nil {
		return nil, err
	}
	return &tags{origin: origin, ttl: ttl, log: log, cache: cache}, nil
}

// tagRequest asks what a tag stands for.
type tagRequest struct {
	repo   registry.Repository
	tag    string
	accept []string
	caller Caller
	// proven callers may be told what others were told; the rest always ask
	// the origin.
	proven bool
	// body asks for the manifest along in the one request that is made
	// anyway.
	body bool
}

// resolve returns what a tag stands for: as resolved a moment ago, as the
// origin says now, or, if it cannot be asked, as it said last.
func (t *tags) resolve(ctx context.Context, req tagRequest) (Manifest, error) {
	key := tagKey{req.repo, req.tag, callerKey(req.caller), acceptKey(req.accept)}
	old, known := t.cache.Get(key)
	known = known && req.proven
	if learned, ok := t.cache.Get(learnedKey(req.repo, req.tag)); ok && req.proven && !known {
		// Good for when the origin cannot be asked, and no sooner.
		old, known = learned, true
		old.at = old.at.Add(-t.ttl)
	}
	if known && time.Since(old.at) < t.ttl {
		return Manifest{Descriptor: old.Descriptor}, nil
	}
	// Of a tag that is known, the manifest is likely here: asking for its
	// digest is enough. Origins count GETs of manifests, not HEADs.
	req.body = req.body && !known
	m, err := t.ask(ctx, key, req)
	switch {
	case err == nil:
		return m, nil
	case known && t.origin.Unavailable(err):
		t.log.Warn("origin cannot be asked, tag is served as it was", "repository", key.repo, "tag", key.tag, "digest", old.Digest, "age", time.Since(old.at), "err", err)
		return Manifest{Descriptor: old.Descriptor}, nil
	default:
		return Manifest{}, err
	}
}

// learnedKey is that of a tag of which it was said from elsewhere what it
// stands for.
func learnedKey(repo registry.Repository, tag string) tagKey {
	return tagKey{repo: repo, tag: tag, accept: "learned"}
}

// Learn takes in what a tag stands for, as its origin said to somebody else. It
// is what callers who need no proof are told while the origin cannot be asked.
func (m *Mirror) Learn(repo registry.Repository, tag string, d Descriptor) {
	m.tags.cache.Add(learnedKey(repo, tag), resolved{d, time.Now()})
}

// ask asks the origin, once for all who ask at the same time.
func (t *tags) ask(ctx context.Context, key tagKey, req tagRequest) (Manifest, error) {
	name := fmt.Sprintf("%v %q %q %x %x", req.body, key.repo, key.tag, key.caller, key.accept)
	ch := t.group.DoChan(name, func() (any, error) {
		// The others still wait when the first one goes away.
		ctx := context.WithoutCancel(ctx)
		m, err := t.request(ctx, req)
		if err == nil {
			t.cache.Add(key, resolved{m.Descriptor, time.Now()})
		}
		return m, err
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return Manifest{}, r.Err
		}
		return r.Val.(Manifest), nil
	case <-ctx.Done():
		return Manifest{}, ctx.Err()
	}
}

func (t *tags) request(ctx context.Context, req tagRequest) (Manifest, error) {
	if !req.body {
		d, err := t.origin.HeadManifest(ctx, req.caller, req.repo, req.tag, req.accept)
		if err != nil {
			return Manifest{}, err
		}
		if d.Digest != "" && d.Size >= 0 && d.MediaType != "" {
			return Manifest{Descriptor: d}, nil
		}
	}
	return t.origin.Manifest(ctx, req.caller, req.repo, req.tag, req.accept)
}
