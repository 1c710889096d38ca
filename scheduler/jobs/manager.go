package jobs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Store keeps the records of jobs, for one scheduler or for several that
// share it.
type Store interface {
	// Put writes a record and says that its scheduler, the owner, is alive.
	// The error is ErrNotOwner if another one has the job. It reports
	// whether the job is to be canceled.
	Put(ctx context.Context, owner string, job Job) (cancel bool, err error)
	// List returns the jobs with these IDs whole, or without IDs all jobs, the
	// newest first, without their nodes.
	List(ctx context.Context, ids ...string) ([]Job, error)
	// Claim makes the owner that of all jobs that have not ended and whose
	// owner is not alive, and returns them.
	Claim(ctx context.Context, owner string) ([]Job, error)
	// Cancel asks whoever has the job to cancel it. The error is ErrUnknown if
	// there is none.
	Cancel(ctx context.Context, id string) error
}

// ErrNotOwner says that another scheduler has the job.
var ErrNotOwner = errors.New("another scheduler has the job")

// Lease is how long an owner lives without a Put; it puts every job that has
// not ended a few times in that time. MaxEnded is how many jobs that have
// ended a Store keeps at least.
const (
	Lease    = 10 * time.Second
	MaxEnded = 256
)

const (
	tickEvery  = 100 * time.Millisecond
	saveEvery  = time.Second
	renewEvery = 2 * time.Second
	// keepEnded is how long a job that has ended is answered for from memory.
	keepEnded = time.Minute
	// storeTimeout bounds one operation of the store.
	storeTimeout = 5 * time.Second
)

// ManagerConfig puts a Manager together.
type ManagerConfig struct {
	Core  Config // zero: DefaultConfig
	Store Store
	// Send carries a message to the daemon behind a connection. It may wait.
	Send func(ctx context.Context, to string, msg any) error
	Log  *slog.Logger
}

// Manager runs the jobs of one scheduler. Its methods may be called
// concurrently; Connected, Gone, Report and Vitals never wait.
type Manager struct {
	cfg   ManagerConfig
	owner string
	log   *slog.Logger
	wake  chan struct{}

	mu sync.Mutex
	// Guarded by mu:
	core    *Core
	changed chan struct{} // closed and replaced when a job has changed
	lastID  int64
}

// NewManager returns a manager that does not run yet.
func NewManager(cfg ManagerConfig) *Manager {
	if cfg.Core == (Config{}) {
		cfg.Core = DefaultConfig()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg, owner: rand.Text(), log: cfg.Log, wake: make(chan struct{}, 1), core: NewCore(cfg.Core), changed: make(chan struct{})}
}

// Run carries the jobs on until ctx ends. They go on in the daemons then, and
// with the scheduler that takes them over. It is to be called once.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.send(ctx) })
	wg.Go(func() { m.keep(ctx) })
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.do(func(c *Core) { c.Tick(time.Now()) })
		case <-ctx.Done():
			return nil
		}
	}
}

// do does something with the core, and what follows from it.
func (m *Manager) do(f func(*Core)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.core.revisions()
	f(m.core)
	if m.core.revisions() != before {
		close(m.changed)
		m.changed = make(chan struct{})
	}
	if len(m.core.outs) > 0 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// revisions changes whenever one of the jobs does.
func (c *Core) revisions() (sum int64) {
	for _, j := range c.list {
		sum += j.Revision + 1
	}
	return sum
}

// send carries messages to daemons.
func (m *Manager) send(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		outs := m.core.Take()
		m.mu.Unlock()
		for _, out := range outs {
			// One that is not there any more is found out otherwise.
			if err := m.cfg.Send(ctx, out.To, out.Msg); err != nil && ctx.Err() == nil {
				m.log.Debug("preheat order not sent", "to", out.To, "err", err)
			}
		}
	}
}

// keep saves records and takes over jobs that nobody has.
func (m *Manager) keep(ctx context.Context) {
	save, renew := time.NewTicker(saveEvery), time.NewTicker(renewEvery)
	defer save.Stop()
	defer renew.Stop()
	m.claim(ctx)
	for {
		select {
		case <-save.C:
			m.save(ctx, false)
		case <-renew.C:
			m.save(ctx, true)
			m.claim(ctx)
		case <-ctx.Done():
			// The last word on what has ended, and how far the rest is.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
			defer cancel()
			m.save(last, false)
			return
		}
	}
}

