package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/mirror"
)

// quiet is how long nobody may have waited for a download before preheating
// goes on: between two layers of one pull lie moments.
const quiet = time.Second

// precedence lets downloads that a runtime waits for go before those that are
// made in advance.
type precedence struct {
	mu sync.Mutex
	// Guarded by mu:
	waiting int
	last    time.Time // when one was waited for last
	polite  map[*context.CancelFunc]struct{}
}

func newPrecedence() *precedence {
	return &precedence{polite: map[*context.CancelFunc]struct{}{}}
}

// begin says that a runtime waits for a download, until the function returned
// is called.
func (p *precedence) begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting++
	for cancel := range p.polite {
		(*cancel)()
	}
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting--
		p.last = time.Now()
	})
}

// yield waits until no runtime waits, and returns a context that ends when one
// does again. The caller must call done.
func (p *precedence) yield(ctx context.Context) (polite context.Context, done func(), err error) {
	for {
		p.mu.Lock()
		wait := quiet - time.Since(p.last)
		if p.waiting > 0 {
			wait = quiet
		}
		if wait <= 0 {
			polite, cancel := context.WithCancel(ctx)
			p.polite[&cancel] = struct{}{}
			p.mu.Unlock()
			return polite, func() {
				cancel()
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.polite, &cancel)
			}, nil
		}
		p.mu.Unlock()
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, nil, ctx.Err()
		}
	}
}

// awaited is a Reader that a runtime waits for.
type awaited struct {
	*fetch.Reader
	end func()
}

// Close lets the blob go, and those who stepped back have their turn.
func (a awaited) Close() error {
	a.end()
	return a.Reader.Close()
}

// await returns r as one that a runtime waits for, if it is being downloaded.
func (p *precedence) await(r *fetch.Reader) mirror.Reader {
	if p == nil || !r.Coming() {
		return r
	}
	return awaited{r, p.begin()}
}
