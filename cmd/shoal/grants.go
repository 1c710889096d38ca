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

// grants gets pull tokens for images, from docker's credentials, and asks what
// tags stand for.
type grants struct {
	client *origin.Client
	anyone *origin.Client // has no credentials
	images []jobs.Ref
	public map[string]bool         // repositories that need no credentials
	have   map[string]origin.Grant // by repository
	notice func(string)
}

func newGrants(r registries, images []string, notice func(string)) (*grants, error) {
	g := &grants{have: map[string]origin.Grant{}, public: map[string]bool{}, notice: notice}
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
	cfg.Credentials = nil
	if g.anyone, err = origin.New(cfg); err != nil {
		return nil, &usageError{err}
	}
	return g, nil
}

func (g *grants) close() {
	g.client.Close()
	g.anyone.Close()
}

// target is the repository of an image.
func target(ref jobs.Ref) origin.Target {
	host, name, _ := strings.Cut(ref.Repository, "/")
	return origin.Target{Repository: registry.Repository{Host: host, Name: name}}
}

// resolve returns the names of the images with the digests that the registries
// say they have now, so that nobody else says what their tags stand for. An
// image of a registry that cannot be asked from here keeps its name; each node
// asks for itself then. It notes what everyone may have.
func (g *grants) resolve(ctx context.Context) ([]string, error) {
	var names []string
	for i, ref := range g.images {
		digest, err := digestOf(ctx, g.anyone, ref)
		if err == nil {
			g.public[ref.Repository] = true
		} else if !origin.IsUnavailable(err) {
			digest, err = digestOf(ctx, g.client, ref)
		}
		switch {
		case err == nil:
			ref.Digest = digest
			g.images[i] = ref
		case !origin.IsUnavailable(err):
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		names = append(names, ref.String())
	}
	return names, nil
}

// digestOf asks what an image is.
func digestOf(ctx context.Context, c *origin.Client, ref jobs.Ref) (string, error) {
	d, err := c.HeadManifest(ctx, target(ref), ref.Reference(), registry.AcceptAll)
	switch {
	case err != nil:
		return "", err
	case ref.Digest != "":
		return ref.Digest, nil
	case d.Digest != "":
		return d.Digest.String(), nil
	}
	m, err := c.Manifest(ctx, target(ref), ref.Reference(), registry.AcceptAll)
	if err != nil {
		return "", err
	}
	return m.Digest.String(), nil
}

// get asks each registry for its images, and returns what it granted. What a
// registry refuses is an error; one that is not reached from here may be
// reached from the nodes. What everyone may have needs no credentials.
func (g *grants) get(ctx context.Context) (jobs.Credentials, error) {
	creds := jobs.Credentials{}
	for _, ref := range g.images {
		if g.public[ref.Repository] {
			continue
		}
		host, _, _ := strings.Cut(ref.Repository, "/")
		old := g.have[ref.Repository]
		grant, err := g.client.Grant(ctx, target(ref), ref.Reference(), old)
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
