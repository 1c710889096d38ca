package mirror

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

// nested is how many levels of manifests below the one that is named a preheat
// speaks for: the manifests of an index, and those of an index in it.
const nested = 2

// of returns the call of a preheat, in the name of c.
func (m *Mirror) of(c Caller, repo registry.Repository) *call {
	switch {
	case c.Public:
		c = public
	case c.Authorization != "":
		c.ID, c.expires = callerID(m.salt, c.Authorization), expiry(c.Authorization)
	}
	return &call{Mirror: m, repo: repo, caller: c}
}

// Settle finds out, before a preheat fetches an image, whether everyone may have
// its manifest d, where other nodes are only given what everyone may have.
func (m *Mirror) Settle(ctx context.Context, c Caller, repo registry.Repository, d digest.Digest) {
	m.of(c, repo).settle(ctx, d, true)
}

// Vouch asks the origin whether c may have the manifest d, which a preheat has
// brought here in the name of c, and takes note of the answer as of that to any
// caller: whoever comes with the same credential is served while the origin cannot
// be asked, and nobody else is by this. So is everyone what everyone may have,
// which is asked a little later.
func (m *Mirror) Vouch(ctx context.Context, c Caller, repo registry.Repository, d digest.Digest) error {
	call := m.of(c, repo)
	if _, err := m.cfg.Origin.HeadManifest(ctx, c, repo, d.String(), AcceptAll); err != nil {
		call.refused(call.caller, d, err)
		return err
	}
	m.permits.grant(call.caller, repo, d)
	m.cfg.Sharing.Given(call.caller, repo, d)
	m.spread(ctx, call.caller, repo, d, nested)
	if call.caller != public && m.permits.had(public, repo, d) {
		m.spread(ctx, public, repo, d, nested)
	} else {
		call.askIfPublic(d.String(), nil)
	}
	return nil
}
