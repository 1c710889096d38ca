package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

const (
	// maxTasks bounds the orders that are remembered, done ones included;
	// those are for an hour at most, which is how long a scheduler may take
	// to ask again.
	maxTasks = 1024
	keepTask = time.Hour
	// preheatBlobs is how many contents are fetched at once, of all orders
	// together: as many as a runtime takes of one image.
	preheatBlobs = 3
	// preheatAttempts is how often a content is tried that failed for
	// another reason than a refusal; retryAfter is the first pause.
	preheatAttempts = 3
	retryAfter      = 2 * time.Second
	// reportEvery is how often progress is reported, beatEvery how often an
	// order under way is reported at least.
	reportEvery = 500 * time.Millisecond
	beatEvery   = 5 * time.Second
)

// preheater carries out what schedulers order: contents that are to be here
// before anybody on this node asks for them.
type preheater struct {
	log   *slog.Logger
	send  func(context.Context, scheduler.In)
	blobs mirrorBlobs
	tags  interface {
		Learn(registry.Repository, string, mirror.Descriptor)
		Settle(context.Context, mirror.Caller, registry.Repository, digest.Digest)
		Vouch(context.Context, mirror.Caller, registry.Repository, digest.Digest) error
	}
	pods *precedence
	// own says whether jobs without credentials use the node's for a registry.
	own      func(host string) bool
	slots    chan struct{}
	vitals   func() jobs.Vitals
	wake     chan struct{}
	ctx      context.Context // of all tasks
	tasksEnd sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu:
	tasks    map[taskKey]*task
	declined []jobs.Report // to be sent
	closed   bool
}

type taskKey struct {
	job     string
	image   int
	resolve bool
}

// task is one order.
type task struct {
	order  jobs.Order
	cancel context.CancelFunc

	// Guarded by preheater.mu:
	auth   string
	report jobs.Report
	dirty  bool // what report says has not been sent
	sent   time.Time
	ended  time.Time
}

// newPreheater returns one whose work ends with ctx.
func newPreheater(ctx context.Context, d *Daemon, tags *mirror.Mirror) *preheater {
	blobs := d.blobs()
	blobs.pods = nil
	return &preheater{
		ctx: ctx, log: d.log, send: d.cluster.send, tags: tags, pods: d.pods, vitals: d.vitals,
		blobs: blobs,
		own:   func(host string) bool { return d.cfg.PreheatNodeCredentials || d.cfg.authFor(host) == mirror.Node },
		slots: make(chan struct{}, preheatBlobs), wake: make(chan struct{}, 1), tasks: map[taskKey]*task{},
	}
}

// run reports until ctx ends, and then ends what is under way.
func (p *preheater) run(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	defer p.close()
	var told jobs.Vitals
	var toldAt time.Time
	for {
		select {
		case <-tick.C:
		case <-p.wake:
		case <-ctx.Done():
			return
		}
		for _, r := range p.reports(time.Now()) {
			p.send(ctx, r)
		}
		now := p.vitals()
		if since := time.Since(toldAt); since > 30*time.Second || now != told && since > 2*time.Second {
			told, toldAt = now, time.Now()
			p.send(ctx, now)
		}
	}
}

// close waits for the tasks, whose context has ended.
func (p *preheater) close() {
	p.mu.Lock()
	p.closed = true
	for _, t := range p.tasks {
		t.cancel()
	}
	p.mu.Unlock()
	p.tasksEnd.Wait()
}

// reports returns what is to be reported, and forgets old orders.
func (p *preheater) reports(now time.Time) []jobs.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.declined
	p.declined = nil
	for key, t := range p.tasks {
		if t.dirty || t.ended.IsZero() && now.Sub(t.sent) > beatEvery {
			r := t.report
			r.Layers = append([]jobs.Layer(nil), r.Layers...)
			list = append(list, r)
			t.dirty, t.sent = false, now
		}
		if !t.ended.IsZero() && now.Sub(t.ended) > keepTask {
			delete(p.tasks, key)
		}
	}
	return list
}

func (p *preheater) hurry() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take takes an order in. One that is here already is reported again, and
// keeps the newer credential. One for other contents, since the image was
// resolved again and its tag had moved, takes its place.
func (p *preheater) take(o *jobs.Order) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.hurry()
	key := taskKey{o.Job, o.Image, o.Resolve}
	if t := p.tasks[key]; t != nil && (t.ended.IsZero() || !o.Resolve) {
		if sameContents(t.order.Contents, o.Contents) {
			if o.Authorization != "" {
				t.auth = o.Authorization
			}
			t.dirty = true
			return
		}
		t.cancel()
		delete(p.tasks, key)
	}
	t := &task{order: *o, auth: o.Authorization, dirty: true, cancel: func() {}}
	t.order.Authorization = ""
	t.report = jobs.Report{Job: o.Job, Image: o.Image, Resolve: o.Resolve, State: jobs.Waiting}
	switch {
	case p.closed: // as carryOut
	case o.Known:
		p.decline(t, jobs.Unknown, "")
	case !p.makeRoom():
		p.decline(t, jobs.Failed, "the daemon has too many orders")
	default:
		p.tasks[key] = t
		ctx, cancel := context.WithTimeout(p.ctx, o.Deadline)
		t.cancel = cancel
		p.tasksEnd.Go(func() {
			defer cancel()
			p.carryOut(ctx, t)
		})
	}
}

