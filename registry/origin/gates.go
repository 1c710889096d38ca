package origin

import (
	"context"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxGates bounds the credentials of one upstream that are remembered. An
	// entry takes about 200 bytes.
	maxGates = 1024
	// addressRecheck bounds how long the address is taken to be limited before
	// another credential is tried. An origin that limits the address pays one
	// request for it; one that limits some credentials serves the others again
	// after this time.
	addressRecheck = 30 * time.Second
	// answeredLately is how long an answer shows that the origin serves this
	// credential, whatever it says to others.
	answeredLately = time.Minute
)

// credentialID tells the credentials of requests apart without telling what
// they are.
type credentialID [sha256.Size]byte

// gates keeps requests from an origin by what the origin limits:
//
//   - A 429 concerns the credential that it answers. Others go on.
//   - When two credentials are limited at the same time, the origin may limit
//     the address of this node. Then credentials that the origin has not
//     answered lately wait, and one of them at a time is tried.
//   - A 503 with Retry-After is said by the server as a whole.
type gates struct {
	server, address gate

	mu sync.Mutex // guards all below
	// credentials are those asked with lately.
	credentials *lru.Cache[credentialID, *credentialState]
	// limited is the credential that was limited last, and until when.
	limited      credentialID
	limitedUntil time.Time
}

type credentialState struct {
	gate     gate
	answered time.Time // guarded by mu of gates; zero after a 429
}

func newGates() *gates {
	return &gates{credentials: newLRU[credentialID, *credentialState](maxGates)}
}

// enter returns once a request with the credential may go; the caller must
// call exactly one of the methods of the ticket. Errors are a *shutError or
// that of ctx.
func (g *gates) enter(ctx context.Context, id credentialID) (t *ticket, err error) {
	c, served := g.credential(id)
	t = &ticket{gates: g, id: id, credential: c}
	defer func() {
		if err != nil {
			t.unknown()
		}
	}()
	if t.server, err = g.server.enter(ctx, true); err != nil {
		return t, err
	}
	if t.own, err = c.gate.enter(ctx, false); err != nil || served {
		return t, err
	}
	t.address, err = g.address.enter(ctx, true)
	return t, err
}

// credential returns what is known of a credential, and whether the origin has
// answered it lately.
func (g *gates) credential(id credentialID) (c *credentialState, served bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c, ok := g.credentials.Get(id)
	if !ok {
		c = &credentialState{}
		g.credentials.Add(id, c)
	}
	return c, time.Since(c.answered) < answeredLately
}

// ticket is the permission of one request.
type ticket struct {
	gates      *gates
	id         credentialID
	credential *credentialState
	// A pass is nil where that gate was not asked.
	server, own, address *pass
}

// opened says that the origin answered.
func (t *ticket) opened() {
	t.gates.mu.Lock()
	t.credential.answered = time.Now()
	t.gates.mu.Unlock()
	t.server.opened()
	t.own.opened()
	t.address.opened()
}

// unknown says that nothing was learnt.
func (t *ticket) unknown() {
	t.server.unknown()
	t.own.unknown()
	t.address.unknown()
}

// shut says that the origin asked, by this status, to be left alone for after,
// or for a time of our choice if after is 0. It returns the time, and whether
// it concerns all credentials.
func (t *ticket) shut(status int, after time.Duration) (left time.Duration, all bool) {
	if status != http.StatusTooManyRequests {
		t.own.unknown()
		t.address.unknown()
		return t.server.shut(after), true
	}
	t.server.opened()
	after = t.own.shut(after)
	if second := t.gates.limit(t, after); !second && !t.address.isProbe() {
		t.address.unknown()
		return after, false
	}
	if t.address == nil {
		t.address = &pass{g: &t.gates.address}
	}
	t.address.shut(min(after, addressRecheck))
	return after, true
}

// limit notes that a credential is limited, and reports whether another one is
// so too at the moment.
func (g *gates) limit(t *ticket, after time.Duration) (second bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t.credential.answered = time.Time{}
	now := time.Now()
	second = g.limited != t.id && now.Before(g.limitedUntil)
	if !second || now.Add(after).After(g.limitedUntil) {
		g.limited, g.limitedUntil = t.id, now.Add(after)
	}
	return second
}
