package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
	orascreds "oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
)

// credentials are those of docker's config.json, in which name the node asks
// the registries of auth mode node. They follow the file.
type credentials struct {
	cfg  *settings
	log  *slog.Logger
	path string
	ring atomic.Pointer[keyring]
}

// newCredentials returns nil if no registry is asked in the node's own name.
func newCredentials(s *settings, log *slog.Logger) (*credentials, error) {
	needed := false
	for _, host := range s.upstreams.Hosts() {
		needed = needed || s.authFor(host) == mirror.Node
	}
	if !needed {
		return nil, nil
	}
	c := &credentials{cfg: s, log: log, path: s.DockerConfig}
	if c.path != "" {
		if _, err := os.Stat(c.path); err != nil {
			return nil, &ConfigError{"docker-config", err} // a file that was named must be there
		}
	} else {
		store, err := orascreds.NewStoreFromDocker(orascreds.StoreOptions{})
		if err != nil {
			return nil, &ConfigError{"docker-config", err}
		}
		c.path = store.ConfigPath()
	}
	ring, err := readKeyring(c.path)
	if err != nil {
		return nil, &ConfigError{"docker-config", err}
	}
	c.ring.Store(ring)
	return c, nil
}

// of returns the credentials to try for a repository, in that order.
func (c *credentials) of(ctx context.Context, repo registry.Repository) ([]origin.Credential, error) {
	if c == nil || c.cfg.authFor(repo.Host) != mirror.Node {
		return nil, nil
	}
	return c.ring.Load().lookup(ctx, repo)
}

// watch reads the file again when it changes, until ctx ends. The directory
// is watched: editors and Kubernetes put a new file in the old one's place.
func (c *credentials) watch(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		err = w.Add(filepath.Dir(c.path))
	}
	if err != nil {
		c.log.Warn("docker config is not watched: a change needs a restart", "file", c.path, "err", err)
		<-ctx.Done()
		return nil
	}
	c.reload() // it may have changed before
	for {
		select {
		case <-w.Events:
			c.reload()
		case err := <-w.Errors:
			c.log.Warn("watching the docker config", "file", c.path, "err", err)
			c.reload() // events may be lost
		case <-ctx.Done():
			return nil
		}
	}
}

// reload takes the file as it is now, if it can be read. One that is gone
// takes the credentials along; one that is empty is about to be written.
func (c *credentials) reload() {
	content, err := os.ReadFile(c.path)
	gone := errors.Is(err, os.ErrNotExist)
	if err != nil && !gone || !gone && len(content) == 0 || bytes.Equal(content, c.ring.Load().content) {
		return
	}
	ring, err := readKeyring(c.path)
	if err == nil && !gone && len(ring.content) == 0 {
		return
	}
	if err != nil {
		// Likely half-written; the rest is another event.
		c.log.Warn("docker config cannot be read, the former credentials stay", "file", c.path, "err", err)
		return
	}
	c.ring.Store(ring)
	c.log.Info("docker config was read again", "file", c.path, "keys", len(ring.keys))
}

func readKeyring(path string) (*keyring, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	store, err := orascreds.NewStore(path, orascreds.StoreOptions{})
	if err != nil {
		return nil, err
	}
	if again, err := os.ReadFile(path); !bytes.Equal(again, content) {
		return nil, errors.Join(fmt.Errorf("%s is being written", path), err)
	}
	ring, err := newKeyring(content, store)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}
