package mirror

import (
	"context"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
)

// public is the daemon itself where it has no credential: it gets tokens as
// anybody does. What the origin gives to it, everyone may have.
var public = Caller{}

// publicity finds out which of the images that came by somebody's token
// everyone may have. Many registries want a token for public images too, and
// while they are down nobody can show one.
type publicity struct {
	queue chan publicRequest
	asked *lru.Cache[tagKey, time.Time]
}

type publicRequest struct {
	tagRequest
	due time.Time
}

// maxPublic bounds the questions that wait. What is beyond is not asked.
const maxPublic = 256

func newPublicity() (*publicity, error) {
	asked, err := lru.New[tagKey, time.Time](maxTags)
	if err != nil {
		return nil, err
	}
	return &publicity{queue: make(chan publicRequest, maxPublic), asked: asked}, nil
}

// askIfPublic has the origin asked, after a while and not again soon, whether
// everyone may have what the caller has just been granted: the manifest ref, a
// tag or digest.
func (c *call) askIfPublic(ref string, accept []string) {
	if c.caller.Authorization == "" || c.cfg.Auth(c.repo.Host) != Relay || c.cfg.Offline != OfflineProven {
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
				m.askPublic(ctx, req.tagRequest)
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
func (m *Mirror) askPublic(ctx context.Context, req tagRequest) {
	var d digest.Digest
	var err error
	if strings.Contains(req.tag, ":") {
		d = digest.Digest(req.tag)
		_, err = m.cfg.Origin.HeadManifest(ctx, public, req.repo, req.tag, AcceptAll)
	} else {
		var r Manifest
		r, err = m.tags.ask(ctx, req)
		d = r.Digest
	}
	if err != nil {
		m.cfg.Logger.Debug("not known to be public", "repository", req.repo, "ref", req.tag, "err", err)
		(&call{Mirror: m, repo: req.repo}).refused(public, d, err)
		return
	}
	m.permits.grant(public, req.repo, d)
}
