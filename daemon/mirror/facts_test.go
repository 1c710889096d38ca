package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry"
)

// document is a manifest in memory that counts what is read of it.
type document struct {
	body string
	read *atomic.Int64
	now  *atomic.Int64 // bytes that are being read
	peak *atomic.Int64
	gate chan struct{} // closed when reads may end
}

func (d document) Size() int64                       { return int64(len(d.body)) }
func (d document) Wait(context.Context, int64) error { return nil }
func (d document) Close() error                      { return nil }
func (d document) CopyRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	for at, peak := d.now.Add(n), d.peak.Load(); at > peak && !d.peak.CompareAndSwap(peak, at); peak = d.peak.Load() {
	}
	defer d.now.Add(-n)
	<-d.gate
	d.read.Add(1)
	m, err := io.WriteString(w, d.body[off:off+n])
	return int64(m), err
}

// manifestOf returns a manifest of n layers, padded to a length.
func manifestOf(t testing.TB, n, length int) string {
	t.Helper()
	layers := make([]map[string]any, n)
	for i := range layers {
		layers[i] = map[string]any{"mediaType": "x", "digest": digest.FromString(string(rune(i))), "size": i}
	}
	if n > 1 {
		layers[1]["urls"] = []string{"https://elsewhere.test"}
	}
	b, err := json.Marshal(map[string]any{
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers, "annotations": map[string]string{"pad": ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(string(b), `"pad":""`, `"pad":"`+strings.Repeat("x", max(0, length-len(b)))+`"`, 1)
}

// However many ask, a manifest is parsed once, and no more is in memory at once
// than there is a budget for.
func TestManifestsAreParsedOnceWithinABudget(t *testing.T) {
	m := newManifests()
	var read, now, peak atomic.Int64
	gate := make(chan struct{})
	var docs []document
	for i := range 10 {
		docs = append(docs, document{manifestOf(t, 1+i, registry.MaxManifestSize), &read, &now, &peak, gate})
	}
	var wg sync.WaitGroup
	for i := range 200 {
		d := docs[i%len(docs)]
		wg.Go(func() {
			f, err := m.of(t.Context(), digest.FromString(d.body), d)
			if err != nil || len(f.named) == 0 {
				t.Errorf("%v, %v", f, err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if n := read.Load(); n != int64(len(docs)) {
		t.Errorf("%d manifests were read %d times", len(docs), n)
	}
	if n := peak.Load(); n > maxLarge {
		t.Errorf("%d bytes were in memory at once", n)
	}
}

// A small manifest does not wait for large ones.
func TestSmallManifestsDoNotWait(t *testing.T) {
	m := newManifests()
	if err := m.large.Acquire(t.Context(), maxLarge); err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	gate := make(chan struct{})
	close(gate)
	d := document{manifestOf(t, 3, 0), &n, new(atomic.Int64), new(atomic.Int64), gate}
	f, err := m.of(t.Context(), digest.FromString(d.body), d)
	if err != nil {
		t.Fatal(err)
	}
	if f.mediaType != "application/vnd.oci.image.manifest.v1+json" || len(f.named) != 3 || len(f.inside) != 2 || !f.named[1].elsewhere || f.named[2].size != 2 {
		t.Errorf("%+v", f)
	}
}

// The memory of manifests is bounded in bytes.
func TestFactsAreBounded(t *testing.T) {
	m := newManifests()
	f := &facts{named: make([]named, 10000)}
	for i := range 100 {
		m.add(digest.FromString(string(rune(i))), f)
	}
	if m.cost > maxFacts || m.used.Len() != len(m.known) || m.used.Len() != maxFacts/f.cost() {
		t.Errorf("%d entries of %d bytes", m.used.Len(), m.cost)
	}
	if m.get(digest.FromString(string(rune(99)))) == nil || m.get(digest.FromString(string(rune(0)))) != nil {
		t.Error("the last one used is not kept")
	}
	m.add("huge", &facts{named: make([]named, 1<<20)})
	if m.cost != 0 || m.get("huge") != nil {
		t.Error("one beyond the bound is kept")
	}
}

// Of a manifest that names more than any image, what comes first is remembered.
func TestNamedIsBounded(t *testing.T) {
	f := factsOf(registry.Manifest{Blobs: make([]v1.Descriptor, maxNamed-1), Manifests: make([]v1.Descriptor, 10)})
	if len(f.named) != maxNamed || len(f.inside) != maxNamed || !f.named[maxNamed-1].manifest {
		t.Errorf("%d are remembered", len(f.named))
	}
}

// A blob that is no manifest, or is too long, is not found as one.
func TestManifestRefused(t *testing.T) {
	m := newManifests()
	gate := make(chan struct{})
	close(gate)
	for body, status := range map[string]int{"{}": 404, "": 404, strings.Repeat("x", registry.MaxManifestSize+1): 502} {
		d := document{body, new(atomic.Int64), new(atomic.Int64), new(atomic.Int64), gate}
		var e *registry.Error
		if _, err := m.of(t.Context(), digest.FromString(body), d); !errors.As(err, &e) || e.Status != status {
			t.Errorf("%.10q: %v", body, err)
		}
	}
}

// A manifest is no permission for what it says to be elsewhere.
func TestElsewhereProvesNothing(t *testing.T) {
	here, elsewhere := digest.FromString("here"), digest.FromString("elsewhere")
	f := factsOf(registry.Manifest{Blobs: []v1.Descriptor{
		{Digest: here}, {Digest: elsewhere, URLs: []string{"https://elsewhere.test/x"}},
	}})
	if len(f.named) != 2 || len(f.inside) != 1 || f.inside[0] != here {
		t.Errorf("named %v, inside the repository %v", f.named, f.inside)
	}
}
