package mirror

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoalproject/shoal/registry"
)

// fail answers with an error. This is the one place that turns errors into
// statuses.
func (c *call) fail(err error) {
	c.access.Err = err
	c.noteChallenge(err)
	c.noteAbsent(err)
	e := c.answerFor(err)
	if c.r.Context().Err() != nil {
		// Nobody is there to read it. 499 is nginx's word for that.
		c.access.Status = 499
		return
	}
	h := c.w.Header()
	if e.Status == http.StatusUnauthorized {
		for _, challenge := range e.Challenges {
			h.Add("Www-Authenticate", challenge)
		}
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	body := e.Body()
	c.header("application/json", int64(len(body)))
	c.status(e.Status)
	if c.r.Method != http.MethodHead {
		_ = c.write(body) // err says why already
	}
}

// answerFor returns the error to send: what the origin said, but for the
// statuses that runtimes handle badly when a mirror sends them.
func (c *call) answerFor(err error) *registry.Error {
	var origin *registry.Error
	if !errors.As(err, &origin) {
		return &registry.Error{Status: http.StatusServiceUnavailable, Code: registry.CodeUnavailable, Message: c.named(err)}
	}
	e := *origin
	switch {
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusRequestTimeout:
		// To these a runtime answers with retries here, before it moves on.
		e.Status = http.StatusServiceUnavailable
	case e.Status < 400 || e.Status > 599:
		e.Status = http.StatusBadGateway
	case e.Status == http.StatusUnauthorized && !c.cfg.RelayBasic:
		e.Challenges = withoutBasic(e.Challenges)
	}
	return &e
}

// named says which repository an error is about. Runtimes show the address of
// the mirror alone.
func (c *call) named(err error) string {
	if c.repo.Host == "" {
		return err.Error()
	}
	return c.repo.String() + ": " + err.Error()
}

// withoutBasic keeps the challenges that make a runtime send a token. To a
// Basic challenge it would send the password itself; without one it goes on to
// the origin.
func withoutBasic(challenges []string) []string {
	var keep []string
	for _, c := range challenges {
		if scheme, _, _ := strings.Cut(strings.TrimSpace(c), " "); strings.EqualFold(scheme, "Bearer") {
			keep = append(keep, c)
		}
	}
	return keep
}
