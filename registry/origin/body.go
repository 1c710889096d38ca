package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/registry"
)

// errStalled ends a body that brought no byte for the stall timeout.
var errStalled = errors.New("the origin stopped sending")

// maxRead bounds what is taken from the rate limiter at once, in bytes, so
// that streams share it evenly.
const maxRead = 64 << 10

// body is the body of every answer: it ends when it stalls, keeps to the rate
// limit, and frees its request when it is closed. The time in which nobody
// reads does not count as a stall.
type body struct {
	rc      io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	leave   func() // called once, when it is closed
	timer   *time.Timer
	stall   time.Duration
	stalled atomic.Bool
	total   *time.Timer   // nil unless expire was called
	rate    *rate.Limiter // nil = no limit
}

func newBody(ctx context.Context, cancel context.CancelCauseFunc, leave func(), rc io.ReadCloser, cfg *Config) *body {
	b := &body{rc: rc, ctx: ctx, cancel: cancel, leave: sync.OnceFunc(leave), stall: cfg.StallTimeout, rate: cfg.Rate}
	b.timer = time.AfterFunc(b.stall, func() {
		b.stalled.Store(true)
		cancel(errStalled)
	})
	b.timer.Stop()
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if b.rate != nil && b.rate.Limit() != rate.Inf {
		p = p[:min(len(p), maxRead, b.rate.Burst())]
	}
	b.timer.Reset(b.stall)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.stalled.Load() {
		err = errStalled
	}
	if b.rate != nil && n > 0 {
		if werr := b.rate.WaitN(b.ctx, n); werr != nil && err == nil {
			err = werr
		}
	}
	return n, err
}

// expire ends the body after d, however much comes. It must not be called
// while Read is.
func (b *body) expire(d time.Duration) {
	if b.total != nil {
		b.total.Stop()
	}
	b.total = time.AfterFunc(d, func() { b.cancel(errStalled) })
}

func (b *body) Close() error {
	b.timer.Stop()
	if b.total != nil {
		b.total.Stop()
	}
	err := b.rc.Close()
	b.cancel(nil)
	b.leave()
	return err
}

// errTooLong means that a bounded body is longer than its bound.
var errTooLong = errors.New("the body is too long")

// readLong is readAll for a body of length bytes, if that is not negative: it
// takes no more memory than that.
func readLong(r io.Reader, length, n int64) ([]byte, error) {
	if length < 0 || length > n {
		return readAll(r, n)
	}
	b := make([]byte, length)
	m, err := io.ReadFull(r, b)
	if err == io.EOF && length == 0 {
		err = nil
	}
	return b[:m], err
}

// readAll returns a body of at most n bytes. It does not close it.
func readAll(r io.Reader, n int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, n+1))
	if err == nil && int64(len(b)) > n {
		err = errTooLong
	}
	return b, err
}

const (
	// smallBody is how long a body is, in bytes, that is read into memory
	// without a reservation.
	smallBody = 64 << 10
	// maxBodies is how much of longer ones one upstream may have in memory at
	// once, in bytes, while they are read and parsed.
	maxBodies = 2 * registry.MaxManifestSize
)

// reserve waits, no longer than for the headers of an answer, until there is
// memory for a body of n bytes, or of any length if n is negative.
func (e *endpoint) reserve(ctx context.Context, n int64) (release func(), err error) {
	if n >= 0 && n <= smallBody {
		return func() {}, nil
	}
	if n < 0 || n > registry.MaxManifestSize {
		n = registry.MaxManifestSize
	}
	wait, cancel := context.WithTimeout(ctx, e.cfg.HeaderTimeout)
	defer cancel()
	if err := e.bodies.Acquire(wait, n); err != nil {
		return nil, fmt.Errorf("waiting for memory for a manifest or listing of %d bytes, while others come: %w", n, err)
	}
	return func() { e.bodies.Release(n) }, nil
}
