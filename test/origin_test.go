package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// A thousand clients, one origin request, every body right, memory bounded.
func TestThousandClients(t *testing.T) {
	o := registrytest.New(t)
	const size = 4 << 20 // the end-to-end tests do it with 64 MiB
	d := o.AddBlob("app", noise(20, size))
	n := startNode(t, o)
	release := make(chan struct{})
	// Nothing moves before all have asked, so that all of them find it cold.
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Hang(release))
	transport := &http.Transport{MaxConnsPerHost: 0}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	const clients = 1000
	errs := make(chan error, clients)
	for range clients {
		go func() { errs <- checkBlob(client, n.url+blobPath(d), d) }()
	}
	eventually(t, "all clients have asked", func() bool {
		return n.metric(`shoal_blob_requests_total{result="joined"}`) == "999"
	})
	close(release)
	for range clients {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if got := o.Count(registrytest.Blob); got != 1 || o.Sent(d) != size {
		t.Errorf("origin was asked %d times and sent %d bytes", got, o.Sent(d))
	}
}

// checkBlob gets a blob and checks its digest without keeping it.
func checkBlob(c *http.Client, url string, d digest.Digest) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	v := d.Verifier()
	if _, err := io.Copy(v, resp.Body); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("wrong bytes delivered as complete")
	}
	return nil
}

func TestOriginDown(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(21, 100))
	layer := image.Layers[0].Digest
	n := startNode(t, o)
	n.get(manifestPath("v1"))
	n.blob(layer)
	n.settled()
	o.Down()
	n.right(n.get(manifestPath("v1")), image.Manifest.Digest)
	n.blob(layer)
	a := n.get(blobPath(image.Config.Digest))
	if a.StatusCode != 503 || !strings.Contains(string(a.body), upstream) {
		t.Errorf("a cold blob: %d %s", a.StatusCode, a.body)
	}
}

// What an origin sends is checked: none of these is delivered as complete or
// kept, and the next request, when the origin is well again, succeeds.
func TestCorruptOrigin(t *testing.T) {
	content := noise(22, 2<<20)
	for name, fault := range map[string]registrytest.Fault{
		"first byte flipped":     registrytest.Flip(0),
		"byte in the middle":     registrytest.Flip(1 << 20),
		"last byte flipped":      registrytest.Flip(2<<20 - 1),
		"too many bytes":         registrytest.Extra(10),
		"HTML page":              registrytest.HTML(),
		"gzip":                   registrytest.Gzip(),
		"longer Content-Length":  registrytest.Length(100),
		"shorter Content-Length": registrytest.Length(-100),
		"redirect loop":          registrytest.RedirectLoop(),
		"500":                    registrytest.Status(500),
		"an empty 200":           registrytest.Answer(200, ""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := registrytest.New(t)
			d := o.AddBlob("app", content)
			n := startNode(t, o)
			o.Inject(registrytest.Order{Kind: registrytest.Blob}, fault)
			a := n.get(blobPath(d))
			n.incomplete(a)
			n.settled()
			n.stored(d, false)
			// What the runtime does next: ask for the rest.
			again := n.get(blobPath(d), "Range", fmt.Sprintf("bytes=%d-", len(a.body)))
			n.incomplete(again)
			if again.StatusCode != 0 && again.StatusCode < 500 {
				t.Errorf("the request for the rest: %d", again.StatusCode)
			}
			if got := o.Count(registrytest.Blob); got > 12 {
				t.Errorf("origin was asked %d times", got)
			}
			if strings.Contains(name, "flipped") {
				log := n.logs.String()
				if !strings.Contains(log, d.String()) || !strings.Contains(log, upstream+"/app") {
					t.Error("the log does not name digest and origin")
				}
			}
			o.Heal()
			n = n.restart() // forgets that the origin was bad
			n.blob(d)
		})
	}
}

func TestResumesAfterCuts(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(23, 4<<20))
	n := startNode(t, o)
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Times: 6}, registrytest.Cut(600<<10))
	n.blob(d)
	if sent := o.Sent(d); sent > 4<<20+6*256<<10 {
		t.Errorf("origin sent %d bytes of 4 MiB", sent)
	}
}

func TestOriginWithoutRanges(t *testing.T) {
	o := registrytest.New(t)
	content := noise(24, 3<<20)
	d := o.AddBlob("app", content)
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.NoRanges())
	n := startNode(t, o)
	a := n.get(blobPath(d), "Range", "bytes=2000000-")
	if a.err != nil || a.StatusCode != 206 || !bytes.Equal(a.body, content[2000000:]) {
		t.Fatalf("status %d, %v, %d bytes", a.StatusCode, a.err, len(a.body))
	}
	if sent := o.Sent(d); sent > 3<<20 {
		t.Errorf("origin sent %d bytes", sent)
	}
}

