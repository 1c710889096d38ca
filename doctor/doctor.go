// Package doctor looks whether a node's pulls go through the mirror, and says
// what keeps them from it: the runtime's configuration, the daemon, its
// certificate, its schedulers and peers, the clock, and at last a real request.
//
// It knows what goes wrong out there and what to do about it. It must change
// nothing, and needs nothing of the daemon but its two addresses.
package doctor

import (
	"context"
	"net/http"
	"time"

	"github.com/shoalproject/shoal/nodeinfo"
	"github.com/shoalproject/shoal/runtimes"
)

// Status is the outcome of a check.
type Status string

// A trap makes the whole fail; what was skipped could not be looked at because
// of another one, or was not asked for.
const (
	OK      Status = "ok"
	Trap    Status = "trap"
	Skipped Status = "skipped"
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Text says what was found.
	Text string `json:"text"`
	// Remedy says what to do about a trap.
	Remedy string `json:"remedy,omitempty"`
}

// Config is what to look at.
type Config struct {
	// Tree is the node's file system, Runtime one of runtimes.Names.
	Tree    runtimes.Tree
	Runtime string
	// Options are as for an install. With an empty Mirror it is the one at
	// which the daemon listens, or else Installed, or else DefaultMirror;
	// without Registries those that are configured.
	Options   runtimes.Options
	Installed string
	// Admin is the daemon's --admin-listen, HOST:PORT.
	Admin string
	// Image is pulled in part through the mirror. Empty: one that everybody
	// may read, if its registry is configured.
	Image string
	// Started is when the runtime was started, or zero; Changed when a file of
	// the node was changed last, or zero.
	Started time.Time
	Changed func(file string) time.Time
	// Now is the clock.
	Now func() time.Time
}

// Bounds of one look, so that a node where everything hangs is told so in time.
const (
	dialTimeout    = 3 * time.Second
	requestTimeout = 30 * time.Second
	maxBody        = 4 << 20
)

// DefaultMirror is where a daemon listens that was told nothing.
const DefaultMirror = "http://127.0.0.1:4400"

// examination is one run.
type examination struct {
	Config
	checks []Check
	client *http.Client
	node   *nodeinfo.Node // nil: the daemon does not say
}

// Run looks at everything and returns what it found, in the order in which a
// pull meets it, and whether there was no trap.
func Run(ctx context.Context, cfg Config) (checks []Check, good bool) {
	transport := &http.Transport{Proxy: nil, DisableKeepAlives: true, ResponseHeaderTimeout: requestTimeout}
	defer transport.CloseIdleConnections()
	e := &examination{Config: cfg, client: &http.Client{
		Transport: transport,
		Timeout:   requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a mirror does not redirect
		},
	}}
	if e.Now == nil {
		e.Now = time.Now
	}
	e.askDaemon(ctx)
	asked := e.configuration()
	listening := e.mirror(ctx)
	e.cache()
	e.certificate()
	e.schedulers(ctx)
	e.peers(ctx)
	e.clock(ctx)
	e.pull(ctx, asked, listening)
	for _, c := range e.checks {
		if c.Status == Trap {
			return e.checks, false
		}
	}
	return e.checks, true
}

func (e *examination) add(status Status, name, remedy, text string) {
	e.checks = append(e.checks, Check{name, status, text, remedy})
}
