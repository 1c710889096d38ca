package jobstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

var (
	bucketWhole   = []byte("jobs")
	bucketSummary = []byte("summaries")
)

// File keeps records in a file that one process at a time has open. So who
// has it open owns every job, and one that was left unfinished is free.
type File struct {
	db *bolt.DB

	mu   sync.Mutex
	own  map[string]string // owners of jobs that this process has put or claimed
	stop map[string]bool   // to be canceled
}

// OpenFile opens or makes the file, and the directory that it is in.
func OpenFile(path string) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is in use by another scheduler", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucketWhole)
		_, err2 := tx.CreateBucketIfNotExists(bucketSummary)
		return errors.Join(err, err2)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return &File{db: db, own: map[string]string{}, stop: map[string]bool{}}, nil
}

// Put implements jobs.Store.
func (f *File) Put(_ context.Context, owner string, job jobs.Job) (cancel bool, err error) {
	whole, summary, err := record(job)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if had, ok := f.own[job.ID]; ok && had != owner {
		return false, jobs.ErrNotOwner
	}
	f.own[job.ID], cancel = owner, f.stop[job.ID]
	if job.Ended() {
		delete(f.stop, job.ID)
	}
	err = f.db.Update(func(tx *bolt.Tx) error {
		key := []byte(job.ID)
		if err := errors.Join(tx.Bucket(bucketWhole).Put(key, whole), tx.Bucket(bucketSummary).Put(key, summary)); err != nil {
			return err
		}
		if !job.Ended() {
			return nil
		}
		return f.prune(tx)
	})
	return cancel, err
}

// prune forgets the oldest jobs that have ended. The caller holds mu.
func (f *File) prune(tx *bolt.Tx) error {
	var ended []string
	err := tx.Bucket(bucketSummary).ForEach(func(_, raw []byte) error {
		job, err := parse(raw)
		if err == nil && job.Ended() {
			ended = append(ended, job.ID)
		}
		return err
	})
	slices.SortFunc(ended, byAge)
	for _, id := range ended[:max(0, len(ended)-jobs.MaxEnded)] {
		delete(f.own, id)
		err = errors.Join(err, tx.Bucket(bucketWhole).Delete([]byte(id)), tx.Bucket(bucketSummary).Delete([]byte(id)))
	}
	return err
}

// List implements jobs.Store.
func (f *File) List(_ context.Context, ids ...string) (list []jobs.Job, err error) {
	err = f.db.View(func(tx *bolt.Tx) error {
		for _, id := range ids {
			if raw := tx.Bucket(bucketWhole).Get([]byte(id)); raw != nil {
				job, err := parse(raw)
				if err != nil {
					return err
				}
				list = append(list, job)
			}
		}
		if len(ids) > 0 {
			return nil
		}
		return tx.Bucket(bucketSummary).ForEach(func(_, raw []byte) error {
			job, err := parse(raw)
			list = append(list, job)
			return err
		})
	})
	slices.SortFunc(list, func(a, b jobs.Job) int { return byAge(b.ID, a.ID) })
	return list, err
}

// Claim implements jobs.Store.
func (f *File) Claim(ctx context.Context, owner string) ([]jobs.Job, error) {
	all, err := f.List(ctx)
	if err != nil {
		return nil, err
	}
	var free []string
	f.mu.Lock()
	for _, job := range all {
		if _, taken := f.own[job.ID]; !taken && !job.Ended() {
			f.own[job.ID] = owner
			free = append(free, job.ID)
		}
	}
	f.mu.Unlock()
	if len(free) == 0 {
		return nil, nil
	}
	return f.List(ctx, free...)
}

// Cancel implements jobs.Store.
func (f *File) Cancel(ctx context.Context, id string) error {
	list, err := f.List(ctx, id)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return jobs.ErrUnknown
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !list[0].Ended() {
		f.stop[id] = true
	}
	return nil
}

// Close implements Store.
func (f *File) Close() error { return f.db.Close() }
