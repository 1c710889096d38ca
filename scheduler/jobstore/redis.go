package jobstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Redis keeps records in a Redis or Valkey that several schedulers share.
//
// Keys, all in one hash slot of a cluster:
//
//	shoal:{jobs}:all          sorted set of the IDs, by age
//	shoal:{jobs}:ended        sorted set of the IDs of jobs that have ended
//	shoal:{jobs}:job:<id>     hash: whole, summary, ended, cancel
//	shoal:{jobs}:owner:<id>   the owner, as long as it lives
type Redis struct {
	db    *redis.Client
	lease time.Duration
}

const prefix = "shoal:{jobs}:"

// put writes a record unless another owner lives or the job has ended under
// another one, and keeps the number of jobs that have ended bounded.
var put = redis.NewScript(`
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return -1 end
if not owner and redis.call('HGET', KEYS[1], 'ended') == '1' and redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return -1 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[1], 'whole', ARGV[3], 'summary', ARGV[4], 'ended', ARGV[5], 'owner', ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[6], ARGV[7])
if ARGV[5] == '1' then
  redis.call('ZADD', KEYS[4], ARGV[6], ARGV[7])
  local old = redis.call('ZRANGE', KEYS[4], 0, -1 - ARGV[8])
  for _, id in ipairs(old) do
    redis.call('DEL', ARGV[9] .. 'job:' .. id, ARGV[9] .. 'owner:' .. id)
    redis.call('ZREM', KEYS[3], id)
    redis.call('ZREM', KEYS[4], id)
  end
end
if redis.call('HGET', KEYS[1], 'cancel') == '1' then return 1 end
return 0`)

// OpenRedis connects to the Redis of a URL.
func OpenRedis(url string) (*Redis, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		// The library's error may repeat the URL, and that the password.
		return nil, errors.New("the URL of Redis cannot be read: want redis://[USER:PASSWORD@]HOST:PORT[/DB]")
	}
	r := &Redis{db: redis.NewClient(opts), lease: jobs.Lease}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.db.Ping(ctx).Err(); err != nil {
		r.db.Close()
		return nil, fmt.Errorf("redis at %s: %w", opts.Addr, err)
	}
	return r, nil
}

// Put implements jobs.Store.
func (r *Redis) Put(ctx context.Context, owner string, job jobs.Job) (cancel bool, err error) {
	whole, summary, err := record(job)
	if err != nil {
		return false, err
	}
	ended := "0"
	if job.Ended() {
		ended = "1"
	}
	keys := []string{prefix + "job:" + job.ID, prefix + "owner:" + job.ID, prefix + "all", prefix + "ended"}
	answer, err := put.Run(ctx, r.db, keys, owner, r.lease.Milliseconds(), whole, summary, ended,
		job.Created.UnixMicro(), job.ID, jobs.MaxEnded, prefix).Int()
	switch {
	case err != nil:
		return false, fmt.Errorf("redis: %w", err)
	case answer < 0:
		return false, jobs.ErrNotOwner
	}
	return answer == 1, nil
}

// List implements jobs.Store.
func (r *Redis) List(ctx context.Context, ids ...string) ([]jobs.Job, error) {
	field := "whole"
	if len(ids) == 0 {
		field = "summary"
		var err error
		if ids, err = r.db.ZRange(ctx, prefix+"all", 0, -1).Result(); err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
	}
	pipe := r.db.Pipeline()
	answers := make([]*redis.StringCmd, len(ids))
	for i, id := range ids {
		answers[i] = pipe.HGet(ctx, prefix+"job:"+id, field)
	}
	// What failed is found out below.
	_, _ = pipe.Exec(ctx)
	var list []jobs.Job
	for _, answer := range answers {
		raw, err := answer.Bytes()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		job, err := parse(raw)
		if err != nil {
			return nil, err
		}
		list = append(list, job)
	}
	slices.SortFunc(list, func(a, b jobs.Job) int { return byAge(b.ID, a.ID) })
	return list, nil
}

// Claim implements jobs.Store.
func (r *Redis) Claim(ctx context.Context, owner string) ([]jobs.Job, error) {
	ids, err := r.db.ZDiff(ctx, prefix+"all", prefix+"ended").Result()
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	var mine []string
	for _, id := range ids {
		got, err := r.db.SetNX(ctx, prefix+"owner:"+id, owner, r.lease).Result()
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		if got {
			mine = append(mine, id)
		}
	}
	if len(mine) == 0 {
		return nil, nil
	}
	return r.List(ctx, mine...)
}

// Cancel implements jobs.Store.
func (r *Redis) Cancel(ctx context.Context, id string) error {
	n, err := r.db.Exists(ctx, prefix+"job:"+id).Result()
	if err == nil && n == 0 {
		return jobs.ErrUnknown
	}
	if err == nil {
		err = r.db.HSet(ctx, prefix+"job:"+id, "cancel", "1").Err()
	}
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}

// Close implements Store.
func (r *Redis) Close() error { return r.db.Close() }
