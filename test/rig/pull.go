package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// client pulls as a runtime does: a connection for each request, no limit on
// the whole.
var client = &http.Client{Transport: &http.Transport{
	DisableKeepAlives:  true,
	DisableCompression: true,
	DialContext:        (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
}}

// Request is one GET or HEAD at a mirror.
type Request struct {
	// Method is GET unless it says otherwise.
	Method string
	// Host is the upstream: the value of ?ns=.
	Host string
	// Path follows /v2/, such as "app/blobs/sha256:…".
	Path string
	// Header is sent as it stands.
	Header http.Header
	// Digest is what the whole body must hash to. Empty: not compared.
	Digest digest.Digest
}

// Result is what came.
type Result struct {
	// Status is 0 if no answer came.
	Status int
	Header http.Header
	// Size counts the bytes of the body that came.
	Size int64
	// Sum is the SHA-256 of the body.
	Sum digest.Digest
	// Right says that the body is complete and has the digest asked for.
	Right bool
	// Err is why the body is not complete.
	Err error
	// Time is from the request to the end of the body.
	Time time.Duration
	// Body has the first 64 KiB of the body.
	Body []byte
}

// Complete reports whether the whole body came without an error.
func (r Result) Complete() bool { return r.Err == nil && r.Status/100 == 2 }

// Wrong reports the one thing that must never be: a complete body of another
// content than was asked for.
func (r Result) Wrong() bool { return r.Complete() && !r.Right }

func (r Result) String() string {
	return fmt.Sprintf("status %d, %d bytes, right %v, err %v, %v", r.Status, r.Size, r.Right, r.Err, r.Time.Round(time.Millisecond))
}

// keep is how much of a body a Result keeps, in bytes.
const keep = 64 << 10

// Do sends a request to a daemon's mirror. It waits no longer than ctx.
func (d *Daemon) Do(ctx context.Context, q Request) Result {
	d.tb.Helper()
	method := q.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+d.Mirror+"/v2/"+q.Path, nil)
	if err != nil {
		d.tb.Fatal(err)
	}
	if q.Host != "" {
		req.URL.RawQuery = "ns=" + q.Host
	}
	for k, v := range q.Header {
		req.Header[k] = v
	}
	return fetch(req, q.Digest)
}

func fetch(req *http.Request, want digest.Digest) (r Result) {
	start := time.Now()
	defer func() { r.Time = time.Since(start) }()
	resp, err := client.Do(req)
	if err != nil {
		return Result{Err: err}
	}
	defer resp.Body.Close()
	sum := &summing{hash: sha256.New()}
	n, err := io.Copy(sum, resp.Body)
	r = Result{Status: resp.StatusCode, Header: resp.Header, Size: n, Err: err, Body: sum.head}
	r.Sum = digest.NewDigest(digest.SHA256, sum.hash)
	if err == nil && req.Method != http.MethodHead && resp.ContentLength >= 0 && n != resp.ContentLength {
		r.Err = errors.New("the body is shorter than its header says")
	}
	r.Right = r.Complete() && (want == "" || r.Sum == want)
	return r
}

// summing hashes all and keeps the beginning.
type summing struct {
	hash hash.Hash
	head []byte
}

func (s *summing) Write(p []byte) (int, error) {
	if free := keep - len(s.head); free > 0 {
		s.head = append(s.head, p[:min(free, len(p))]...)
	}
	return s.hash.Write(p)
}

// Limit bounds each request of Blob and BlobAll.
const Limit = 2 * time.Minute

// Blob pulls a blob of upstream host.
func (d *Daemon) Blob(host, repo string, dg digest.Digest) Result {
	d.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	return d.Do(ctx, Request{Host: host, Path: repo + "/blobs/" + dg.String(), Digest: dg})
}

// Manifest gets a manifest by tag or digest.
func (d *Daemon) Manifest(host, repo, ref string) Result {
	d.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	q := Request{Host: host, Path: repo + "/manifests/" + ref}
	if dg, err := digest.Parse(ref); err == nil {
		q.Digest = dg
	}
	return d.Do(ctx, q)
}

// BlobAll pulls a blob from all daemons at once. It returns the results in
// their order, and the time of the last.
func BlobAll(daemons []*Daemon, host, repo string, dg digest.Digest) ([]Result, time.Duration) {
	results := make([]Result, len(daemons))
	start := time.Now()
	var wg sync.WaitGroup
	for i, d := range daemons {
		wg.Go(func() { results[i] = d.Blob(host, repo, dg) })
	}
	wg.Wait()
	return results, time.Since(start)
}

// AllRight fails the test unless every body is complete and right.
func AllRight(tb testing.TB, results []Result) {
	tb.Helper()
	for i, r := range results {
		if !r.Right {
			tb.Errorf("pull %d: %v", i, r)
		}
	}
}
