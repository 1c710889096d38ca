package origin

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// shortWait is how long a request may be held back instead of refused.
	shortWait = 2 * time.Second
	// firstBackoff is the pause after a 429 that names none.
	firstBackoff = time.Second
)

// gate keeps requests from an origin that asked to be left alone. Once the
// time is over one request goes through as a probe, and the others wait for
// its outcome. Which requests share a gate is decided in gates.go.
type gate struct {
	mu sync.Mutex // guards all below
	// until is when a probe may go; zero while the gate is open.
	until time.Time
	// backoff is the last pause that we chose ourselves.
	backoff time.Duration
	// probe is closed when the probe under way has ended; nil without one.
	probe chan struct{}
}

// shutError is returned by enter while the gate is shut.
type shutError struct {
	after time.Duration
	// all: the gate concerns all credentials, not only the caller's.
	all bool
}

func (e *shutError) Error() string {
	whom := "this caller"
	if e.all {
		whom = "this node"
	}
	return fmt.Sprintf("the origin limits %s (429 or Retry-After) for another %s", whom, e.after.Round(time.Second))
}

// enter returns once a request may go; the caller must call exactly one of
// the methods of the pass. Errors are a *shutError, which says whether the gate
// is for all credentials, or that of ctx.
func (g *gate) enter(ctx context.Context, all bool) (*pass, error) {
	for {
		wait, probe, p := g.try()
		switch {
		case p != nil:
			return p, nil
		case wait > shortWait:
			return nil, &shutError{wait, all}
		}
		if err := waitFor(ctx, wait, probe); err != nil {
			return nil, err
		}
	}
}

// try returns a pass, or how long to wait, or what to wait for.
func (g *gate) try() (time.Duration, <-chan struct{}, *pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.until.IsZero() {
		return 0, nil, &pass{g: g}
	}
	if wait := time.Until(g.until); wait > 0 {
		return wait, nil, nil
	}
	if g.probe != nil {
		return 0, g.probe, nil
	}
	g.probe = make(chan struct{})
	return 0, nil, &pass{g: g, probe: true}
}

// waitFor returns after d, or when done is closed if it is not nil.
func waitFor(ctx context.Context, d time.Duration, done <-chan struct{}) error {
	var after <-chan time.Time
	if done == nil {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-after:
	case <-done:
	}
	return nil
}

// pass is the permission of one request. The methods of a nil pass do nothing.
type pass struct {
	g     *gate
	probe bool
}

func (p *pass) isProbe() bool { return p != nil && p.probe }

// opened says that the origin answered. Only a probe opens the gate: others
// may have been answered before it was shut.
func (p *pass) opened() {
	if !p.isProbe() {
		return
	}
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.until, p.g.backoff = time.Time{}, 0
	p.end()
}

// shut says that the origin asked to be left alone for after, or for a time
// of our choice if after is 0, and returns that time.
func (p *pass) shut(after time.Duration) time.Duration {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	defer p.end()
	left := time.Until(p.g.until)
	if after <= 0 {
		// One burst of requests is one reason to back off, not one each.
		if left > 0 && !p.probe {
			return left
		}
		after = min(max(2*p.g.backoff, firstBackoff), maxRetryAfter)
		p.g.backoff = after
	}
	after = max(after, left)
	p.g.until = time.Now().Add(after)
	return after
}

// unknown says that nothing was learnt; the next request is the probe.
func (p *pass) unknown() {
	if !p.isProbe() {
		return
	}
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.end()
}

func (p *pass) end() {
	if p.probe {
		close(p.g.probe)
		p.g.probe = nil
	}
}
