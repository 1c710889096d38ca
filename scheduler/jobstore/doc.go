// Package jobstore keeps records of preheat jobs: in memory, in a file of
// bbolt, or in Redis or Valkey, which several schedulers share.
//
// It knows how a record is laid down and who may write it. It must not know
// what a job means. All three keep one contract, and one suite of tests runs
// on each.
package jobstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Store is what Open returns: a jobs.Store that is to be closed.
type Store interface {
	jobs.Store
	Close() error
}

// Open opens the store that where names: memory, redis://…, rediss://…,
// unix://… (a socket of Redis), or else a file. Errors do not repeat a
// password in it.
func Open(where string) (Store, error) {
	scheme, _, isURL := strings.Cut(where, "://")
	switch {
	case where == "memory":
		return NewMemory(), nil
	case isURL && (scheme == "redis" || scheme == "rediss" || scheme == "unix"):
		return OpenRedis(where)
	case isURL:
		return nil, fmt.Errorf("%q is none of memory, redis://HOST:PORT, rediss://HOST:PORT, unix://SOCKET and a file", scheme+"://")
	case where == "":
		return nil, errors.New("names nothing")
	}
	return OpenFile(where)
}

// record is a job in the two forms in which it is kept: a list of jobs need
// not read the nodes of each.
func record(job jobs.Job) (whole, summary []byte, err error) {
	if whole, err = json.Marshal(job); err == nil {
		summary, err = json.Marshal(jobs.Summary(job))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("record of job %s: %w", job.ID, err)
	}
	return whole, summary, nil
}

func parse(raw []byte) (job jobs.Job, err error) {
	if err = json.Unmarshal(raw, &job); err != nil {
		return job, fmt.Errorf("record of a job: %w", err)
	}
	return job, nil
}
