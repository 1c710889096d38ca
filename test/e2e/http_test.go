package e2e

import (
	"net/http"
	"strconv"
	"testing"
)

// TestEveryBlob fetches everything by plain HTTP in the three ways of naming an
// upstream, cold and again from the store, and hashes it.
func TestEveryBlob(t *testing.T) {
	cases := []struct {
		name   string
		client Client // without Base
	}{
		{"ns", Client{Namespace: upstream, Repository: repository}},
		{"path prefix", Client{Repository: upstream + "/" + repository}},
		{"default", Client{Repository: repository}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, MultiPlatform)
			client := c.client
			client.Base = b.daemon.URL()
			byTag, err := client.Manifest(t.Context(), tag)
			if err != nil {
				t.Fatal(err)
			}
			if err := byTag.is(b.image.Manifests[0]); err != nil {
				t.Errorf("by tag: %v", err)
			}
			for _, pass := range []string{"cold", "from the store"} {
				if err := client.CheckManifests(t.Context(), b.image.Manifests...); err != nil {
					t.Errorf("%s: %v", pass, err)
				}
				if err := client.CheckBlobs(t.Context(), b.image.AllBlobs...); err != nil {
					t.Errorf("%s: %v", pass, err)
				}
			}
			b.originSentOnce(t)
		})
	}
}

// TestRanges fetches parts of a blob that nobody has asked for yet: the first
// byte that comes is the first that was asked.
func TestRanges(t *testing.T) {
	b := newBed(t, SinglePlatform)
	registry := Client{Base: b.registry.Direct.URL(), Repository: repository}
	large := b.image.Large()
	size := strconv.FormatInt(large.Size, 10)
	last := strconv.FormatInt(large.Size-1, 10)
	cases := []struct {
		asked, contentRange string
		status              int
		length              int64
	}{
		{"bytes=" + last + "-", "bytes " + last + "-" + last + "/" + size, http.StatusPartialContent, 1},
		{"bytes=0-0", "bytes 0-0/" + size, http.StatusPartialContent, 1},
		{"bytes=-100", "bytes " + strconv.FormatInt(large.Size-100, 10) + "-" + last + "/" + size, http.StatusPartialContent, 100},
		{"bytes=1000-1000999", "bytes 1000-1000999/" + size, http.StatusPartialContent, 1_000_000},
		{"bytes=" + size + "-", "bytes */" + size, http.StatusRequestedRangeNotSatisfiable, -1},
	}
	for _, c := range cases {
		got, err := b.client().Blob(t.Context(), large.Digest, c.asked)
		if err != nil {
			t.Errorf("%s: %v", c.asked, err)
			continue
		}
		if got.Status != c.status || got.Header.Get("Content-Range") != c.contentRange {
			t.Errorf("%s: status %d and %q, want %d and %q", c.asked, got.Status, got.Header.Get("Content-Range"), c.status, c.contentRange)
		}
		if c.length < 0 {
			continue
		}
		want, err := registry.Blob(t.Context(), large.Digest, c.asked)
		if err != nil {
			t.Fatal(err)
		}
		if got.Size != c.length || got.Digest != want.Digest {
			t.Errorf("%s: %d bytes with digest %s, want %d with %s", c.asked, got.Size, got.Digest, c.length, want.Digest)
		}
	}
	// And the whole afterwards, put together from what is there and what is not.
	if err := b.client().CheckBlobs(t.Context(), large); err != nil {
		t.Error(err)
	}
}
