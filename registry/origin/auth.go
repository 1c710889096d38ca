package origin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/shoalproject/shoal/registry"
)

const (
	maxTokens = 4096 // per upstream; a token is 1 to 16 KiB
	maxHints  = 4096 // repositories per upstream
	maxRealms = 64   // per upstream; the server chooses them
	// tokenTimeout bounds a token request as a whole: it belongs to no
	// caller, and its body is small.
	tokenTimeout = 30 * time.Second
)

// errNoAnswer means that there is nothing to answer a challenge with.
var errNoAnswer = errors.New("no credential for this challenge")

// tokenKey names a token: a hash of realm, service, scope and credential.
type tokenKey [sha256.Size]byte

type token struct {
	value string
	until time.Time
}

// authenticator answers the challenges of one endpoint.
type authenticator struct {
	ctx        context.Context // ends with the client
	background *sync.WaitGroup
	e          *endpoint
	tokens     *lru.Cache[tokenKey, token]
	// hints say how repositories were last opened, so that the next request
	// need not be challenged.
	hints *lru.Cache[string, hint]
	// noPost are the realms that do not take POST.
	noPost *lru.Cache[string, struct{}]
	flight singleflight.Group

	mu   sync.Mutex // guards last
	last *challenge // the latest one answered, of any repository
}

// hint is a challenge and which of several credentials answered it.
type hint struct {
	challenge
	credential int
}

func newAuthenticator(ctx context.Context, e *endpoint, background *sync.WaitGroup) *authenticator {
	a := &authenticator{ctx: ctx, background: background, e: e}
	a.tokens = newLRU[tokenKey, token](maxTokens)
	a.hints = newLRU[string, hint](maxHints)
	a.noPost = newLRU[string, struct{}](maxRealms)
	return a
}

func newLRU[K comparable, V any](n int) *lru.Cache[K, V] {
	c, err := lru.New[K, V](n)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return c
}

// credentials returns those to try for a repository of that name, at least
// the anonymous one.
func (a *authenticator) credentials(ctx context.Context, name string) ([]Credential, error) {
	list, err := a.e.cfg.Credentials(ctx, registry.Repository{Host: a.e.host, Name: name})
	if err != nil {
		return nil, fmt.Errorf("credential for %s: %w", a.e.host, err)
	}
	if len(list) == 0 {
		list = []Credential{{}}
	}
	return list, nil
}

// hint returns the Authorization that the repository of that name will
// probably want, or "", and how it came about.
func (a *authenticator) hint(ctx context.Context, name string) (string, hint, error) {
	h, ok := a.expected(name)
	if !ok {
		return "", hint{}, nil
	}
	list, err := a.credentials(ctx, name)
	var value string
	if err == nil {
		h.credential = min(h.credential, len(list)-1)
		value, err = a.answer(ctx, h.challenge, list[h.credential], "")
	}
	if err != nil {
		// What was right for another request may not be for this one: let
		// the origin say so itself.
		a.forget(name)
		return "", hint{}, context.Cause(ctx)
	}
	return value, h, nil
}

// expected returns how the repository of that name will probably be opened.
func (a *authenticator) expected(name string) (hint, bool) {
	if h, ok := a.hints.Get(name); ok {
		return h, true
	}
	a.mu.Lock()
	last := a.last
	a.mu.Unlock()
	if last == nil {
		return hint{}, false
	}
	h := hint{challenge: *last}
	if !h.basic {
		h.scope = "repository:" + path.Join(a.e.base.Path, name) + ":pull"
	}
	return h, true
}

func (a *authenticator) remember(name string, c challenge, credential int) {
	a.hints.Add(name, hint{c, credential})
	a.mu.Lock()
	a.last = &c
	a.mu.Unlock()
}

func (a *authenticator) forget(name string) {
	a.hints.Remove(name)
	a.mu.Lock()
	a.last = nil
	a.mu.Unlock()
}

// answer returns the Authorization by which cred answers c. It is never
// rejected, the value that the origin has just refused. Errors are
// errNoAnswer, a *refused of the token service, or those of a request.
func (a *authenticator) answer(ctx context.Context, c challenge, cred Credential, rejected string) (string, error) {
	value := ""
	switch {
	case c.basic:
		if cred.Username == "" && cred.Password == "" {
			return "", errNoAnswer
		}
		value = basicAuth(cred)
	case cred.AccessToken != "":
		value = "Bearer " + cred.AccessToken
	default:
		t, err := a.token(ctx, c, cred, strings.TrimPrefix(rejected, "Bearer "))
		if err != nil {
			return "", err
		}
		value = "Bearer " + t
	}
	if value == rejected {
		return "", errNoAnswer
	}
	return value, nil
}

func basicAuth(c Credential) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// token returns a token for c, from the cache if there is one that has not
// been rejected. Requests for the same token share one.
func (a *authenticator) token(ctx context.Context, c challenge, cred Credential, rejected string) (string, error) {
	realm, err := url.Parse(c.realm)
	if err != nil || realm.Host == "" {
		return "", fmt.Errorf("%w: the realm of its challenge is not a URL", ErrBadAnswer)
	}
	if cred != (Credential{}) && !a.e.mayBear(forToken, realm) {
		a.e.cfg.Logger.Warn("token realm does not belong to the registry, asking without credentials",
			"registry", a.e.host, "realm", realm.Host)
		cred = Credential{}
	}
	key := keyOf(c, cred)
	if t, ok := a.cached(key, rejected); ok {
		return t, nil
	}
	a.background.Add(1)
	result := a.flight.DoChan(string(key[:]), func() (any, error) {
		if t, ok := a.cached(key, rejected); ok {
			return t, nil
		}
		ctx, cancel := context.WithTimeout(a.ctx, tokenTimeout)
		defer cancel()
		t, err := a.fetch(ctx, *realm, c, cred)
		if err != nil {
			return "", err
		}
		a.tokens.Add(key, t)
		return t.value, nil
	})
	select {
	case r := <-result:
		a.background.Done()
		if r.Err != nil {
			return "", r.Err
		}
		return r.Val.(string), nil
	case <-ctx.Done():
		// Others may wait for the token: it is still fetched.
		go func() { <-result; a.background.Done() }()
		return "", context.Cause(ctx)
	}
}

func (a *authenticator) cached(key tokenKey, rejected string) (string, bool) {
	t, ok := a.tokens.Get(key)
	if !ok || t.value == rejected || time.Now().After(t.until) {
		return "", false
	}
	return t.value, true
}

func keyOf(c challenge, cred Credential) tokenKey {
	h := sha256.New()
	for _, s := range []string{c.realm, c.service, c.scope, cred.Username, cred.Password, cred.RefreshToken} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return tokenKey(h.Sum(nil))
}
