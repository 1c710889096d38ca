package mirror

import (
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoalproject/shoal/registry"
)

// maxChallenge bounds the challenges that are remembered of one repository,
// in bytes: an origin chooses how long they are.
const maxChallenge = 4 << 10

// challenges remembers how origins answered callers without credentials who
// need some, so that such a caller need not cost a request each time.
type challenges struct {
	cache *lru.Cache[registry.Repository, challenge]
}

type challenge struct {
	values []string
	at     time.Time
}

func newChallenges() (*challenges, error) {
	cache, err := lru.New[registry.Repository, challenge](maxTags)
	if err != nil {
		return nil, err
	}
	return &challenges{cache}, nil
}

// note remembers what the origin said to a caller without credentials.
func (c *challenges) note(repo registry.Repository, e *registry.Error) {
	size := 0
	for _, v := range e.Challenges {
		size += len(v)
	}
	if size > 0 && size <= maxChallenge {
		c.cache.Add(repo, challenge{e.Challenges, time.Now()})
	}
}

// within returns the answer of the origin if it is younger than age, else nil.
func (c *challenges) within(repo registry.Repository, age time.Duration) error {
	old, ok := c.cache.Get(repo)
	if !ok || time.Since(old.at) >= age {
		return nil
	}
	return &registry.Error{
		Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized,
		Message: repo.String() + ": authentication required", Challenges: old.values,
	}
}
