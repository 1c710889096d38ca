package origin

import (
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxHops bounds the redirects that one request follows.
const maxHops = 5

// follow sends req and follows redirects of a GET or HEAD. Once a redirect
// has left the server that was asked, Authorization stays off, wherever it
// leads next. away reports whether the answer is from another server.
func (e *endpoint) follow(req *http.Request, p purpose) (resp *http.Response, away bool, err error) {
	first := hostPort(req.URL)
	for hop := 0; ; hop++ {
		resp, err = e.send(req, p)
		if err != nil || !isRedirect(resp.StatusCode) || req.Method == http.MethodPost {
			return resp, away, err
		}
		drain(resp)
		if hop == maxHops {
			return nil, away, fmt.Errorf("%w: more than %d redirects", ErrBadAnswer, maxHops)
		}
		next, err := resp.Location()
		if err != nil {
			return nil, away, fmt.Errorf("%w: redirect without a usable Location", ErrBadAnswer)
		}
		if req.URL.Scheme == "https" && next.Scheme == "http" {
			return nil, away, fmt.Errorf("%w: redirect from https to http at %s", errRule, next.Host)
		}
		away = away || hostPort(next) != first
		from := req
		req = from.Clone(from.Context())
		req.URL, req.Host = next, ""
		if away {
			req.Header.Del("Authorization")
		}
	}
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// drainTime bounds how long the rest of a body is waited for: a connection
// is worth that much, and a body that drips is not.
const drainTime = 100 * time.Millisecond

// drain closes the body so that its connection can be used again, if little
// is left of it.
func drain(resp *http.Response) {
	expire(resp, drainTime)
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // if it fails, the connection is given up, no more
	_ = resp.Body.Close()
}

// expire ends reading the body after d, however much comes.
func expire(resp *http.Response, d time.Duration) {
	if b, ok := resp.Body.(*body); ok {
		b.expire(d)
	}
}
