package mirror

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/shoalproject/shoal/registry"
)

// Bounds on what manifests and listings take of the memory, in bytes.
const (
	// small is how long a manifest or listing is that has a budget of its own,
	// so that it waits for no large one.
	small = 64 << 10
	// maxSmall and maxLarge are how much of manifests is read at once, to be
	// parsed.
	maxSmall = 8 << 20
	maxLarge = registry.MaxManifestSize
	// maxNamed is how much of what one manifest names is remembered. What comes
	// after that the origin is asked about. No image has as many layers.
	maxNamed = 4096
	// maxFacts is what is remembered of manifests that were parsed.
	maxFacts = 24 << 20
	// maxListings is how much of large listings waits for clients to take it.
	maxListings = 8 * registry.MaxManifestSize
	// maxBodies is how many manifests are got along with what a tag stands for
	// at once, each up to registry.MaxManifestSize. Beyond, the tag is asked for
	// alone, and the manifest by its digest.
	maxBodies = 4
	// maxUnreserved is how long one is that comes along without a place among
	// these, since the origin does not say otherwise what the tag stands for.
	maxUnreserved = 16 << 10
)

// named is one thing that a manifest names.
type named struct {
	digest    digest.Digest
	size      int64
	elsewhere bool // the manifest says where
	manifest  bool
}

// facts are what the mirror needs to know of a manifest, and all that it keeps
// of it in memory.
type facts struct {
	mediaType string
	named     []named
	inside    []digest.Digest // those that are not elsewhere
}

func factsOf(m registry.Manifest) *facts {
	f := &facts{mediaType: m.MediaType}
	add := func(list []v1.Descriptor, manifest bool) {
		for _, d := range list[:min(len(list), maxNamed-len(f.named))] {
			f.named = append(f.named, named{d.Digest, d.Size, len(d.URLs) > 0, manifest})
			// Registries see to it that what a manifest names is in its
			// repository, but for what is elsewhere anyway.
			if len(d.URLs) == 0 {
				f.inside = append(f.inside, d.Digest)
			}
		}
	}
	add(m.Blobs, false)
	add(m.Manifests, true)
	return f
}

// cost is about what the facts take of the memory, in bytes.
func (f *facts) cost() int { return 512 + len(f.named)*(48+80) + len(f.inside)*16 }

// manifests remembers what manifests say, so that each is parsed once, and
// bounds how many are in memory.
type manifests struct {
	small, large *semaphore.Weighted

	mu sync.Mutex
	// Guarded by mu:
	known map[digest.Digest]*list.Element
	used  list.List // of *entry, the one used last first
	cost  int
}

type entry struct {
	digest digest.Digest
	facts  *facts
}

func newManifests() *manifests {
	return &manifests{
		small: semaphore.NewWeighted(maxSmall), large: semaphore.NewWeighted(maxLarge),
		known: map[digest.Digest]*list.Element{},
	}
}

func (m *manifests) get(d digest.Digest) *facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.known[d]
	if at == nil {
		return nil
	}
	m.used.MoveToFront(at)
	return at.Value.(*entry).facts
}

func (m *manifests) add(d digest.Digest, f *facts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[d] != nil {
		return
	}
	m.known[d] = m.used.PushFront(&entry{d, f})
	m.cost += f.cost()
	for m.cost > maxFacts {
		last := m.used.Back()
		e := last.Value.(*entry)
		m.used.Remove(last)
		delete(m.known, e.digest)
		m.cost -= e.facts.cost()
	}
}

// of returns what the manifest d says, which r reads.
func (m *manifests) of(ctx context.Context, d digest.Digest, r Reader) (*facts, error) {
	if f := m.get(d); f != nil {
		return f, nil
	}
	size := r.Size()
	if size > registry.MaxManifestSize {
		return nil, &registry.Error{
			Status: http.StatusBadGateway, Code: registry.CodeManifestInvalid,
			Message: fmt.Sprintf("manifest %s has %d bytes, more than %d", d, size, registry.MaxManifestSize),
		}
	}
	// Nobody waits in line while its bytes are still coming.
	if err := r.Wait(ctx, max(size-1, 0)); err != nil {
		return nil, err
	}
	line := m.large
	if size <= small {
		line = m.small
	}
	if err := line.Acquire(ctx, size); err != nil {
		return nil, err
	}
	defer line.Release(size)
	if f := m.get(d); f != nil { // another has parsed it meanwhile
		return f, nil
	}
	var buf bytes.Buffer
	buf.Grow(int(size))
	if _, err := r.CopyRange(ctx, &buf, 0, size); err != nil {
		return nil, err
	}
	parsed, err := registry.ParseManifest("", buf.Bytes())
	if err != nil {
		// A blob that somebody asks for as if it were a manifest.
		return nil, &registry.Error{Status: http.StatusNotFound, Code: registry.CodeManifestUnknown, Message: fmt.Sprintf("%s: %v", d, err)}
	}
	f := factsOf(parsed)
	m.add(d, f)
	return f, nil
}