// save writes what has changed, or all that has not ended.
func (m *Manager) save(ctx context.Context, all bool) {
	m.mu.Lock()
	var dirty []Job
	for _, j := range m.core.list {
		if j.Revision != j.saved || all && !j.Ended() {
			dirty = append(dirty, j.Clone())
		}
	}
	m.mu.Unlock()
	for _, job := range dirty {
		if err := m.put(ctx, job); err != nil {
			m.log.Error("preheat job is not saved", "job", job.ID, "err", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.core.IDs() {
		if j := m.core.jobs[id]; j.Ended() && j.saved == j.Revision && time.Since(j.ended) > keepEnded {
			m.core.Drop(id)
		}
	}
}

func (m *Manager) put(ctx context.Context, job Job) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	stop, err := m.cfg.Store.Put(ctx, m.owner, job)
	if err != nil && !errors.Is(err, ErrNotOwner) {
		return err
	}
	m.do(func(c *Core) {
		switch j := c.jobs[job.ID]; {
		case j == nil:
		case err != nil:
			c.Drop(job.ID)
		case stop && !j.Ended():
			_ = c.Cancel(time.Now(), job.ID) // it is there
		default:
			j.saved = max(j.saved, job.Revision)
		}
	})
	return err
}

func (m *Manager) claim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	list, err := m.cfg.Store.Claim(ctx, m.owner)
	if err != nil {
		m.log.Error("preheat jobs of other schedulers cannot be looked for", "err", err)
	}
	for _, job := range list {
		m.log.Info("preheat job taken over", "job", job.ID)
		m.do(func(c *Core) { c.Adopt(time.Now(), job) })
	}
}

// Connected takes in a daemon and returns the name by which it is known: the
// one it gave, or another while an older one has that.
func (m *Manager) Connected(id string, f Facts) (name string) {
	m.do(func(c *Core) { name = c.Connected(time.Now(), id, f) })
	return name
}

// Gone takes in that a daemon has gone.
func (m *Manager) Gone(id string) { m.do(func(c *Core) { c.Gone(time.Now(), id) }) }

// Report takes in what a daemon says of an order.
func (m *Manager) Report(id string, r Report) {
	m.do(func(c *Core) { c.Report(time.Now(), id, r) })
}

// Vitals takes in what a daemon says of its traffic.
func (m *Manager) Vitals(id string, v Vitals) { m.do(func(c *Core) { c.Vitals(id, v) }) }

// Nodes returns the nodes that are connected.
func (m *Manager) Nodes() []NodeInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.core.Nodes()
}

// Create begins a job, once there is a record of it.
func (m *Manager) Create(ctx context.Context, spec Spec, creds Credentials) (job Job, err error) {
	m.do(func(c *Core) {
		// Microseconds, so that no two schedulers draw the same, and as a
		// number, which is what some clients want.
		m.lastID = max(m.lastID+1, time.Now().UnixMicro())
		job, err = c.Create(time.Now(), strconv.FormatInt(m.lastID, 10), spec, creds)
	})
	if err != nil {
		return Job{}, err
	}
	if err := m.put(ctx, job); err != nil {
		m.do(func(c *Core) {
			_ = c.Cancel(time.Now(), job.ID) // it is there, or needs no canceling
			c.Drop(job.ID)
		})
		return Job{}, fmt.Errorf("saving the job: %w", err)
	}
	m.log.Info("preheat job created", "job", job.ID, "images", job.Spec.Images, "nodes", len(job.Nodes))
	return job, nil
}

// Get returns a job, whichever scheduler has it. The error is ErrUnknown or
// the store's.
func (m *Manager) Get(ctx context.Context, id string) (Job, error) {
	m.mu.Lock()
	job, ok := m.core.Get(id)
	m.mu.Unlock()
	if ok {
		return job, nil
	}
	list, err := m.cfg.Store.List(ctx, id)
	switch {
	case err != nil:
		return Job{}, err
	case len(list) == 0:
		return Job{}, ErrUnknown
	}
	return list[0], nil
}

// Wait returns a job once its revision is another than the one given, it has
// ended, or ctx is done: then as it is.
func (m *Manager) Wait(ctx context.Context, id string, than int64) (Job, error) {
	poll := time.NewTicker(saveEvery)
	defer poll.Stop()
	for {
		m.mu.Lock()
		j := m.core.jobs[id]
		look := j == nil || j.Revision != than || j.Ended()
		changed := m.changed
		if j == nil {
			changed = nil // what changes here says nothing of it
		}
		m.mu.Unlock()
		if look {
			job, err := m.Get(ctx, id)
			if err != nil || job.Revision != than || job.Ended() {
				return job, err
			}
		}
		select {
		case <-changed:
		case <-poll.C: // of a job of another scheduler
		case <-ctx.Done():
			return m.Get(context.WithoutCancel(ctx), id)
		}
	}
}

// List returns all jobs, the newest first, without their nodes.
func (m *Manager) List(ctx context.Context) ([]Job, error) {
	list, err := m.cfg.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	for i := range list {
		if j := m.core.jobs[list[i].ID]; j != nil {
			list[i] = Summary(j.Job)
		}
		seen[list[i].ID] = true
	}
	for _, j := range m.core.list {
		if !seen[j.ID] {
			list = append(list, Summary(j.Job))
		}
	}
	slices.SortFunc(list, newestFirst)
	return list, nil
}

func newestFirst(a, b Job) int { return b.Created.Compare(a.Created) }

// Summary returns a job without its nodes, and images without contents.
func Summary(j Job) Job {
	j.Nodes = nil
	j.Images = slices.Clone(j.Images)
	for i := range j.Images {
		j.Images[i].Contents = nil
	}
	return j
}

// Cancel ends a job, whichever scheduler has it. The error is ErrUnknown or
// the store's.
func (m *Manager) Cancel(ctx context.Context, id string) (Job, error) {
	mine := false
	m.do(func(c *Core) { mine = c.Cancel(time.Now(), id) == nil })
	if !mine {
		if err := m.cfg.Store.Cancel(ctx, id); err != nil {
			return Job{}, err
		}
	}
	return m.Get(ctx, id)
}

// Renew gives a job other credentials. The error is ErrNotOwner if another
// scheduler has the job, or ErrUnknown.
func (m *Manager) Renew(ctx context.Context, id string, creds Credentials) (err error) {
	m.do(func(c *Core) { err = c.Renew(time.Now(), id, creds) })
	if errors.Is(err, ErrUnknown) {
		job, gerr := m.Get(ctx, id)
		if gerr != nil {
			return gerr
		}
		if !job.Ended() {
			return ErrNotOwner
		}
		return nil
	}
	return err
}
