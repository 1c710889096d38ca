package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestThousandClients has 1,000 clients ask one daemon for one cold blob. The
// origin's answer is held until all of them wait for it.
func TestThousandClients(t *testing.T) {
	const (
		clients = 1000
		size    = 64 << 20
		// memory is what a daemon may have resident, in bytes, whatever it does.
		memory = 128 << 20
		// overdue bounds the whole transfer. It moves 62.5 GiB and takes about
		// a minute on two cores.
		overdue = 8 * time.Minute
	)
	needDescriptors(t, 2*clients)
	b := bedWithBlobs(t, DaemonConfig{}, noiseBytes(10, size))
	blob := b.blobs[0]
	hold := &Fault{HoldAfter: 1}
	b.registry.Origin.Order(ForBlob(blob.Digest), hold)

	ctx, cancel := context.WithTimeout(t.Context(), overdue)
	defer cancel()
	client := crowdClient()
	defer client.CloseIdleConnections()
	begun := time.Now()
	results := make(chan error, clients)
	for range clients {
		go func() { results <- getOne(ctx, client, b.blobURL(blob), blob) }()
	}
	Eventually(t, "all but the first join its download", time.Minute, func() error {
		joined, err := b.daemon.Metric(`shoal_blob_requests_total{result="joined"}`)
		if err == nil && joined != clients-1 {
			err = fmt.Errorf("%v have joined", joined)
		}
		return err
	})
	waiting := time.Since(begun)
	b.registry.Origin.Heal()
	failed := 0
	for range clients {
		if err := <-results; err != nil {
			if failed++; failed <= 5 {
				t.Error(err)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d clients did not get the blob", failed, clients)
	}
	took := time.Since(begun) - waiting

	sent := b.registry.Origin.Requests(t, ForBlob(blob.Digest))
	if len(sent) != 1 {
		t.Errorf("the origin had %d requests for the blob, want 1: %v", len(sent), sent)
	}
	peak, err := b.daemon.PeakMemory()
	if err != nil {
		t.Fatal(err)
	}
	if peak > memory {
		t.Errorf("the daemon had %d MiB resident, want at most %d", peak>>20, memory>>20)
	}
	t.Logf("%d clients waited after %v; then %d GiB in %v, %.0f MiB/s; the origin had %d requests; the daemon's peak was %.1f MiB",
		clients, waiting.Round(time.Millisecond), clients*size>>30, took.Round(time.Millisecond),
		float64(clients*size>>20)/took.Seconds(), len(sent), float64(peak)/(1<<20))
}

// TestDescriptorsRunOut gives the daemon fewer descriptors than the connections
// and downloads that come, until it has none left. When they have gone, it works
// and keeps what it fetches as before.
func TestDescriptorsRunOut(t *testing.T) {
	const (
		descriptors = 80
		idle        = 150
		downloads   = 60
		size        = 600 << 10 // bytes; more than one piece
		// patience is when a download counts as hanging for good. A daemon closes
		// a connection without a request after 10 s.
		patience = 90 * time.Second
	)
	contents := make([][]byte, downloads+1)
	for i := range contents {
		contents[i] = noiseBytes(byte(20+i), size)
	}
	b := bedWithBlobs(t, DaemonConfig{Descriptors: descriptors}, contents...)
	before := b.openDescriptors(t)
	last := b.blobs[downloads] // asked for at the end only

	hold := &Fault{HoldAfter: 1}
	b.registry.Origin.Order(ForBlobs, hold)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := crowdClient()
	defer client.CloseIdleConnections()
	results := make(chan error, downloads)
	for _, blob := range b.blobs[:downloads] {
		go func() { results <- getOne(ctx, client, b.blobURL(blob), blob) }()
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range idle {
		c, err := net.DialTimeout("tcp", b.daemon.Addr, 10*time.Second)
		if err != nil {
			t.Fatalf("connecting to the daemon: %v", err)
		}
		conns = append(conns, c)
	}
	Eventually(t, "the daemon has no descriptor left", time.Minute, func() error {
		if n := b.openDescriptors(t); n < descriptors {
			return fmt.Errorf("it has %d of %d open", n, descriptors)
		}
		return nil
	})
	b.registry.Origin.Heal()
	for _, c := range conns {
		c.Close()
	}
	refused := 0
	for range downloads {
		err := <-results
		if ctx.Err() != nil {
			t.Fatalf("a download still hung after %v: %v", patience, err)
		}
		if err != nil {
			if refused++; refused <= 3 {
				t.Logf("refused while descriptors were short: %v", err)
			}
		}
	}
	t.Logf("%d descriptors, %d before; of %d downloads at once %d were refused", descriptors, before, downloads, refused)
	if gone, err := b.daemon.Exited(); gone {
		t.Fatalf("the daemon ended: %v", err)
	}
	// Connections that nobody has any more are still in the queue to be accepted.
	Eventually(t, "descriptors are given back", time.Minute, func() error {
		// A few connections to the origin may be kept for later.
		if n := b.openDescriptors(t); n > before+descriptors/4 {
			return fmt.Errorf("%d are open, %d were before", n, before)
		}
		return nil
	})

	if err := getOK("http://" + b.daemon.Admin + "/readyz"); err != nil {
		t.Errorf("after the clients left: %v", err)
	}
	// It may still be accepting what is in that queue, and be short for it.
	Eventually(t, "all can be had after the clients left", time.Minute, func() error {
		return b.client().CheckBlobs(t.Context(), b.blobs[:downloads]...)
	})
	// What comes now is kept, too: running short has not turned the store off.
	for range 2 {
		if err := b.client().CheckBlobs(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.registry.Origin.Requests(t, ForBlob(last.Digest))); n != 1 {
		t.Errorf("the origin had %d requests for a blob pulled twice afterwards, want 1", n)
	}
}

// blobBed is a daemon before a registry that has blobs and no manifests.
type blobBed struct {
	bed
	blobs []Descriptor
}

func bedWithBlobs(t *testing.T, config DaemonConfig, contents ...[]byte) *blobBed {
	t.Helper()
	b := &blobBed{}
	b.registry = NewNode(t, "origin").StartRegistry(t)
	for _, content := range contents {
		b.blobs = append(b.blobs, b.registry.PushBlob(t, content, repository))
	}
	config.Registries = []string{upstream + "=" + b.registry.Origin.URL()}
	b.node = NewNode(t, "node")
	b.daemon = b.node.StartDaemon(t, config)
	return b
}

func (b *blobBed) blobURL(d Descriptor) string {
	return fmt.Sprintf("%s/v2/%s/blobs/%s?ns=%s", b.daemon.URL(), repository, d.Digest, upstream)
}

// openDescriptors is how many descriptors the daemon has open.
func (b *blobBed) openDescriptors(t *testing.T) int {
	t.Helper()
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", b.daemon.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// needDescriptors is for tests that open many connections. Go has raised the
// limit as far as it goes.
func needDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < n {
		missing(t, "needs %d file descriptors, the limit is %d", n, limit.Cur)
	}
}

// crowdClient is for many requests at once, a connection for each.
func crowdClient() *http.Client {
	dialer := &net.Dialer{
		// Small buffers of a fixed size: by itself the kernel would give each
		// connection some MiB.
		Control: func(_, _ string, conn syscall.RawConn) error {
			var failed error
			err := conn.Control(func(fd uintptr) {
				failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 256<<10)
			})
			if err != nil {
				return err
			}
			return failed
		},
	}
	return &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true,
	}}
}

// copyBuffers are what bodies are read into: large for throughput, shared
// because a thousand would be large together.
var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// errWrongBody is for a body that ended well and is not what was asked for.
var errWrongBody = errors.New("a wrong body was delivered whole")

// getOne gets a blob, hashes it as it comes, and keeps nothing of it.
func getOne(ctx context.Context, client *http.Client, url string, want Descriptor) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s answered %s: %s", want.Digest, resp.Status, body)
	}
	buffer := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buffer)
	hash := sha256.New()
	// The body alone, lest a ReaderFrom or WriterTo bring buffers of its own.
	size, err := io.CopyBuffer(hash, struct{ io.Reader }{resp.Body}, buffer[:])
	if err != nil {
		return fmt.Errorf("reading %s after %d bytes: %w", want.Digest, size, err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != want.Digest || size != want.Size {
		return fmt.Errorf("%w: %s came as %d bytes with digest %s", errWrongBody, want.Digest, size, got)
	}
	return nil
}
