package jobs

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// elsewhere is a store with one job, which another scheduler has.
type elsewhere struct {
	job   Job
	lists atomic.Int64
}

func (e *elsewhere) Put(context.Context, string, Job) (bool, error) { return false, nil }
func (e *elsewhere) Claim(context.Context, string) ([]Job, error)   { return nil, nil }
func (e *elsewhere) Cancel(context.Context, string) error           { return nil }
func (e *elsewhere) List(_ context.Context, ids ...string) ([]Job, error) {
	e.lists.Add(1)
	return []Job{e.job}, nil
}

// Who waits for a job of another scheduler costs the store a look a second,
// however much goes on in the jobs here.
func TestWaitForAnothersJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &elsewhere{job: Job{ID: "77", Revision: 3, State: Running}}
		m := NewManager(ManagerConfig{Store: store, Send: func(context.Context, string, any) error { return nil }})
		m.Connected("c", node(0, "a"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ran := make(chan error, 1)
		go func() { ran <- m.Run(ctx) }()
		if _, err := m.Create(ctx, Spec{Images: []string{"a"}}, nil); err != nil {
			t.Fatal(err)
		}
		var busy sync.WaitGroup
		defer busy.Wait()
		busy.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m.Connected("c"+strconv.Itoa(i), Facts{Name: strconv.Itoa(i)})
				time.Sleep(tickEvery)
			}
		})
		job, err := m.Wait(ctx, "77", 3)
		if err != nil || job.Revision != 3 {
			t.Errorf("%+v, %v", job, err)
		}
		if n := store.lists.Load(); n > 12 {
			t.Errorf("the store was asked %d times within ten seconds", n)
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
