package mirror

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/shoalproject/shoal/registry"
)

// public is anybody: no credential of the daemon's goes along with its requests.
// Everyone may have what an origin gives to it.
var public = Caller{Public: true, ID: "public"}

const (
	// maxPublic bounds the questions that wait, maxProbes those that are asked
	// at once before content is fetched. What is beyond is not asked.
	maxPublic = 256
	maxProbes = 32
	// probeWait is how long a request waits for such an answer: longer than a
	// registry takes for a token and a HEAD. The content is fetched without an
	// answer then, for this node alone. probeTimeout ends the question.
	probeWait    = 2 * time.Second
	probeTimeout = 10 * time.Second
	// probeAgain is how long a repository is left alone whose registry gave
	// no answer. One that refused is left alone for Config.PermissionTTL.
	probeAgain = 30 * time.Second
)

// publicity finds out which of the content that came by somebody's credential
// everyone may have: many registries want a token for public images too. It
// matters twice. While a registry is down, nobody can show a token. And peers
// know no callers, so a node without TLS gives them public content alone.
type publicity struct {
	queue chan publicRequest
	asked *lru.Cache[tagKey, time.Time]
	// probes are the questions that somebody waits for. alone are repositories,
	// or with a digest contents, that are not asked about until then.
	probes singleflight.Group
	slots  chan struct{}
	alone  *lru.Cache[sizeKey, time.Time]
}

type publicRequest struct {
	tagRequest
	due time.Time
}

func newPublicity() (*publicity, error) {
	asked, err := lru.New[tagKey, time.Time](maxTags)
	if err != nil {
		return nil, err
	}
	alone, err := lru.New[sizeKey, time.Time](maxTags)
	if err != nil {
		return nil, err
	}
	return &publicity{queue: make(chan publicRequest, maxPublic), asked: asked, slots: make(chan struct{}, maxProbes), alone: alone}, nil
}

// unsettled reports whether d would stay on this node, and asking may change
// that.
func (c *call) unsettled(d digest.Digest) bool {
	if !c.cfg.Sharing.Local(c.caller, c.repo, d) {
		return false
	}
	for _, key := range []sizeKey{{repo: c.repo}, {c.repo, d}} {
		if until, ok := c.publicity.alone.Get(key); ok && time.Now().Before(until) {
			return false
		}
	}
	return true
}

// settle finds out, before d is fetched or what it names is, whether other nodes
// may be given it. It costs one request for an image, and a token: what a
// public manifest names is public too.
func (c *call) settle(ctx context.Context, d digest.Digest, manifest bool) {
	if c.unsettled(d) {
		done := c.probe(ctx, d, manifest, tagRequest{repo: c.repo, tag: d.String(), accept: AcceptAll})
		wait, cancel := context.WithTimeout(ctx, probeWait)
		defer cancel()
		select {
		case <-done:
		case <-wait.Done():
			if ctx.Err() == nil { // the next one does not wait for it again
				c.publicity.alone.Add(sizeKey{repo: c.repo}, time.Now().Add(probeAgain))
			}
		}
	}
}

