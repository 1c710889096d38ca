package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shoalproject/shoal/piece"
)

var errUnverified = errors.New("store: blob was not verified before it was committed")

// Commit makes the blob complete and durable, after Verify has returned nil.
// When it returns nil, the blob survives a loss of power. The handle stays
// open for reading until Close.
//
// The error is ErrUnavailable if the disk fails. The blob may be complete
// nevertheless, if all that failed is to make the new name durable; else the
// unfinished blob is as it was. A failed sync of the data is final: the
// kernel then may have dropped the bytes and reports no second time, so Close
// removes them.
func (p *Partial) Commit() error {
	p.ending.Lock()
	defer p.ending.Unlock()
	p.mu.Lock()
	state, verified, committed, spoilt, rotten := p.state, p.verified, p.committed, p.spoilt, p.rotten
	p.mu.Unlock()
	switch {
	case state != open:
		return fmt.Errorf("store: committing %s: %w", p.e.digest, os.ErrClosed)
	case committed:
		return p.settleNames()
	case spoilt != nil:
		return spoilt
	case rotten != nil:
		return rotten
	case !verified:
		return fmt.Errorf("%w: %s", errUnverified, p.e.digest)
	}
	// Syncing may take long. Who changes the file meanwhile changes what was
	// verified, which the time of its last write tells. Nothing is proven by
	// one that cannot be told. What Verify read longer ago, or before somebody
	// else wrote to the file, may have changed since: those pieces are hashed
	// again when they are first used.
	verifiedAs, _ := p.data.stat()
	proven := p.readLately()
	// Not tried again: after a failed fsync Linux takes the pages for clean,
	// and the next one would succeed without having written them.
	if err := p.data.sync(); err != nil {
		err = p.s.writeFailed("syncing "+string(p.e.digest), err)
		p.mu.Lock()
		p.spoilt = err
		p.mu.Unlock()
		return err
	}
	if err := p.writeSidecar(); err != nil {
		return p.s.writeFailed("writing piece sums of "+string(p.e.digest), err)
	}
	if err := p.rename(verifiedAs, proven); err != nil {
		return p.s.writeFailed("completing "+string(p.e.digest), err)
	}
	return p.settleNames()
}

// readLately returns the pieces that Verify read a moment ago.
func (p *Partial) readLately() *piece.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := piece.NewSet(len(p.ordered))
	if p.touchedLocked(p.data) {
		return set
	}
	for i, at := range p.ordered {
		if time.Since(at) < moment {
			set.Add(i)
		}
	}
	return set
}

// settleNames makes the renaming durable. Only then the journal goes: a loss
// of power before that may bring the unfinished blob back.
func (p *Partial) settleNames() error {
	s, d := p.s, p.e.digest
	if err := errors.Join(s.fs.syncDir(filepath.Dir(s.blobPath(d))), s.fs.syncDir(s.partialDir())); err != nil {
		return s.writeFailed("syncing directories of "+string(d), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.index.partials[d] == nil { // else the name is another handle's already
		_ = s.fs.removeAll(s.partialPath(d) + journalSuffix)
	}
	return nil
}

// writeSidecar puts the sums beside the blob's future name, durably, name
// and all: a blob must never stand there without them. A crash in here
// leaves an orphan.
func (p *Partial) writeSidecar() error {
	path := p.s.blobPath(p.e.digest)
	shard := filepath.Dir(path)
	b := encodeSidecar(p.e.digest, p.layout, p.sums)
	return p.s.whileFull(func() (err error) {
		if err := p.makeShard(shard); err != nil {
			return err
		}
		f, err := p.s.fs.open(path+sidecarSuffix, os.O_WRONLY|os.O_CREATE)
		if err != nil {
			return err
		}
		// Not O_TRUNC: where the equal sidecar of a complete blob stands, it
		// stays whole at every moment.
		if _, err = f.WriteAt(b, 0); err == nil {
			err = f.truncate(int64(len(b)))
		}
		if err == nil {
			err = f.sync()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return p.s.fs.syncDir(shard)
	})
}

func (p *Partial) makeShard(shard string) error {
	err := p.s.fs.mkdir(shard)
	switch {
	case errors.Is(err, os.ErrExist):
		return nil
	case errors.Is(err, os.ErrNotExist):
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		if err := p.s.restoreDirsLocked(); err != nil {
			return err
		}
		if err := p.s.fs.mkdir(shard); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	case err != nil:
		return err
	}
	return p.s.fs.syncDir(filepath.Dir(shard))
}

// rename gives the data its final name and moves it in the index, in one step
// for everybody who looks.
func (p *Partial) rename(verifiedAs fileInfo, proven *piece.Set) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, e, path := p.s, p.e, p.s.blobPath(p.e.digest)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.fs.rename(p.path, path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && s.index.blobs[e.digest] == nil {
		// Something that is not ours stands in the way, such as a directory.
		if info, serr := s.fs.lstat(path); serr == nil && !info.mode.IsRegular() {
			if err = s.fs.removeAll(path); err == nil {
				err = s.fs.rename(p.path, path)
			}
		}
	}
	if err != nil {
		if s.index.blobs[e.digest] == nil {
			_ = s.fs.removeAll(path + sidecarSuffix)
		}
		return err
	}
	p.path, p.committed = path, true
	s.index.drop(e)
	blob := &entry{digest: e.digest, size: e.size, proof: newProof(e.size), touched: time.Now()}
	if old := s.index.blobs[e.digest]; old != nil {
		blob.marked = old.marked
		s.index.drop(old)
	}
	// The proven pieces were hashed on their way to the disk and again by Verify.
	// Renaming changed the ctime, so the identity is taken after it.
	if info, err := p.data.stat(); err == nil && info.size == verifiedAs.size && info.mtime == verifiedAs.mtime {
		blob.proof.prove(info.identity, append([]piece.Sum(nil), p.sums...), proven)
	}
	s.index.add(blob)
	return nil
}

// Close gives the handle up and keeps the pieces for a later one; an
// unfinished blob without any piece is removed. Readers stay usable, Verify
// and writers end with os.ErrClosed. A second call does nothing.
func (p *Partial) Close() error { return p.end(false) }

// Drop deletes the unfinished blob and gives the handle up. A blob that was
// committed stays.
func (p *Partial) Drop() error { return p.end(true) }

func (p *Partial) end(remove bool) error {
	p.ending.Lock()
	defer p.ending.Unlock()
	p.mu.Lock()
	if p.state != open {
		p.mu.Unlock()
		return nil
	}
	p.state = closed
	p.announceLocked()
	if p.spoilt != nil || p.have.Count()+p.claimed.Count() == 0 {
		remove = true
	}
	p.mu.Unlock()
	err := errors.Join(p.data.Close(), p.journal.Close())
	// release does not touch the files of a committed blob: its partial
	// entry is gone.
	return errors.Join(err, p.s.release(p.e, remove))
}
