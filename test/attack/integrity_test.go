package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// A byte that changes on the disk while its blob is coming is delivered to
// nobody: not while it comes, and not from the complete blob.
func TestRotOfAComingBlobIsNotDelivered(t *testing.T) {
	const size = 12 << 20
	o := registrytest.New(t)
	cancel := o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Throttle(4<<20))
	d := o.AddBlob("app", noise(9, size))
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	first := make(chan rig.Result, 1)
	go func() { first <- n.Blob(upstream, "app", d) }()

	file := filepath.Join(n.DataDir, "partial", strings.Replace(d.String(), ":", "-", 1))
	const where = 600 << 10
	rig.Eventually(t, "the byte has come, and was hashed a while ago", 10*time.Second, func() error {
		if o.Sent(d) < 7<<20 { // 1.6 s of it
			return fmt.Errorf("%d bytes sent", o.Sent(d))
		}
		return nil
	})
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, where); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, where); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	wrong := func(who string, r rig.Result) {
		t.Helper()
		t.Logf("%s: %v", who, r)
		if r.Wrong() {
			t.Errorf("%s got a body that is complete and wrong", who)
		}
	}
	wrong("another client, while it comes", n.Blob(upstream, "app", d))
	wrong("the first client", <-first)
	cancel()
	for range 3 {
		r := n.Blob(upstream, "app", d)
		wrong("a client afterwards", r)
		if !r.Right {
			t.Errorf("the pull afterwards fails: %v", r)
		}
	}
	if n.Metric("shoal_store_corruptions_total") == 0 {
		t.Error("no corruption is counted")
	}
}

// A manifest that claims gigabytes takes nothing from the cache.
func TestStatedSizeEvictsNothing(t *testing.T) {
	const count, size = 20, 1 << 20
	o := registrytest.New(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	n := rig.StartDaemon(t, rig.DaemonConfig{
		Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open", "--cache-size", "1GiB"},
	})
	var held []digest.Digest
	for i := range count {
		d := o.AddBlob("app", noise(uint64(100+i), size))
		if r := n.Blob(upstream, "app", d); !r.Right {
			t.Fatal(r)
		}
		held = append(held, d)
	}
	rig.Eventually(t, "all blobs are in the cache", 10*time.Second, func() error {
		if have := n.Metric(`shoal_store_blobs{state="complete"}`); have != count {
			return fmt.Errorf("%v are", have)
		}
		return nil
	})
	layer := noise(1, 1000)
	manifest, err := json.Marshal(v1.Manifest{
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: o.AddBlob("evil", []byte("{}")), Size: 2},
		Layers:    []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: o.AddBlob("evil", layer), Size: 1<<30 - 1<<20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest = []byte(strings.Replace(string(manifest), `{`, `{"schemaVersion":2,`, 1))
	manifest = []byte(strings.Replace(string(manifest), `"schemaVersion":0,`, ``, 1))
	o.AddManifest("evil", "latest", v1.MediaTypeImageManifest, manifest)
	if r := n.Manifest(upstream, "evil", "latest"); r.Status != http.StatusOK {
		t.Fatal(r)
	}
	r := n.Blob(upstream, "evil", digest.FromBytes(layer))
	t.Logf("the layer: %v", r)
	if r.Wrong() {
		t.Error("the layer is complete and wrong")
	}
	sent := o.SentTotal()
	for _, d := range held {
		if r := n.Blob(upstream, "app", d); !r.Right {
			t.Error(r)
		}
	}
	if again := o.SentTotal() - sent; again > 0 || n.Metric("shoal_store_evictions_total") > 0 {
		t.Errorf("%v evictions; the origin had to send %d bytes again", n.Metric("shoal_store_evictions_total"), again)
	}
}

// A blob of no bytes needs nobody.
func TestEmptyBlobNeedsNoSwarm(t *testing.T) {
	o := registrytest.New(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	empty := o.AddBlob("app", nil)
	for i := range 2 {
		n := rig.StartDaemon(t, rig.DaemonConfig{
			Name: fmt.Sprintf("node-%d", i), Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open"},
		})
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
			r := n.Do(ctx, rig.Request{Method: method, Host: upstream, Path: "app/blobs/" + empty.String(), Digest: empty})
			cancel()
			t.Logf("%s: %v", method, r)
			if method == http.MethodGet && !r.Right || r.Status != http.StatusOK || r.Header.Get("Content-Length") != "0" {
				t.Errorf("%s: %v, %v", method, r, r.Header)
			}
			if r.Time > 2*time.Second {
				t.Errorf("%s takes %v", method, r.Time)
			}
		}
	}
	if got := o.Requests(); len(got) > 0 {
		t.Errorf("the origin was asked %v", got)
	}
}
