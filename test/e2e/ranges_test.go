package e2e

import (
	"net/http"
	"testing"
)

// TestParallelRanges pulls a large layer with a containerd that asks for many
// ranges of it at once, each open-ended, and drops every connection when it has
// its part. The origin sends the layer once all the same.
func TestParallelRanges(t *testing.T) {
	NeedRoot(t)
	Containerd2.Find(t)
	options := ContainerdOptions{RangeSize: 1 << 20, Downloads: 4}
	for _, with := range []puller{withCtr, withCRI} {
		t.Run(with.name, func(t *testing.T) {
			b := newBed(t, SinglePlatform)
			seen := NewTap(t, b.node.Addr, b.daemon.URL())
			c := b.containerd(t, Containerd2, "containerd", options, seen.URL())
			b.pullsAndHolds(t, c, with, byTag())
			runs(t, c, with.namespace, byTag())
			b.nothingWentPast(t)
			b.originSentOnce(t)

			large := b.image.Large()
			if large.Size < LargeLayer {
				t.Fatalf("the largest layer has %d bytes, want %d", large.Size, LargeLayer)
			}
			later := 0
			for _, r := range seen.Requests(t, ForBlob(large.Digest)) {
				switch asked := r.Header.Get("Range"); {
				case asked == "":
					t.Errorf("not ranged: %s", r)
				case r.Status != http.StatusPartialContent:
					t.Errorf("not answered with 206: %s", r)
				case asked != "bytes=0-":
					later++
				}
			}
			// One for each chunk but the first.
			if want := int(large.Size / int64(options.RangeSize)); later < want {
				t.Errorf("%d requests for a later part of the layer, want %d", later, want)
			}
		})
	}
}
