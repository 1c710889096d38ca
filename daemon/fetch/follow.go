package fetch

import (
	"context"
	"errors"
	"fmt"
)

// Coming reports whether the blob is still being downloaded, or was when the
// Reader was opened.
func (r *Reader) Coming() bool { return r.flight != nil }

// Follow waits until the node holds the blob whole, verified and durable,
// without reading it. progress is told how many bytes of it are here, now and
// then. The error is ErrUnavailable if the store does not keep the blob.
func (r *Reader) Follow(ctx context.Context, progress func(bytes int64)) error {
	if r.blob != nil {
		progress(r.size)
		return nil
	}
	fl := r.flight
	for off := int64(0); ; {
		fl.mu.Lock()
		end, err := fl.look(&r.view, off)
		here, verified, changed := fl.here(), fl.verified, fl.changed
		fl.mu.Unlock()
		switch {
		case errors.Is(err, errDirect):
			return fmt.Errorf("blob %s: %w", r.req.Digest, ErrUnavailable)
		case err != nil:
			return err
		}
		progress(here)
		if verified {
			break
		}
		if end > off {
			off = end
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-fl.gone:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !fl.kept {
		return fmt.Errorf("blob %s: %w", r.req.Digest, ErrUnavailable)
	}
	return nil
}

// here returns how many bytes of the blob have come. The caller holds mu.
func (fl *flight) here() int64 {
	if fl.verified {
		return fl.size
	}
	if fl.plan == nil || fl.plan.have.Count() == 0 {
		return 0
	}
	return min(int64(fl.plan.have.Count())*fl.plan.layout.Length(), fl.size)
}
