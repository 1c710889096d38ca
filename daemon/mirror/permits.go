package mirror

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/shoalproject/shoal/registry"
)

// Offline says what callers get whose permission cannot be asked for, since
// the origin gives no answer. An origin that refuses has answered.
type Offline int

const (
	// OfflineProven gives what is held to callers to whom the origin has
	// given it within Config.OfflineFor, and what everyone may read to all.
	OfflineProven Offline = iota
	// OfflineNone gives nothing.
	OfflineNone
	// OfflineAll gives what is held to whoever asks.
	OfflineAll
)

// permits remembers what origins have let which caller have. An entry is made
// of two proofs only: the origin answered this caller's request for the
// content with a success, or it gave this caller a manifest that names it.
type permits struct {
	ttl, offlineFor time.Duration
	cache           *lru.Cache[permitKey, proof]
	group           singleflight.Group
}

// permitKey is a hash of caller, repository and digest: entries are small and
// tell nothing.
type permitKey [sha256.Size]byte

// proof is what the origin said, when, and until when it is as good as asking
// again.
type proof struct{ at, until time.Time }

func newPermits(ttl, offlineFor time.Duration) (*permits, error) {
	cache, err := lru.New[permitKey, proof](maxPermits)
	if err != nil {
		return nil, err
	}
	return &permits{ttl: ttl, offlineFor: offlineFor, cache: cache}, nil
}

func keyOf(c Caller, repo registry.Repository, d digest.Digest) permitKey {
	// None of the parts can contain a blank.
	return sha256.Sum256([]byte(c.ID + " " + repo.Host + " " + repo.Name + " " + string(d)))
}

// grant notes that the origin has just let c have d.
func (p *permits) grant(c Caller, repo registry.Repository, d digest.Digest) {
	now := time.Now()
	until := now.Add(p.ttl)
	if !c.expires.IsZero() {
		// By the wall clock, which is all that a token knows.
		until = now.Add(min(p.ttl, time.Until(c.expires)))
	}
	p.cache.Add(keyOf(c, repo, d), proof{now, until})
}

// extend notes that a manifest which c may have names others. They are proven
// by what proved the manifest, and as long as that.
func (p *permits) extend(c Caller, repo registry.Repository, manifest digest.Digest, named []digest.Digest) {
	proof, ok := p.get(c, repo, manifest)
	if !ok {
		return
	}
	for _, d := range named {
		key := keyOf(c, repo, d)
		if old, ok := p.cache.Peek(key); !ok || old.at.Before(proof.at) {
			p.cache.Add(key, proof)
		}
	}
}

// has reports whether the origin's word is fresh.
func (p *permits) has(c Caller, repo registry.Repository, d digest.Digest) bool {
	proof, ok := p.get(c, repo, d)
	return ok && time.Now().Before(proof.until)
}

// had reports whether the origin gave its word recently enough to stand while
// it cannot be asked. The token may have expired meanwhile: there is nobody
// who could renew it.
func (p *permits) had(c Caller, repo registry.Repository, d digest.Digest) bool {
	proof, ok := p.get(c, repo, d)
	return ok && time.Since(proof.at) < p.offlineFor
}

func (p *permits) get(c Caller, repo registry.Repository, d digest.Digest) (proof, bool) {
	proof, ok := p.cache.Get(keyOf(c, repo, d))
	if refusal, refused := p.cache.Get(keyOf(c, repo, "")); refused && !proof.at.After(refusal.at) {
		return proof, false
	}
	return proof, ok
}

// refused takes note of the origin's refusal to let c have d. What it said of
// the token holds for all that is in the repository.
func (p *permits) refused(c Caller, repo registry.Repository, d digest.Digest, status int) {
	if d != "" {
		p.cache.Remove(keyOf(c, repo, d))
	}
	if status != http.StatusNotFound {
		p.cache.Add(keyOf(c, repo, ""), proof{at: time.Now()})
	}
}

// prove asks the origin, once for all who need the same proof at a time, and
// returns the size of the content in bytes.
func (p *permits) prove(ctx context.Context, c Caller, repo registry.Repository, d digest.Digest, ask func(context.Context) (int64, error)) (int64, error) {
	key := keyOf(c, repo, d)
	size, err := share(ctx, &p.group, string(key[:]), ask)
	if err == nil {
		p.grant(c, repo, d)
	}
	return size, err
}

// share makes one call for all who want the same at a time.
func share[T any](ctx context.Context, group *singleflight.Group, name string, call func(context.Context) (T, error)) (value T, err error) {
	ch := group.DoChan(name, func() (any, error) {
		// The others still wait when the first one goes away.
		return call(context.WithoutCancel(ctx))
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return value, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return value, ctx.Err()
	}
}

// expiry returns when the token in an Authorization header says that it
// expires, or zero. Nobody has checked what it says: it can only shorten what
// the origin's answer is good for.
func expiry(authorization string) time.Time {
	_, token, _ := strings.Cut(authorization, " ")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	var claims struct {
		Exp float64 `json:"exp"` // seconds, RFC 7519 section 2
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp < 1 || claims.Exp > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0)
}

// callerID tells callers apart, in memory and in logs. The salt is of this
// process alone, so that nobody can try passwords on an ID.
func callerID(salt, authorization string) string {
	sum := sha256.Sum256([]byte(salt + authorization))
	return fmt.Sprintf("%x", sum[:16])
}
