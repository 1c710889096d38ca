package daemon

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// deafTags takes note of nothing.
type deafTags struct{}

func (deafTags) Learn(registry.Repository, string, mirror.Descriptor)                      {}
func (deafTags) Settle(context.Context, mirror.Caller, registry.Repository, digest.Digest) {}
func (deafTags) Vouch(context.Context, mirror.Caller, registry.Repository, digest.Digest) error {
	return nil
}

// newTestPreheater returns one in which no content has its turn, ever.
func newTestPreheater(t *testing.T) (p *preheater, quit context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	p = &preheater{
		ctx: ctx, tags: deafTags{}, own: func(string) bool { return false }, log: slog.New(slog.DiscardHandler), slots: make(chan struct{}), wake: make(chan struct{}, 1), tasks: map[taskKey]*task{},
	}
	t.Cleanup(p.close)
	return p, cancel
}

func testOrder(job string) *jobs.Order {
	return &jobs.Order{
		Job: job, Repository: "docker.io/library/a", Reference: "v1", Deadline: time.Hour,
		Contents: []jobs.Content{{Digest: "sha256:" + job, Size: 1}},
	}
}

// That the daemon stops is not that an order has failed: a scheduler that hears
// nothing gives it again.
func TestPreheatStops(t *testing.T) {
	p, quit := newTestPreheater(t)
	p.take(testOrder("1"))
	quit()
	p.take(testOrder("2"))
	p.tasksEnd.Wait()
	for _, r := range p.reports(time.Now()) {
		if r.State != jobs.Waiting && r.State != jobs.Running {
			t.Errorf("reported as %s: %s", r.State, r.Reason)
		}
	}
	p.close()
	p.take(testOrder("3"))
	if list := p.reports(time.Now()); len(list) != 0 {
		t.Errorf("an order to a daemon that has stopped is answered: %+v", list)
	}
}

// A question after an order makes no room for one.
func TestPreheatForgetsNothingForQuestions(t *testing.T) {
	p, _ := newTestPreheater(t)
	for i := range maxTasks {
		p.tasks[taskKey{job: "done", image: i}] = &task{cancel: func() {}, ended: time.Now()}
	}
	o := testOrder("1")
	o.Known = true
	p.take(o)
	list := p.reports(time.Now())
	if len(list) != 1 || list[0].State != jobs.Unknown || len(p.tasks) != maxTasks {
		t.Errorf("%+v, and %d orders are remembered", list, len(p.tasks))
	}
}
