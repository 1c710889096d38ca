package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/piece"
)

// found is one blob met by the scan, with the time of its last use.
type found struct {
	*entry
	mtime int64
}

// scanLocked rebuilds the index from the directory, and removes what a crash
// left half done: a sidecar without its blob (Commit or eviction was cut), a
// blob without its sidecar, half a partial. Names that the store does not
// give are left alone.
func (s *Store) scanLocked() error {
	var all []found
	for alg, a := range algorithms {
		dir := filepath.Join(s.blobsDir(), string(alg))
		shards, err := s.fs.readDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: reading %s: %w", dir, err)
		}
		for _, shard := range shards {
			if !shard.IsDir() || !isHex(shard.Name(), 2) {
				continue
			}
			blobs, err := s.scanShard(alg, a.hexLen, filepath.Join(dir, shard.Name()))
			if err != nil {
				return err
			}
			all = append(all, blobs...)
		}
	}
	partials, err := s.scanPartials()
	if err != nil {
		return err
	}
	all = append(all, partials...)
	slices.SortStableFunc(all, func(a, b found) int {
		if a.mtime != b.mtime {
			return int(min(1, max(-1, a.mtime-b.mtime)))
		}
		return strings.Compare(string(a.digest), string(b.digest))
	})
	for _, f := range all {
		s.index.add(f.entry)
	}
	return nil
}

// names lists dir as a set. A directory that is gone is empty.
func (s *Store) names(dir string) (map[string]bool, error) {
	list, err := s.fs.readDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("store: reading %s: %w", dir, err)
	}
	set := make(map[string]bool, len(list))
	for _, e := range list {
		set[e.Name()] = true
	}
	return set, nil
}

func (s *Store) scanShard(alg digest.Algorithm, hexLen int, dir string) (blobs []found, err error) {
	names, err := s.names(dir)
	if err != nil {
		return nil, err
	}
	for name := range names {
		hex := strings.TrimSuffix(strings.TrimSuffix(name, sidecarSuffix), markSuffix)
		if !isHex(hex, hexLen) || hex[:2] != filepath.Base(dir) || hex != name && names[hex] {
			continue
		}
		path := filepath.Join(dir, hex)
		data, err := s.fs.lstat(path)
		side, serr := s.fs.lstat(path + sidecarSuffix)
		if err == nil && serr == nil && data.mode.IsRegular() && side.mode.IsRegular() &&
			side.size == sidecarSize(piece.NewLayout(data.size)) {
			e := &entry{digest: digest.NewDigestFromEncoded(alg, hex), size: data.size}
			e.proof = newProof(data.size)
			e.keep, e.marked = keepFrom(side.mtime), names[hex+markSuffix]
			blobs = append(blobs, found{e, side.mtime})
			continue
		}
		if rerr := s.removeOrphan(path, sidecarSuffix, markSuffix); rerr != nil && !isDiskTrouble(rerr) {
			return nil, rerr
		}
	}
	return blobs, nil
}

func (s *Store) scanPartials() (partials []found, err error) {
	names, err := s.names(s.partialDir())
	if err != nil {
		return nil, err
	}
	for name := range names {
		base := strings.TrimSuffix(name, journalSuffix)
		d := digest.Digest(strings.Replace(base, "-", ":", 1))
		if _, _, err := split(d); err != nil || base != name && names[base] {
			continue
		}
		path := filepath.Join(s.partialDir(), base)
		if size, came, mtime, ok := s.readPartial(path); ok {
			partials = append(partials, found{&entry{digest: d, size: size, partial: true, came: came}, mtime})
			continue
		}
		if rerr := s.removeOrphan(path, journalSuffix); rerr != nil && !isDiskTrouble(rerr) {
			return nil, rerr
		}
	}
	return partials, nil
}

// readPartial returns the size that the journal of a partial names, and how much
// of it takes room on the disk, if the partial is sound enough to be resumed.
func (s *Store) readPartial(path string) (size, came, mtime int64, ok bool) {
	data, err := s.fs.lstat(path)
	if err != nil || !data.mode.IsRegular() {
		return 0, 0, 0, false
	}
	f, err := s.fs.open(path+journalSuffix, os.O_RDONLY)
	if err != nil {
		return 0, 0, 0, false
	}
	defer f.Close()
	info, err := f.stat()
	if err != nil || !info.mode.IsRegular() {
		return 0, 0, 0, false
	}
	head := make([]byte, journalHeader)
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return 0, 0, 0, false
	}
	l, err := decodeJournalHeader(head)
	return l.Size(), min(data.allocated, data.size), info.mtime, err == nil && l.Size() == data.size
}

func (s *Store) removeOrphan(path string, suffixes ...string) error {
	s.log.Info("removing what an interrupted run left", "path", path)
	err := s.fs.removeAll(path)
	for _, suffix := range suffixes {
		err = errors.Join(err, s.fs.removeAll(path+suffix))
	}
	if err != nil {
		return fmt.Errorf("store: removing an orphan: %w", err)
	}
	return nil
}