func sameContents(a, b []jobs.Content) bool {
	return slices.EqualFunc(a, b, func(a, b jobs.Content) bool { return a.Digest == b.Digest })
}

// decline has an order answered that is not begun. The caller holds mu.
func (p *preheater) decline(t *task, s jobs.State, why string) {
	t.report.State, t.report.Reason, t.report.Again = s, why, true
	if len(p.declined) < maxTasks { // the scheduler asks again
		p.declined = append(p.declined, t.report)
	}
}

// makeRoom reports whether another order can be taken. The caller holds mu.
func (p *preheater) makeRoom() bool {
	if len(p.tasks) < maxTasks {
		return true
	}
	var oldest taskKey
	var at time.Time
	for key, t := range p.tasks {
		if !t.ended.IsZero() && (at.IsZero() || t.ended.Before(at)) {
			oldest, at = key, t.ended
		}
	}
	delete(p.tasks, oldest)
	return !at.IsZero()
}

// stop drops what is left of a job.
func (p *preheater) stop(job string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, t := range p.tasks {
		if key.job == job {
			t.cancel()
		}
	}
}

// carryOut does what an order says.
func (p *preheater) carryOut(ctx context.Context, t *task) {
	repo, err := repository(t.order.Repository, t.order.Reference)
	if err == nil && t.order.Resolve {
		var res *jobs.Resolution
		res, err = p.resolve(ctx, t, repo, p.caller(t))
		p.update(t, func(r *jobs.Report) { r.Resolved = res })
	} else if err == nil {
		err = p.fetchAll(ctx, t, repo)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return // whoever gave the order gives it again when the daemon is back
	}
	t.ended, t.dirty, t.auth = time.Now(), true, ""
	switch {
	case err == nil:
		t.report.State = jobs.Done
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		t.report.State, t.report.Reason = jobs.Failed, "not done in the time that the job had"
	case ctx.Err() != nil:
		t.report.State, t.report.Reason = jobs.Canceled, "canceled"
	default:
		t.report.State, t.report.Reason, t.report.Again = jobs.Failed, err.Error(), !refusedFor(err)
		p.log.Warn("preheat failed", "job", t.order.Job, "repository", t.order.Repository, "reference", t.order.Reference, "err", err)
	}
	p.hurry()
}

// update changes what is reported of a task.
func (p *preheater) update(t *task, f func(*jobs.Report)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&t.report)
	t.dirty = true
}

// repository checks what is to be asked for by the rules of requests.
func repository(name, ref string) (registry.Repository, error) {
	host, path, _ := strings.Cut(name, "/")
	host, err := registry.ParseHost(host)
	if err == nil {
		_, err = registry.ParsePath("/v2/" + path + "/manifests/" + ref)
	}
	if err != nil {
		return registry.Repository{}, fmt.Errorf("image %s: %w", name, err)
	}
	return registry.Repository{Host: host, Name: path}, nil
}

// refusedFor reports whether asking again, or another node asking, is of no
// use.
func refusedFor(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Status < http.StatusInternalServerError && e.Status != http.StatusTooManyRequests || errors.Is(err, errImage)
}

// caller returns in whose name origins are asked: that of the job. The node's
// own credentials are for the jobs of a scheduler only where the operator of the
// node said so.
func (p *preheater) caller(t *task) mirror.Caller {
	p.mu.Lock()
	auth := t.auth
	p.mu.Unlock()
	host, _, _ := strings.Cut(t.order.Repository, "/")
	switch {
	case auth != "":
		return mirror.Caller{Authorization: auth}
	case p.own(host):
		return mirror.Caller{}
	default:
		return mirror.Caller{Public: true, ID: "public"}
	}
}

