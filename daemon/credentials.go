package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
	orascreds "oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
)

// credentials are those of docker's config.json, in which name the node asks
// the registries of auth mode node for all callers, and with
// PreheatNodeCredentials those of mode relay for preheats that bring none. They
// follow the file.
type credentials struct {
	cfg  *settings
	log  *slog.Logger
	path string
	ring atomic.Pointer[keyring]
	// reloading is held while the file is read, so that what was read last
	// stays.
	reloading sync.Mutex
}

// newCredentials returns nil if no registry is asked in the node's own name,
// or if nobody said that there are credentials and docker has none.
func newCredentials(s *settings, log *slog.Logger) (*credentials, error) {
	modes := map[mirror.Auth]bool{}
	for _, host := range s.upstreams.Hosts() {
		modes[s.authFor(host)] = true
	}
	if !modes[mirror.Node] && !(modes[mirror.Relay] && s.PreheatNodeCredentials) {
		return nil, nil
	}
	path, ring, err := dockerKeyring(s.DockerConfig)
	switch {
	case err == nil:
	case !modes[mirror.Node] && s.DockerConfig == "":
		log.Warn("docker config cannot be read; preheats that bring no credentials are anonymous", "err", err)
		return nil, nil
	default:
		return nil, &ConfigError{"docker-config", err}
	}
	c := &credentials{cfg: s, log: log, path: path}
	c.ring.Store(ring)
	return c, nil
}

// DockerCredentials returns what docker's config.json and its helpers know of
// each repository. An empty file is the one where docker keeps it.
func DockerCredentials(file string) (origin.CredentialFunc, error) {
	_, ring, err := dockerKeyring(file)
	if err != nil {
		return nil, err
	}
	return ring.lookup, nil
}

func dockerKeyring(file string) (string, *keyring, error) {
	if file != "" {
		if _, err := os.Stat(file); err != nil {
			return "", nil, err // a file that was named must be there
		}
	} else {
		store, err := orascreds.NewStoreFromDocker(orascreds.StoreOptions{})
		if err != nil {
			return "", nil, err
		}
		file = store.ConfigPath()
	}
	ring, err := readKeyring(file)
	return file, ring, err
}

// of returns the credentials to try for a repository, in that order. Callers
// of a registry of mode relay are anonymous where they bring nothing, and not
// asked for here.
func (c *credentials) of(ctx context.Context, repo registry.Repository) ([]origin.Credential, error) {
	if c == nil {
		return nil, nil
	}
	switch c.cfg.authFor(repo.Host) {
	case mirror.Node:
	case mirror.Relay:
		if !c.cfg.PreheatNodeCredentials {
			return nil, nil
		}
	default:
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
	c.reloading.Lock()
	defer c.reloading.Unlock()
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
