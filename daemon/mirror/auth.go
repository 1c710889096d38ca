package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry"
)

// may reports whether the caller may have d as far as is known here: it needs
// no proof, or has one that is fresh.
func (c *call) may(d digest.Digest) bool {
	if c.proven {
		return true
	}
	if !c.permits.has(c.caller, c.repo, d) {
		return false
	}
	c.access.Permission = Remembered
	return true
}

// granted notes that the origin has just let the caller have d.
func (c *call) granted(d digest.Digest) {
	c.cfg.Sharing.Given(c.caller, c.repo, d)
	if !c.proven {
		c.permits.grant(c.caller, c.repo, d)
		c.access.Permission = Asked
	}
}

// learnt notes what opening content said of the caller's permission.
func (c *call) learnt(req Request, err error) {
	if err != nil {
		c.refused(c.caller, req.Digest, err)
	} else if !req.Proven {
		// It was opened at the origin in the caller's name.
		c.granted(req.Digest)
		if req.Manifest {
			c.askIfPublic(req.Digest.String(), nil)
		}
	}
}

// refused notes that the origin does not let who have d, if that is what err
// says.
func (c *call) refused(who Caller, d digest.Digest, err error) {
	var e *registry.Error
	if !errors.As(err, &e) {
		return
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		c.permits.refused(who, c.repo, d, e.Status)
	}
}

// prove asks the origin whether the caller may have d. It returns the size in
// bytes, -1 if that did not come to light.
func (c *call) prove(ctx context.Context, d digest.Digest, manifest bool) (int64, error) {
	size, err := c.permits.prove(ctx, c.caller, c.repo, d, func(ctx context.Context) (int64, error) {
		if manifest {
			m, err := c.cfg.Origin.HeadManifest(ctx, c.caller, c.repo, d.String(), AcceptAll)
			return m.Size, err
		}
		return c.cfg.Origin.HeadBlob(ctx, c.caller, c.repo, d)
	})
	switch {
	case err == nil:
		c.access.Permission = Asked
		c.cfg.Sharing.Given(c.caller, c.repo, d)
		if manifest {
			c.askIfPublic(d.String(), nil)
		}
		return size, nil
	case c.cfg.Origin.Unavailable(err):
		if err = c.offline(d, err); err == nil {
			c.cfg.Logger.Warn("origin cannot be asked, content is served as it permitted before", "repository", c.repo, "digest", d, "caller", c.caller.ID)
			return -1, nil
		}
	default:
		c.refused(c.caller, d, err)
		if manifest {
			err = c.reason(ctx, d.String(), AcceptAll, err)
		}
	}
	return -1, fmt.Errorf("asking the origin for permission: %w", err)
}

// likes are those whose permission is the caller's too while the origin cannot
// be asked: itself first.
func (c *call) likes() []Caller {
	switch {
	case c.proven:
		return []Caller{c.caller}
	case c.cfg.Offline == OfflineAll:
		return []Caller{c.caller, public, anyone}
	default:
		return []Caller{c.caller, public}
	}
}

// offline decides on d, which is empty if nothing can be told of it, when the
// origin cannot be asked. Nil lets the caller have it; else the error is what
// to answer: cause, or the challenge that the origin sent last, since who
// has proven himself before may do it again by the same header.
func (c *call) offline(d digest.Digest, cause error) error {
	if d != "" && c.standing(d) {
		if !c.proven {
			c.access.Permission = Unasked
		}
		return nil
	}
	if !c.proven {
		c.access.Permission = Unknown
	}
	if c.cfg.Offline == OfflineProven {
		if err := c.challenged(c.cfg.OfflineFor); err != nil {
			return err
		}
	}
	return cause
}

// standing reports whether the caller may have d while the origin cannot be
// asked.
func (c *call) standing(d digest.Digest) bool {
	switch {
	case c.proven || c.cfg.Offline == OfflineAll:
		return true
	case c.cfg.Offline == OfflineNone:
		return false
	}
	for _, who := range c.likes() {
		if c.permits.had(who, c.repo, d) {
			return true
		}
	}
	return false
}

// challenged returns the refusal that the origin sent to a caller without
// credentials within age, if this is such a caller.
func (c *call) challenged(age time.Duration) error {
	if !c.caller.Anonymous {
		return nil
	}
	err := c.challenges.within(c.repo, age)
	c.remembered = err != nil
	return err
}

// noteChallenge remembers the origin's refusal of a caller without
// credentials.
func (c *call) noteChallenge(err error) {
	var e *registry.Error
	if c.caller.Anonymous && !c.remembered && errors.As(err, &e) && e.Status == http.StatusUnauthorized {
		c.challenges.note(c.repo, e)
	}
}