// fetchAll brings the contents of an order here.
func (p *preheater) fetchAll(ctx context.Context, t *task, repo registry.Repository) error {
	contents := t.order.Contents
	if len(contents) == 0 {
		return fmt.Errorf("%w: the order names no content", errImage)
	}
	p.update(t, func(r *jobs.Report) {
		r.State, r.Layers = jobs.Running, make([]jobs.Layer, len(contents))
		for i := range r.Layers {
			r.Layers[i].State = jobs.Waiting
		}
	})
	// What the order says is what other nodes said.
	if err := p.confirm(ctx, t, repo); err != nil {
		return err
	}
	// One that fails does not end the others: the more is here, the better.
	errs := make([]error, len(contents))
	var group errgroup.Group
	group.SetLimit(preheatBlobs)
	for i := range contents {
		group.Go(func() error {
			select {
			case p.slots <- struct{}{}:
				defer func() { <-p.slots }()
				errs[i] = p.fetch(ctx, t, repo, i)
			case <-ctx.Done():
				errs[i] = ctx.Err()
			}
			p.update(t, func(r *jobs.Report) {
				if errs[i] != nil {
					r.Layers[i].State, r.Layers[i].Reason = jobs.Failed, errs[i].Error()
				} else {
					r.Layers[i].State, r.Layers[i].Bytes = jobs.Done, contents[i].Size
				}
			})
			return nil
		})
	}
	_ = group.Wait() // each has its own error
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if missing := p.missing(contents); missing > 0 {
		return fmt.Errorf("%w: %d of its %d contents did not stay: the cache is too small for them", errImage, missing, len(contents))
	}
	if err := p.tags.Vouch(ctx, p.caller(t), repo, digest.Digest(contents[0].Digest)); err != nil {
		p.log.Info("preheated image is served only while its registry answers: no permission is recorded", "repository", repo, "digest", contents[0].Digest, "err", err)
	}
	p.learn(ctx, t, repo)
	return nil
}

// missing counts the contents that are not held.
func (p *preheater) missing(contents []jobs.Content) (count int) {
	for _, c := range contents {
		if size, here := p.blobs.store.Stat(digest.Digest(c.Digest)); !here || size != c.Size {
			count++
		}
	}
	return count
}

// learn takes in what the tag stands for, so that later pulls by it find the
// image when the origin cannot be asked. Nobody's word counts but the origin's,
// which this node asks itself.
func (p *preheater) learn(ctx context.Context, t *task, repo registry.Repository) {
	tag, top := t.order.Tag, t.order.Contents[0]
	if tag == "" && !strings.Contains(t.order.Reference, ":") {
		tag = t.order.Reference
	}
	if tag == "" {
		return
	}
	if _, err := repository(t.order.Repository, tag); err != nil || strings.Contains(tag, ":") {
		return
	}
	said, err := p.top(ctx, p.caller(t), repo, tag)
	switch {
	case err != nil:
		p.log.Info("preheated tag is not remembered: the registry cannot be asked what it stands for", "repository", repo, "tag", tag, "err", err)
	case said.Digest.String() != top.Digest:
		p.log.Info("preheated tag is not remembered: it stands for another image now", "repository", repo, "tag", tag, "preheated", top.Digest, "now", said.Digest)
	default:
		p.tags.Learn(repo, tag, mirror.Descriptor{MediaType: t.order.MediaType, Digest: said.Digest, Size: top.Size})
	}
}

// fetch brings one content here, with a few attempts.
func (p *preheater) fetch(ctx context.Context, t *task, repo registry.Repository, i int) error {
	return p.attempt(ctx, t, func(caller mirror.Caller) error { return p.follow(ctx, t, caller, repo, i) })
}

// attempt does something in the name of a task a few times, until it succeeds or
// doing it again is of no use.
func (p *preheater) attempt(ctx context.Context, t *task, do func(mirror.Caller) error) error {
	for attempt := 1; ; attempt++ {
		caller := p.caller(t)
		err := do(caller)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case refusedFor(err) && p.caller(t) != caller: // it got another one meanwhile
		case refusedFor(err) || attempt == preheatAttempts || errors.Is(err, store.ErrUnavailable):
			return err
		}
		pause := time.NewTimer(retryAfter << (attempt - 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// follow has the content fetched, and steps back while pods wait for others.
func (p *preheater) follow(ctx context.Context, t *task, caller mirror.Caller, repo registry.Repository, i int) error {
	content := t.order.Contents[i]
	req := mirror.Request{Caller: caller, Repo: repo, Digest: digest.Digest(content.Digest), Manifest: content.Manifest, Size: content.Size, Proven: true}
	for {
		polite, done, err := p.pods.yield(ctx)
		if err != nil {
			return err
		}
		err = p.followOnce(polite, t, req, i)
		stepBack := polite.Err() != nil && ctx.Err() == nil
		done()
		if err == nil {
			break
		}
		if stepBack {
			continue
		}
		return err
	}
	if t.order.Pin <= 0 || content.Size == 0 { // nothing to keep
		return nil
	}
	return p.blobs.store.Pin(req.Digest, time.Now().Add(t.order.Pin))
}

func (p *preheater) followOnce(ctx context.Context, t *task, req mirror.Request, i int) error {
	req.Whole = true
	r, err := p.blobs.fetcher.Open(ctx, p.blobs.request(req))
	if err != nil {
		return err
	}
	defer r.Close()
	if r.Size() != req.Size {
		return fmt.Errorf("%w: content %s has %d bytes, not the %d that the manifest says", errImage, req.Digest, r.Size(), req.Size)
	}
	return r.Follow(ctx, func(bytes int64) {
		p.update(t, func(rep *jobs.Report) { rep.Layers[i].State, rep.Layers[i].Bytes = jobs.Running, bytes })
	})
}
