package origin

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/shoalproject/shoal/registry"
)

// Grant is what lets its bearer pull from one repository.
type Grant struct {
	// Authorization is the header to be sent; empty if none is needed, or
	// there is no credential that it could speak for.
	Authorization string
	// Until is when it ends, as far as that is known; zero: it does not.
	Until time.Time
}

// Grant asks for a manifest as the credentials of the client allow, and
// returns what the origin granted for it: a token for this repository alone
// where the origin gives one, else the password itself. Not is a grant that
// is not wanted again, since it is about to end. Errors are as those of
// HeadManifest.
func (c *Client) Grant(ctx context.Context, t Target, ref string, not Grant) (Grant, error) {
	if _, err := c.HeadManifest(ctx, t, ref, registry.AcceptAll); err != nil {
		return Grant{}, err
	}
	q, err := c.manifestCall(http.MethodHead, t, ref, nil)
	if err != nil {
		return Grant{}, err
	}
	a := q.e.auth
	h, ok := a.expected(t.Name)
	if !ok {
		return Grant{}, nil
	}
	list, err := a.credentials(ctx, t.Name)
	if err != nil {
		return Grant{}, err
	}
	cred := list[min(h.credential, len(list)-1)]
	if cred == (Credential{}) {
		return Grant{}, nil
	}
	value, err := a.answer(ctx, h.challenge, cred, not.Authorization)
	if err != nil {
		return Grant{}, err
	}
	g := Grant{Authorization: value}
	if !h.basic && cred.AccessToken == "" {
		// The key is that of the token just answered with, unless the realm
		// got no credential: then it is nobody's token.
		if t, ok := a.tokens.Get(keyOf(h.challenge, cred)); ok && t.value == strings.TrimPrefix(value, "Bearer ") {
			g.Until = t.until
			return g, nil
		}
		return Grant{}, nil
	}
	return g, nil
}
