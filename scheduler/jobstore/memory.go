package jobstore

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Memory keeps records as long as the process lives. Several managers may
// share one, as several schedulers share a Redis.
type Memory struct {
	lease time.Duration

	mu   sync.Mutex
	rows map[string]*row // guarded by mu
}

type row struct {
	whole, summary []byte
	id, owner      string
	until          time.Time // the owner lives
	ended, cancel  bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{lease: jobs.Lease, rows: map[string]*row{}} }

// Put implements jobs.Store.
func (m *Memory) Put(_ context.Context, owner string, job jobs.Job) (cancel bool, err error) {
	whole, summary, err := record(job)
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rows[job.ID]
	if r != nil && r.owner != owner && (r.ended || time.Now().Before(r.until)) {
		return false, jobs.ErrNotOwner
	}
	if r == nil {
		r = &row{id: job.ID}
		m.rows[job.ID] = r
	}
	r.whole, r.summary, r.owner, r.until, r.ended = whole, summary, owner, time.Now().Add(m.lease), job.Ended()
	m.prune()
	return r.cancel, nil
}

// prune forgets the oldest jobs that have ended. The caller holds mu.
func (m *Memory) prune() {
	var ended []string
	for id, r := range m.rows {
		if r.ended {
			ended = append(ended, id)
		}
	}
	slices.SortFunc(ended, byAge)
	for _, id := range ended[:max(0, len(ended)-jobs.MaxEnded)] {
		delete(m.rows, id)
	}
}

// byAge sorts IDs, which are numbers that grow.
func byAge(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }

// List implements jobs.Store.
func (m *Memory) List(_ context.Context, ids ...string) ([]jobs.Job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []jobs.Job
	add := func(raw []byte) error {
		job, err := parse(raw)
		list = append(list, job)
		return err
	}
	for _, id := range ids {
		if r := m.rows[id]; r != nil {
			if err := add(r.whole); err != nil {
				return nil, err
			}
		}
	}
	if len(ids) > 0 {
		return list, nil
	}
	for _, r := range m.rows {
		if err := add(r.summary); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b jobs.Job) int { return byAge(b.ID, a.ID) })
	return list, nil
}

// Claim implements jobs.Store.
func (m *Memory) Claim(_ context.Context, owner string) ([]jobs.Job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []jobs.Job
	for _, r := range m.rows {
		if r.ended || r.owner == owner || time.Now().Before(r.until) {
			continue
		}
		job, err := parse(r.whole)
		if err != nil {
			return list, err
		}
		r.owner, r.until = owner, time.Now().Add(m.lease)
		list = append(list, job)
	}
	return list, nil
}

// Cancel implements jobs.Store.
func (m *Memory) Cancel(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rows[id]
	if r == nil {
		return jobs.ErrUnknown
	}
	r.cancel = true
	return nil
}

// Close implements Store.
func (*Memory) Close() error { return nil }
