package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	orascreds "oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
)

const (
	// maxTried bounds the credentials tried for one repository.
	maxTried = 8
	// helperMemory is how long the answer of a credential helper, a process
	// that is run, is good.
	helperMemory = 30 * time.Second
)

// keyring is the content of one docker config.json.
type keyring struct {
	content []byte
	keys    []ringKey // the one that matches most closely first
	store   orascreds.Store
	// everything: a store of its own may know hosts that have no key.
	everything bool

	mu    sync.Mutex // guards known
	known map[string]knownCredential
}

type knownCredential struct {
	origin.Credential
	until time.Time
}

// ringKey is a key of auths or credHelpers. As in Kubernetes it is a host, of
// which each label may be a pattern, with an optional port, that must be the
// same, and an optional prefix of the repository's name.
type ringKey struct {
	name string // as it is written
	host string // labels, without port
	port string
	path string // without the leading slash
}

func newKeyring(content []byte, store orascreds.Store) (*keyring, error) {
	var doc struct {
		Auths       map[string]json.RawMessage `json:"auths"`
		CredHelpers map[string]string          `json:"credHelpers"`
		CredsStore  string                     `json:"credsStore"`
	}
	if len(strings.TrimSpace(string(content))) > 0 {
		if err := json.Unmarshal(content, &doc); err != nil {
			return nil, errors.New("not the JSON of a docker config")
		}
	}
	r := &keyring{content: content, store: store, everything: doc.CredsStore != "", known: map[string]knownCredential{}}
	for name := range doc.Auths {
		r.add(name)
	}
	for name := range doc.CredHelpers {
		if _, twice := doc.Auths[name]; !twice {
			r.add(name)
		}
	}
	slices.SortFunc(r.keys, func(a, b ringKey) int {
		return cmp.Or(
			cmp.Compare(len(b.path), len(a.path)),
			cmp.Compare(strings.Count(a.host, "*"), strings.Count(b.host, "*")),
			cmp.Compare(len(b.host), len(a.host)),
			cmp.Compare(a.name, b.name),
		)
	})
	return r, nil
}

func (r *keyring) add(name string) {
	text := name
	if !strings.HasPrefix(text, "https://") && !strings.HasPrefix(text, "http://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return // names no host, so that nothing is asked for
	}
	p := u.Path
	if strings.HasPrefix(p, "/v1/") || strings.HasPrefix(p, "/v2/") {
		p = p[3:]
	}
	k := ringKey{name: name, host: strings.ToLower(u.Hostname()), port: u.Port(), path: strings.TrimPrefix(p, "/")}
	if host, err := registry.ParseHost(u.Host); err == nil && host == registry.DockerHub {
		k.host = host
	}
	r.keys = append(r.keys, k)
}

func (k ringKey) matches(repo registry.Repository) bool {
	u := url.URL{Host: repo.Host}
	if u.Port() != k.port || !strings.HasPrefix(repo.Name, k.path) {
		return false
	}
	patterns, labels := strings.Split(k.host, "."), strings.Split(u.Hostname(), ".")
	return slices.EqualFunc(patterns, labels, func(pattern, label string) bool {
		ok, err := path.Match(pattern, label)
		return ok && err == nil
	})
}

// lookup returns the credentials to try for a repository, in that order. The
// error is that of the last one if none can be had.
func (r *keyring) lookup(ctx context.Context, repo registry.Repository) (list []origin.Credential, err error) {
	var names []string
	for _, k := range r.keys {
		if k.matches(repo) {
			names = append(names, k.name)
		}
	}
	if host := orascreds.ServerAddressFromRegistry(repo.Host); r.everything && !slices.Contains(names, host) {
		names = append(names, host)
	}
	for _, name := range names[:min(len(names), maxTried)] {
		c, getErr := r.get(ctx, name)
		switch {
		case getErr != nil:
			err = fmt.Errorf("credentials for %s: %w", name, getErr)
		case c != origin.Credential{}:
			list = append(list, c)
		}
	}
	if len(list) > 0 {
		err = nil
	}
	return list, err
}

// get returns what is under a key.
func (r *keyring) get(ctx context.Context, name string) (origin.Credential, error) {
	r.mu.Lock()
	known, ok := r.known[name]
	r.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known.Credential, nil
	}
	c, err := r.store.Get(ctx, name)
	if err != nil {
		return origin.Credential{}, err
	}
	known = knownCredential{origin.Credential{
		Username: c.Username, Password: c.Password,
		RefreshToken: c.RefreshToken, AccessToken: c.AccessToken,
	}, time.Now().Add(helperMemory)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[name] = known // at most a key of the file, or an allowed host
	return known.Credential, nil
}
