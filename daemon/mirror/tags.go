package mirror

import (
	"context"
	"crypto/sha256"
	"fmt"
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
	caller string // Caller.ID
	accept string // acceptKey
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

// tags resolves tags and remembers how.
type tags struct {
	origin Origin
	cache  *lru.Cache[tagKey, resolved]
	group  singleflight.Group
}

type resolved struct {
	Descriptor
	at time.Time
}

func newTags(origin Origin) (*tags, error) {
	cache, err := lru.New[tagKey, resolved](maxTags)
	if err != nil {
		return nil, err
	}
	return &tags{origin: origin, cache: cache}, nil
}

// tagRequest asks what a tag stands for.
type tagRequest struct {
	repo   registry.Repository
	tag    string
	accept []string
	caller Caller
	// body asks for the manifest along in the one request that is made
	// anyway.
	body bool
}

func (r tagRequest) key() tagKey {
	return tagKey{r.repo, r.tag, r.caller.ID, acceptKey(r.accept)}
}

// anyone stands for whichever caller asked last.
var anyone = Caller{ID: "anyone"}

// last returns what the origin told the caller last.
func (t *tags) last(req tagRequest) (resolved, bool) { return t.cache.Get(req.key()) }

// typeKey is the key of what the caller was told with whatever Accept, if it
// was of that type.
func (r tagRequest) typeKey(mediaType string) tagKey {
	return tagKey{r.repo, r.tag, r.caller.ID, "of type " + mediaType}
}

// lastFitting returns what the origin told the caller last: for the same Accept,
// or else for another one, of a type that this one takes as well.
func (t *tags) lastFitting(req tagRequest) (resolved, bool) {
	if old, ok := t.last(req); ok {
		return old, true
	}
	for _, mediaType := range registry.AcceptAll {
		if takes(req.accept, mediaType) {
			if old, ok := t.cache.Get(req.typeKey(mediaType)); ok {
				return old, true
			}
		}
	}
	return resolved{}, false
}

// takes reports whether Accept headers take a type. Without any, all is taken.
func takes(accept []string, mediaType string) bool {
	types := acceptList(accept)
	for _, t := range types {
		t, _, _ = strings.Cut(t, ";")
		if t = strings.TrimSpace(t); t == "*/*" || t == "application/*" || strings.EqualFold(t, mediaType) {
			return true
		}
	}
	return len(types) == 0
}

// learned returns what a preheat was told, whoever it asked for.
func (t *tags) learned(req tagRequest) (resolved, bool) {
	return t.cache.Get(learnedKey(req.repo, req.tag))
}

func learnedKey(repo registry.Repository, tag string) tagKey {
	return tagKey{repo: repo, tag: tag, accept: "learned"}
}

// Learn takes in what a tag stands for, as its origin said to somebody else.
// Callers are told while the origin cannot be asked, if they may have what it
// stands for.
func (m *Mirror) Learn(repo registry.Repository, tag string, d Descriptor) {
	m.tags.cache.Add(learnedKey(repo, tag), resolved{d, time.Now()})
}

// resolve asks the origin, once for all who ask at the same time.
func (t *tags) resolve(ctx context.Context, req tagRequest) (Manifest, error) {
	key := req.key()
	name := fmt.Sprintf("%v %q %q %x %x", req.body, key.repo, key.tag, key.caller, key.accept)
	return share(ctx, &t.group, name, func(ctx context.Context) (Manifest, error) { return t.ask(ctx, req) })
}

// ask asks the origin and remembers what it says.
func (t *tags) ask(ctx context.Context, req tagRequest) (Manifest, error) {
	m, err := t.request(ctx, req)
	if err == nil {
		now := resolved{m.Descriptor, time.Now()}
		t.cache.Add(req.key(), now)
		t.cache.Add(req.typeKey(m.MediaType), now)
		req.caller = anyone
		t.cache.Add(req.key(), now)
		t.cache.Add(req.typeKey(m.MediaType), now)
	}
	return m, err
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
	m, err := t.origin.Manifest(ctx, req.caller, req.repo, req.tag, req.accept)
	if !req.body && len(m.Body) > maxUnreserved {
		m.Body = nil // it is got by its digest
	}
	return m, err
}
