package standalone

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/jobstore"
)

// DefaultJobStore is a file of the system for root, of the user for others,
// and memory where there can be none: a scheduler needs no disk.
const DefaultJobStore = "default"

// openRecords opens where records of jobs are kept. The error is a
// *ConfigError.
func openRecords(where string, log *slog.Logger) (jobstore.Store, error) {
	if where != DefaultJobStore {
		s, err := jobstore.Open(where)
		if err != nil {
			return nil, &ConfigError{"job-store", err}
		}
		return s, nil
	}
	file := "/var/lib/shoal-scheduler/jobs.db"
	if os.Geteuid() != 0 {
		dir, err := os.UserCacheDir()
		if err != nil {
			dir = os.TempDir()
		}
		file = filepath.Join(dir, "shoal-scheduler", "jobs.db")
	}
	s, err := jobstore.OpenFile(file)
	if err != nil {
		log.Warn("records of preheat jobs are kept in memory alone", "file", file, "err", err)
		return jobstore.NewMemory(), nil
	}
	return s, nil
}

// Requests per second that the API takes, and at once.
const (
	apiRate, apiBurst = 50, 200
)

// protect lets through to h only who may, and no faster than apiRate. Who may
// not is turned away first, and so keeps nobody else out.
func (s *Scheduler) protect(h http.Handler) http.Handler {
	return s.guard.Protect(api.Limit(apiRate, apiBurst, h))
}

// Bounds of what one answer says of the cluster.
const maxSwarms, maxJobs = 100, 50

// status says what the cluster is doing.
func (s *Scheduler) status(ctx context.Context) api.Status {
	stats := s.server.Stats(ctx)
	st := api.Status{
		Version: s.cfg.Version, Nodes: s.jobs.Nodes(), Swarms: []api.Swarm{}, Jobs: []jobs.Job{},
		Totals: api.Totals{
			Nodes: stats.Peers, Swarms: stats.Swarms, Members: stats.Members, Streams: stats.Streams, Holds: stats.Holds, Bans: stats.Bans,
		},
	}
	for _, sw := range s.server.Swarms(ctx, maxSwarms) {
		st.Swarms = append(st.Swarms, api.Swarm{Blob: string(sw.Blob), Size: sw.Size, Wanting: sw.Wanting, Complete: sw.Complete, Streams: sw.Streams})
	}
	list, err := s.jobs.List(ctx)
	if err != nil {
		s.log.Warn("preheat jobs cannot be listed", "err", err)
	}
	st.Jobs = append(st.Jobs, list[:min(len(list), maxJobs)]...)
	return st
}
