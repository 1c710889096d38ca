package fetch

import (
	"context"
	"fmt"
	"sync"
)

// maxPast bounds the readers that have a stream of their own because no place
// was free for their blob.
const maxPast = 256

// openPast opens a blob past the store and the other nodes, straight from the
// request's source. Nothing is kept. The digest is verified before the last
// byte goes out.
func (f *Fetcher) openPast(ctx context.Context, req Request) (*Reader, error) {
	if !f.past.TryAcquire(1) {
		return nil, fmt.Errorf("blob %s: %w", req.Digest, ErrBusy)
	}
	life, stop := context.WithCancel(f.ctx)
	fl := newFlight(f, req.Digest, func() {})
	fl.cancel = sync.OnceFunc(func() {
		stop()
		f.past.Release(1)
	})
	src := fl.add(req)
	// The stream outlives ctx if the caller leaves and the request does not.
	ended := context.AfterFunc(ctx, stop)
	defer ended()
	off := int64(0)
	if req.Offset > far {
		off = req.Offset // see openThrough
	}
	s, err := src.Open(life, req.Digest, off, -1)
	if err == nil && s.Size() < 0 {
		s.Close()
		err = fmt.Errorf("blob %s: %s does not say how long it is", req.Digest, src.Key())
	}
	if err != nil {
		fl.cancel()
		return nil, err
	}
	f.stats.direct.Add(1)
	fl.mu.Lock()
	defer fl.mu.Unlock()
	src.proven, src.opened = true, true
	fl.begin, fl.over, fl.err, fl.size = true, true, errDirect, s.Size()
	fl.direct = &direct{hash: req.Digest.Algorithm().Hash(), spare: &opened{Stream: s, source: src, pos: s.Offset()}}
	return &Reader{fetcher: f, req: req, size: fl.size, flight: fl, view: view{source: src}}, nil
}