// probe has the origin asked whether everyone may have d, by the name of req,
// once for all who want to know at a time. The channel tells of the end.
func (c *call) probe(ctx context.Context, d digest.Digest, manifest bool, req tagRequest) <-chan singleflight.Result {
	m, repo := c.Mirror, c.repo
	may := c.proven || c.permits.has(c.caller, repo, d)
	req.caller, req.body = public, false
	ctx = context.WithoutCancel(ctx)
	return m.publicity.probes.DoChan(repo.String()+" "+string(d), func() (any, error) {
		select {
		case m.publicity.slots <- struct{}{}:
			defer func() { <-m.publicity.slots }()
		default:
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		began := time.Now()
		said, err := m.askPublic(ctx, req, manifest)
		switch {
		case err == nil && manifest:
			m.publicity.asked.Add(req.key(), began)
			if time.Since(began) > probeWait {
				m.spread(ctx, public, repo, said, 1)
			}
		case err == nil:
		case m.cfg.Origin.Unavailable(err) || ctx.Err() != nil:
			m.publicity.alone.Add(sizeKey{repo: repo}, time.Now().Add(probeAgain))
		case isNotFound(err) && !may:
			// It may not exist, which says nothing of the repository.
			m.publicity.alone.Add(sizeKey{repo, d}, time.Now().Add(m.cfg.PermissionTTL))
		default:
			m.publicity.alone.Add(sizeKey{repo: repo}, time.Now().Add(m.cfg.PermissionTTL))
		}
		return nil, nil
	})
}

func isNotFound(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// spread takes in what a manifest names that is held and that the caller was
// found to be permitted, down to so many levels below it.
func (m *Mirror) spread(ctx context.Context, who Caller, repo registry.Repository, d digest.Digest, levels int) {
	if size, here := m.cfg.Blobs.Stat(d); !here || size > registry.MaxManifestSize {
		return
	}
	c := &call{Mirror: m, repo: repo, caller: who, proven: true}
	f, r, err := c.manifestByDigest(ctx, d, nil)
	if err != nil {
		m.cfg.Logger.Debug("manifest cannot be read", "repository", repo, "digest", d, "err", err)
		return
	}
	r.Close()
	c.learn(d, f)
	for _, child := range f.named {
		if child.manifest && levels > 0 {
			m.spread(ctx, who, repo, child.digest, levels-1)
		}
	}
}

// askIfPublic has the origin asked, after a while and not again soon, whether
// everyone may have what the caller has just been granted: the manifest ref, a
// tag or digest.
func (c *call) askIfPublic(ref string, accept []string) {
	if c.caller.Anonymous || c.caller.Public || c.cfg.Auth(c.repo.Host) != Relay || c.cfg.Offline != OfflineProven {
		return
	}
	req := tagRequest{repo: c.repo, tag: ref, accept: accept, caller: public}
	if at, ok := c.publicity.asked.Get(req.key()); ok && time.Since(at) < c.cfg.OfflineFor/2 {
		return
	}
	select {
	case c.publicity.queue <- publicRequest{req, time.Now().Add(c.cfg.PublicAfter)}:
		c.publicity.asked.Add(req.key(), time.Now())
	default:
	}
}

// Run asks, until ctx ends, what need not be asked while somebody waits.
func (m *Mirror) Run(ctx context.Context) {
	for {
		select {
		case req := <-m.publicity.queue:
			wait := time.NewTimer(time.Until(req.due))
			select {
			case <-wait.C:
				if d, err := m.askPublic(ctx, req.tagRequest, true); err == nil {
					m.spread(ctx, public, req.repo, d, 1)
				}
			case <-ctx.Done():
				wait.Stop()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// askPublic asks in the name of everyone. A refusal is an answer like any
// other.
func (m *Mirror) askPublic(ctx context.Context, req tagRequest, manifest bool) (d digest.Digest, err error) {
	switch {
	case !manifest:
		d = digest.Digest(req.tag)
		_, err = m.cfg.Origin.HeadBlob(ctx, public, req.repo, d)
	case strings.Contains(req.tag, ":"):
		d = digest.Digest(req.tag)
		_, err = m.cfg.Origin.HeadManifest(ctx, public, req.repo, req.tag, AcceptAll)
	default:
		var r Manifest
		r, err = m.tags.ask(ctx, req)
		d = r.Digest
	}
	if err != nil {
		m.cfg.Logger.Debug("not known to be public", "repository", req.repo, "ref", req.tag, "err", err)
		(&call{Mirror: m, repo: req.repo}).refused(public, d, err)
		return "", err
	}
	m.permits.grant(public, req.repo, d)
	m.cfg.Sharing.Given(public, req.repo, d)
	return d, nil
}
