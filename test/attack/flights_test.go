package attack

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// One registry sends 80 layers so slowly that they do not end. Pulls from
// another registry, and what is small at the slow one, come as fast as without
// them; another layer of the slow registry comes too.
func TestSlowRegistryStopsNoOtherPull(t *testing.T) {
	slow, fast := registrytest.New(t), registrytest.New(t)
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(fast), "slow.test=" + slow.URL()}, Args: []string{"--auth", "open"}})
	stuck := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stuck)
	const layers = 80
	for i := range layers {
		d := slow.AddBlob("app", noise(uint64(i), 1<<20))
		slow.Inject(registrytest.Order{Digest: d}, registrytest.HangAfter(1000, stuck))
		wg.Go(func() {
			resp, err := http.Get("http://" + n.Mirror + "/v2/app/blobs/" + d.String() + "?ns=slow.test")
			if err == nil {
				<-stuck
				resp.Body.Close()
			}
		})
	}
	rig.Eventually(t, "the layers are under way", 30*time.Second, func() error {
		if slow.Concurrent() < 48 {
			return errors.New("fewer than 48 requests")
		}
		return nil
	})
	image, small := fast.AddImage("app", "v1", noise(100, 1<<20)), slow.AddImage("other", "v1", noise(101, 1000))
	for name, r := range map[string]rig.Result{
		"manifest of another registry":    n.Manifest(upstream, "app", image.Manifest.Digest.String()),
		"layer of another registry":       n.Blob(upstream, "app", image.Layers[0].Digest),
		"manifest of the slow registry":   n.Manifest("slow.test", "other", "v1"),
		"config of the slow registry":     n.Blob("slow.test", "other", small.Config.Digest),
		"layer of the slow registry":      n.Blob("slow.test", "other", small.Layers[0].Digest),
		"uncached manifest by its digest": n.Manifest("slow.test", "other", small.Manifest.Digest.String()),
	} {
		t.Logf("%s: %v", name, r)
		if !r.Right || r.Time > 4*time.Second {
			t.Errorf("%s: %v %s", name, r, r.Body)
		}
	}
}
