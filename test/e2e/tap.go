package e2e

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// tapEntries bounds what one tap records. A pull makes tens of requests.
const tapEntries = 50_000

// Tap is a reverse proxy that writes down what passes. One stands before the
// registry, to count what the origin sends; one may stand before a daemon, to
// see what a runtime asks.
type Tap struct {
	// Addr is the address that the tap listens on, host:port.
	Addr string

	server    *http.Server
	served    chan struct{} // closed when the server has ended
	transport *http.Transport

	mu       sync.Mutex // guards what follows
	requests []*Request
	inFlight int
	lost     int // requests beyond tapEntries
	match    func(Request) bool
	fault    *Fault // done to what matches; see fault.go
}

// Request is one request that passed a tap.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header http.Header
	// From is the IP address of the client.
	From string
	// Status is what the server answered, 0 when it did not.
	Status int
	// Bytes is how much body went to the client, in bytes. What the client
	// left unread in socket buffers counts.
	Bytes int64
	// Ended says that the answer is over.
	Ended bool
}

func (r Request) String() string {
	s := fmt.Sprintf("%s %s", r.Method, r.Path)
	if len(r.Query) > 0 {
		s += "?" + r.Query.Encode()
	}
	if v := r.Header.Get("Range"); v != "" {
		s += " [" + v + "]"
	}
	return fmt.Sprintf("%s -> %d, %d bytes (%s, %s)", s, r.Status, r.Bytes, r.From, r.Header.Get("User-Agent"))
}

// NewTap starts a tap before backend, a base URL, on a port of addr. It ends
// with the test.
func NewTap(t testing.TB, addr, backend string) *Tap {
	t.Helper()
	target, err := url.Parse(backend)
	if err != nil {
		t.Fatalf("tap before %q: %v", backend, err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatalf("tap before %s: %v", backend, err)
	}
	transport := &http.Transport{
		// Pass on what the client asked, and never decode the answer.
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport:     transport,
		FlushInterval: -1,
		// A client that drops a connection is normal here.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	tap := &Tap{Addr: l.Addr().String(), served: make(chan struct{})}
	tap.server = &http.Server{
		Handler:           tap.record(proxy),
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	tap.transport = transport
	go func() {
		defer close(tap.served)
		_ = tap.server.Serve(l)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what passed the tap before %s:\n%s", backend, tap.describe())
		}
	})
	t.Cleanup(func() { tap.Stop(t) })
	return tap
}

// URL is the tap's base URL.
func (tap *Tap) URL() string { return "http://" + tap.Addr }

// Stop closes the tap: connections to it are cut, new ones refused.
func (tap *Tap) Stop(t testing.TB) {
	t.Helper()
	tap.Heal()
	_ = tap.server.Close()
	<-tap.served
	tap.rest(t)
	tap.transport.CloseIdleConnections()
}

func (tap *Tap) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		entry := &Request{Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Header: r.Header.Clone(), From: from}
		tap.mu.Lock()
		tap.inFlight++
		if len(tap.requests) < tapEntries {
			tap.requests = append(tap.requests, entry)
		} else {
			tap.lost++
		}
		tap.mu.Unlock()
		defer func() {
			tap.mu.Lock()
			tap.inFlight--
			entry.Ended = true
			tap.mu.Unlock()
		}()
		w = &countedWriter{ResponseWriter: w, tap: tap, entry: entry}
		if fault := tap.faultFor(*entry); fault != nil {
			w = &faultyWriter{ResponseWriter: w, fault: fault, gone: r.Context().Done()}
		}
		next.ServeHTTP(w, r)
	})
}

// countedWriter counts the body that passes through it.
type countedWriter struct {
	http.ResponseWriter
	tap   *Tap
	entry *Request
}

// Unwrap lets the proxy flush through it.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *countedWriter) WriteHeader(status int) {
	w.tap.mu.Lock()
	w.entry.Status = status
	w.tap.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

// Write counts what was taken.
func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.tap.mu.Lock()
	w.entry.Bytes += int64(n)
	w.tap.mu.Unlock()
	return n, err
}

// Requests waits until nothing is in flight, and returns what passed and
// matches all of the filters, in order of arrival.
func (tap *Tap) Requests(t testing.TB, filters ...func(Request) bool) []Request {
	t.Helper()
	tap.rest(t)
	return tap.SoFar(t, filters...)
}

// SoFar is [Tap.Requests] without the wait: what is in flight is there as far
// as it has come.
func (tap *Tap) SoFar(t testing.TB, filters ...func(Request) bool) []Request {
	t.Helper()
	tap.mu.Lock()
	defer tap.mu.Unlock()
	if tap.lost > 0 {
		t.Fatalf("the tap lost %d requests", tap.lost)
	}
	var out []Request
next:
	for _, r := range tap.requests {
		for _, match := range filters {
			if !match(*r) {
				continue next
			}
		}
		out = append(out, *r)
	}
	return out
}

// rest waits until nothing is in flight.
func (tap *Tap) rest(t testing.TB) {
	t.Helper()
	Eventually(t, "the tap comes to rest", 30*time.Second, func() error {
		tap.mu.Lock()
		defer tap.mu.Unlock()
		if tap.inFlight > 0 {
			return fmt.Errorf("%d requests in flight", tap.inFlight)
		}
		return nil
	})
}

// Bytes is the sum of the bodies of what matches, in bytes.
func (tap *Tap) Bytes(t testing.TB, filters ...func(Request) bool) int64 {
	t.Helper()
	return bytesOf(tap.Requests(t, filters...))
}

func bytesOf(requests []Request) int64 {
	var sum int64
	for _, r := range requests {
		sum += r.Bytes
	}
	return sum
}

// Reset forgets what passed so far.
func (tap *Tap) Reset(t testing.TB) {
	t.Helper()
	tap.rest(t)
	tap.mu.Lock()
	defer tap.mu.Unlock()
	tap.requests = nil
}

func (tap *Tap) describe() string {
	tap.mu.Lock()
	defer tap.mu.Unlock()
	var b strings.Builder
	for _, r := range tap.requests {
		fmt.Fprintln(&b, r)
	}
	return b.String()
}

// ForBlob matches GET requests for the content of one digest, as a blob.
func ForBlob(digest string) func(Request) bool {
	return func(r Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/blobs/"+digest)
	}
}

// ForBlobs matches GET requests for any blob.
func ForBlobs(r Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.Path, "/blobs/")
}

// ForContent matches requests for manifests and blobs, and not the ping of /v2/.
func ForContent(r Request) bool {
	return strings.Contains(r.Path, "/blobs/") || strings.Contains(r.Path, "/manifests/")
}

// From matches requests of clients at an IP address.
func From(addr string) func(Request) bool {
	return func(r Request) bool { return r.From == addr }
}

// Delivered matches requests that were answered with content.
func Delivered(r Request) bool {
	return r.Method == http.MethodGet && (r.Status == http.StatusOK || r.Status == http.StatusPartialContent)
}
