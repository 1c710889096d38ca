package daemon

import (
	"context"
	"fmt"
	"os"

	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/registry/origin"
)

// credentials returns in whose name the daemon asks origins when it asks in
// its own: docker's config.json and its helpers. With --auth relay it does so
// for preheats alone; with --auth open, where everyone may read what it gets,
// it has no credentials.
func (s *settings) credentials() (origin.CredentialFunc, error) {
	if s.auth == mirror.Open {
		return nil, nil
	}
	credentials, err := DockerCredentials(s.DockerConfig)
	if err != nil && s.auth == mirror.Relay && s.DockerConfig == "" {
		return nil, nil // nobody said that there are any
	}
	if err != nil {
		return nil, &ConfigError{"docker-config", err}
	}
	return credentials, nil
}

// DockerCredentials returns what docker's config.json and its helpers know of
// each registry. An empty file is the one where docker keeps it.
func DockerCredentials(file string) (origin.CredentialFunc, error) {
	store, err := dockerStore(file)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, host string) (origin.Credential, error) {
		c, err := store.Get(ctx, credentials.ServerAddressFromRegistry(host))
		if err != nil {
			return origin.Credential{}, fmt.Errorf("credentials for %s: %w", host, err)
		}
		return origin.Credential{
			Username: c.Username, Password: c.Password,
			RefreshToken: c.RefreshToken, AccessToken: c.AccessToken,
		}, nil
	}, nil
}

func dockerStore(file string) (credentials.Store, error) {
	if file == "" {
		return credentials.NewStoreFromDocker(credentials.StoreOptions{})
	}
	if _, err := os.Stat(file); err != nil {
		return nil, err // a file that was named must be there
	}
	return credentials.NewStore(file, credentials.StoreOptions{})
}
