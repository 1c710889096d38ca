package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// registries is how the command itself reaches registries.
type registries struct {
	plainHTTP    bool
	caFile       string
	dockerConfig string
}

// endpoint returns where the registry of an image is, as a daemon takes it.
func (r registries) endpoint(host string) (origin.Endpoint, error) {
	up, err := registry.ParseUpstream(host)
	if err != nil {
		return origin.Endpoint{}, err
	}
	e := origin.Endpoint{Upstream: up}
	if r.plainHTTP {
		e.Endpoint = url.URL{Scheme: "http", Host: e.Endpoint.Host}
	}
	if r.caFile != "" {
		pem, err := os.ReadFile(r.caFile)
		if err != nil {
			return e, err
		}
		e.RootCAs = x509.NewCertPool()
		if !e.RootCAs.AppendCertsFromPEM(pem) {
			return e, fmt.Errorf("%s holds no PEM certificate", r.caFile)
		}
	}
	return e, nil
}

// grants gets pull tokens for images, from docker's credentials.
type grants struct {
	client *origin.Client
	images []jobs.Ref
	have   map[string]origin.Grant // by repository
	notice func(string)
}

func newGrants(r registries, images []string, notice func(string)) (*grants, error) {
	g := &grants{have: map[string]origin.Grant{}, notice: notice}
	credentials, err := daemon.DockerCredentials(r.dockerConfig)
	if err != nil {
		return nil, &usageError{fmt.Errorf("--docker-config: %w", err)}
	}
	cfg := origin.Config{Credentials: credentials, UserAgent: "shoal/" + readBuild().Version}
	seen := map[string]bool{}
	for _, name := range images {
		ref, err := jobs.ParseImage(name)
		if err != nil {
			return nil, &usageError{err}
		}
		g.images = append(g.images, ref)
		host, _, _ := strings.Cut(ref.Repository, "/")
		if seen[host] {
			continue
		}
		seen[host] = true
		e, err := r.endpoint(host)
		if err != nil {
			return nil, &usageError{err}
		}
		cfg.Endpoints = append(cfg.Endpoints, e)
	}
	if g.client, err = origin.New(cfg); err != nil {
		return nil, &usageError{err}
	}
	return g, nil
}

func (g *grants) close() { g.client.Close() }

// get asks each registry for its images, and returns what it granted. What a
// registry refuses is an error; one that is not reached from here may be
// reached from the nodes.
func (g *grants) get(ctx context.Context) (jobs.Credentials, error) {
	creds := jobs.Credentials{}
	for _, ref := range g.images {
		host, name, _ := strings.Cut(ref.Repository, "/")
		old := g.have[ref.Repository]
		grant, err := g.client.Grant(ctx, origin.Target{Repository: registry.Repository{Host: host, Name: name}}, ref.Reference(), old)
		switch {
		case origin.IsUnavailable(err):
			g.notice(fmt.Sprintf("%s cannot be asked from here, the nodes go on without credentials: %v", host, err))
			continue
		case err != nil:
			return nil, fmt.Errorf("%s: %w", ref, err)
		case grant.Authorization == "":
			continue
		case strings.HasPrefix(grant.Authorization, "Basic ") && old.Authorization == "":
			g.notice(host + " gives no tokens: the password itself goes to the scheduler and the nodes, for this job alone")
		}
		g.have[ref.Repository] = grant
		creds[ref.Repository] = grant.Authorization
	}
	return creds, nil
}

// next returns when the first grant should be renewed: when a third of its
// time is left; zero if never.
func (g *grants) next(now time.Time) (at time.Time) {
	for _, grant := range g.have {
		if grant.Until.IsZero() {
			continue
		}
		if renew := now.Add(grant.Until.Sub(now) * 2 / 3); at.IsZero() || renew.Before(at) {
			at = renew
		}
	}
	return at
}