// An origin that sends one step at a time is streamed on as it sends.
func TestSlowOrigin(t *testing.T) {
	o := registrytest.New(t)
	content := noise(25, 1<<20)
	d := o.AddBlob("app", content)
	const chunk = 8 << 10
	step := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Slow(chunk, step))
	n := startNode(t, o)
	got := make(chan error, 1)
	body := make(chan io.ReadCloser, 1)
	go func() {
		resp, err := n.http.Get(n.url + blobPath(d))
		if err == nil {
			body <- resp.Body
		}
		got <- err
	}()
	step <- struct{}{}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	b := <-body
	defer b.Close()
	buf := make([]byte, chunk)
	for i := range 5 {
		if i > 0 {
			step <- struct{}{}
		}
		if _, err := io.ReadFull(b, buf); err != nil || !bytes.Equal(buf, content[i*chunk:(i+1)*chunk]) {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	close(step)
	rest, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(rest, content[5*chunk:]) {
		t.Fatalf("the rest: %d bytes, %v", len(rest), err)
	}
}

// 429 is honoured once for all, and never handed to a runtime.
func TestTooManyRequests(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(26, 100))
	o.Inject(registrytest.Order{}, registrytest.Status(429, "Retry-After", "100"))
	n := startNode(t, o)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a := n.get(blobPath(d)); a.StatusCode != 503 || a.Header.Get("Retry-After") == "" {
				t.Errorf("status %d, Retry-After %q", a.StatusCode, a.Header.Get("Retry-After"))
			}
		})
	}
	wg.Wait()
	if got := len(o.Requests()); got > 3 {
		t.Errorf("origin was asked %d times", got)
	}
}

func TestTokenExpiresInsideLayer(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Allow: func(string, string) bool { return true }, Life: time.Hour}))
	d := o.AddBlob("app", noise(27, 4<<20))
	n := startNode(t, o)
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Method: "GET", Skip: 1, Times: 1},
		registrytest.Chain(registrytest.After(1<<20, o.RevokeTokens), registrytest.Cut(2<<20)))
	n.blob(d)
	if sent := o.Sent(d); sent > 4<<20+256<<10 {
		t.Errorf("origin sent %d bytes of 4 MiB", sent)
	}
	if o.TokensIssued() != 2 {
		t.Errorf("%d tokens were issued", o.TokensIssued())
	}
}

func TestRedirectsToObjectStore(t *testing.T) {
	o := registrytest.New(t, registrytest.WithStore(), registrytest.WithAuth(registrytest.Auth{Allow: func(string, string) bool { return true }}))
	d := o.AddBlob("app", noise(28, 4<<20))
	n := startNode(t, o, func(c *daemon.Config) { c.Registries[0] += ",allow=" + o.StoreHost() })
	// The signed URL expires while the connection is cut.
	o.Inject(registrytest.Order{Kind: registrytest.Store, Times: 1}, registrytest.Chain(registrytest.After(1<<20, o.ExpireURLs), registrytest.Cut(1<<20)))
	n.blob(d)
}

func TestBadManifests(t *testing.T) {
	both := fmt.Sprintf(`{"schemaVersion":2,"manifests":[],"layers":[],"config":{"mediaType":"x/y","digest":%q,"size":1}}`, digest.FromString("x"))
	image := fmt.Sprintf(`{"schemaVersion":2,"layers":[],"config":{"mediaType":"x/y","digest":%q,"size":1}}`, digest.FromString("x"))
	for name, c := range map[string]struct{ mediaType, body string }{
		"index and image at once":    {v1.MediaTypeImageManifest, both},
		"type other than its header": {v1.MediaTypeImageIndex, image},
		"schema 1":                   {"application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[]}`},
		"no JSON":                    {v1.MediaTypeImageManifest, "hello"},
		"over 4 MiB":                 {v1.MediaTypeImageManifest, image[:len(image)-1] + `,"x":"` + strings.Repeat("y", 4<<20) + `"}`},
		"octets":                     {"application/octet-stream", image},
	} {
		t.Run(name, func(t *testing.T) {
			o := registrytest.New(t)
			d := o.AddManifest("app", "v1", c.mediaType, []byte(c.body))
			n := startNode(t, o)
			for _, ref := range []string{"v1", d.String()} {
				want := 502
				if name == "schema 1" {
					want = 404 // of this kind the registry has none that can be served
				}
				if a := n.get(manifestPath(ref)); a.StatusCode != want {
					t.Errorf("%s: status %d %.200s", ref, a.StatusCode, a.body)
				}
			}
			n.stored(d, false)
		})
	}
	t.Run("endless", func(t *testing.T) {
		o := registrytest.New(t)
		image := o.AddImage("app", "v1")
		o.Inject(registrytest.Order{Kind: registrytest.Manifest, Method: "GET"}, registrytest.Endless(v1.MediaTypeImageManifest))
		n := startNode(t, o)
		for _, ref := range []string{"v1", image.Manifest.Digest.String()} {
			if a := n.get(manifestPath(ref)); a.StatusCode != 502 {
				t.Errorf("%s: status %d", ref, a.StatusCode)
			}
		}
	})
	t.Run("wrong digest", func(t *testing.T) {
		o := registrytest.New(t)
		image := o.AddImage("app", "v1")
		o.Inject(registrytest.Order{Kind: registrytest.Manifest}, registrytest.Answer(200, both, "Content-Type", v1.MediaTypeImageManifest))
		n := startNode(t, o)
		if a := n.get(manifestPath(image.Manifest.Digest.String())); a.StatusCode != 502 {
			t.Errorf("status %d", a.StatusCode)
		}
	})
}

// A blob asked for as a manifest is none.
func TestBlobAsManifest(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(29, 100))
	n := startNode(t, o)
	n.blob(d)
	if a := n.get(manifestPath(d.String())); a.StatusCode != 404 {
		t.Errorf("status %d", a.StatusCode)
	}
}
