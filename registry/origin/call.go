package origin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/shoalproject/shoal/registry"
)

const (
	// maxAttempts bounds the attempts in a row that bring nothing.
	maxAttempts = 3
	// maxErrorBody bounds what is read of an error page, in bytes.
	maxErrorBody = 64 << 10
)

// call is one question to an origin.
type call struct {
	e      *endpoint
	t      Target
	method string
	path   string // after the repository name
	query  url.Values
	header http.Header
	what   string // for errors: "blob sha256:…"
	// unknown is the code of a 404 that brings none.
	unknown string
}

func (q *call) String() string { return q.t.Repository.String() + ": " + q.what }

// repo is the repository as the origin names it.
func (q *call) repo() string { return path.Join(q.e.base.Path, q.t.Name) }

func (q *call) purpose() purpose {
	if strings.HasPrefix(q.path, "blobs/") {
		return forBlob
	}
	return forAPI
}

func (q *call) request(ctx context.Context, authorization string) *http.Request {
	u := q.e.base
	u.Path, u.RawPath = "/v2/"+q.repo()+"/"+q.path, ""
	u.RawQuery = q.query.Encode()
	req := (&http.Request{Method: q.method, URL: &u, Header: q.header.Clone()}).WithContext(ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return req
}

// do asks once, when the gate lets it, and returns an answer of status 2xx.
func (q *call) do(ctx context.Context) (*http.Response, error) {
	for again := false; ; again = true {
		p, err := q.e.gates.enter(ctx, q.t.credential())
		if err != nil {
			return nil, q.shut(ctx, err)
		}
		resp, err := q.exchange(ctx)
		var f *failure
		switch {
		case err == nil:
			p.opened()
			return resp, nil
		case !errors.As(err, &f) || !f.answered:
			p.unknown()
			return nil, err
		case !f.limited:
			p.opened()
			return nil, err
		}
		f.reg.RetryAfter, f.all = p.shut(f.status, f.reg.RetryAfter)
		q.e.cfg.Logger.Warn("origin asked to be left alone", "registry", q.e.host, "for", f.reg.RetryAfter, "all_callers", f.all)
		if again || f.reg.RetryAfter > shortWait {
			return nil, err
		}
	}
}

func (q *call) shut(ctx context.Context, err error) error {
	var s *shutError
	if !errors.As(err, &s) {
		return q.failed(ctx, err)
	}
	return &failure{cause: err, limited: true, all: s.all, reg: &registry.Error{
		Status: http.StatusServiceUnavailable, Code: registry.CodeTooManyRequests,
		Message: q.String() + ": " + err.Error(), RetryAfter: s.after,
	}}
}

// exchange asks, answers a challenge if there is one, and returns an answer
// of status 2xx.
func (q *call) exchange(ctx context.Context) (*http.Response, error) {
	auth, ours := q.t.Authorization, q.t.Authorization == "" && !q.t.Anonymous
	var hinted hint
	var err error
	if ours {
		if auth, hinted, err = q.e.auth.hint(ctx, q.t.Name); err != nil {
			return nil, q.failed(ctx, err)
		}
	}
	resp, away, err := q.e.follow(q.request(ctx, auth), q.purpose())
	if err == nil && ours && !away && mayChange(resp.StatusCode) {
		status := resp.StatusCode
		no := q.refusal(resp, away, auth)
		if status == http.StatusUnauthorized {
			c, ok := pickChallenge(no.reg.Challenges)
			if !ok {
				return nil, no
			}
			resp, away, auth, err = q.answer(ctx, c, no, auth, -1)
		} else if auth == "" {
			return nil, no
		} else {
			resp, away, auth, err = q.answer(ctx, hinted.challenge, no, auth, hinted.credential)
		}
	}
	if err != nil {
		return nil, q.redacted(ctx, err, auth)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	return nil, q.refusal(resp, away, auth)
}

// mayChange reports whether another credential may bring another answer. Some
// registries say 404 of what the asker may not see.
func mayChange(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound
}

// answer repeats the request with answers to the challenge c, by one
// credential after another while they are refused, but for the one that was
// just used if used is not -1. no is the refusal so far.
func (q *call) answer(ctx context.Context, c challenge, no *failure, rejected string, used int) (resp *http.Response, away bool, auth string, err error) {
	list, err := q.e.auth.credentials(ctx, q.t.Name)
	if err != nil {
		return nil, false, "", err
	}
	if used < 0 || len(list) > 1 {
		q.e.auth.forget(q.t.Name)
	}
	for i, cred := range list {
		if i == used {
			continue
		}
		auth, err = q.e.auth.answer(ctx, c, cred, rejected)
		var r *refused
		switch {
		case errors.Is(err, errNoAnswer):
			continue
		case errors.As(err, &r):
			no = q.tokenRefused(r, no)
			if mayChange(r.reg.Status) {
				continue
			}
			return nil, false, "", no
		case err != nil:
			return nil, false, "", err
		}
		resp, away, err = q.e.follow(q.request(ctx, auth), q.purpose())
		if err != nil || away || !mayChange(resp.StatusCode) {
			if err == nil {
				q.e.auth.remember(q.t.Name, c, i)
			}
			return resp, away, auth, err
		}
		if resp.StatusCode != http.StatusUnauthorized {
			q.e.auth.remember(q.t.Name, c, i)
		}
		no = q.refusal(resp, away, auth)
	}
	return nil, false, "", no
}

// tokenRefused returns the error for a token service that gave no token: a
// refusal if it says that the caller may not, else trouble of the origin's.
func (q *call) tokenRefused(r *refused, no *failure) *failure {
	f := q.classify(r.reg)
	switch r.reg.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		r.reg.Challenges = no.reg.Challenges
	case http.StatusTooManyRequests:
	default:
		if r.reg.Status < 500 {
			f.reg.Status, f.reg.Code = http.StatusBadGateway, registry.CodeUnavailable
		}
	}
	return f
}

// redacted is failed for an error whose text may repeat what was sent.
func (q *call) redacted(ctx context.Context, err error, auth string) error {
	err = q.failed(ctx, err)
	var f *failure
	if errors.As(err, &f) && auth != "" && !f.answered {
		f.reg.Message = scrub(f.reg.Message, secretsOf(auth)...)
		if f.cause != nil {
			if text := f.cause.Error(); scrub(text, secretsOf(auth)...) != text {
				f.cause = nil
			}
		}
	}
	return err
}

// secretsOf returns what of an Authorization header nobody may read.
func secretsOf(auth string) []string {
	scheme, secret, ok := strings.Cut(auth, " ")
	if !ok {
		return []string{auth}
	}
	secrets := []string{strings.TrimSpace(secret)}
	if strings.EqualFold(scheme, "basic") {
		if plain, err := base64.StdEncoding.DecodeString(secrets[0]); err == nil {
			_, password, _ := strings.Cut(string(plain), ":")
			secrets = append(secrets, password)
		}
	}
	return secrets
}

// refusal consumes an answer that is not 2xx and returns its error.
func (q *call) refusal(resp *http.Response, away bool, auth string) *failure {
	defer drain(resp)
	expire(resp, q.e.cfg.StallTimeout)
	b, _ := readAll(resp.Body, maxErrorBody) // what cannot be read is not needed
	reg := registry.ParseError(resp.StatusCode, b, q.unknown)
	reg.Message = scrub(reg.Message, secretsOf(auth)...)
	reg.RetryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	switch {
	case away && resp.StatusCode < 500 && resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusTooManyRequests:
		// Not the registry says so, but the store that it redirected to: the
		// signed URL has expired or is broken. The registry signs another.
		reg.Message = fmt.Sprintf("the server %s that the origin redirected to answered %d", resp.Request.URL.Host, resp.StatusCode)
		reg.Status, reg.Code = http.StatusBadGateway, registry.CodeUnavailable
	case resp.StatusCode < 400:
		reg.Message = fmt.Sprintf("the origin answered %d", resp.StatusCode)
		reg.Status, reg.Code = http.StatusBadGateway, registry.CodeUnavailable
	case resp.StatusCode == http.StatusUnauthorized:
		reg.Challenges = resp.Header.Values("WWW-Authenticate")
	case resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode == http.StatusTooEarly:
		reg.Status, reg.Code = http.StatusServiceUnavailable, registry.CodeUnavailable
	}
	reg.Message = q.String() + ": " + reg.Message
	return q.classify(reg)
}

// classify says what the retry loops and the gate should make of reg.
func (q *call) classify(reg *registry.Error) *failure {
	f := &failure{reg: reg, answered: true, status: reg.Status}
	switch {
	case reg.Status == http.StatusTooManyRequests,
		reg.Status == http.StatusServiceUnavailable && reg.RetryAfter > 0:
		f.limited = true
		reg.Status, reg.Code = http.StatusServiceUnavailable, registry.CodeTooManyRequests
	case reg.Status >= 500:
		f.retry = true
	}
	return f
}

// repeat calls try until it succeeds, fails for good, or has been called
// maxAttempts times. An origin that is down is not asked again: the caller
// has other sources.
func (q *call) repeat(ctx context.Context, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == maxAttempts || isDown(err) || !shouldRetry(err) {
			return err
		}
		q.e.cfg.Logger.Debug("asking the origin again", "call", q.String(), "attempt", n, "err", err)
		if err := q.pause(ctx, n); err != nil {
			return err
		}
	}
}

// pause waits before attempt n+1: base, twice the base, and so on, each
// between half and one and a half of that.
func (q *call) pause(ctx context.Context, n int) error {
	d := q.e.cfg.RetryDelay << (n - 1)
	d = d/2 + rand.N(d)
	if err := waitFor(ctx, d, nil); err != nil {
		return q.failed(ctx, err)
	}
	return nil
}
