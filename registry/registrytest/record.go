package registrytest

import (
	"net/http"
	"net/url"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxLog bounds the log of requests; the counts go on.
const maxLog = 1 << 16

// Request is what is remembered of a request.
type Request struct {
	Kind   Kind
	Method string
	Host   string // the Host header
	Path   string
	Repo   string
	Digest digest.Digest // of a blob, manifest or subject asked for by digest
	Range  string
	// Authorization is the header as it came, so that tests can tell whose it
	// is.
	Authorization string
	// Form is the query and, of a token request, the body.
	Form   url.Values
	Header http.Header
}

type subject struct {
	kind   Kind
	repo   string
	digest digest.Digest
	ref    string // tag or digest
}

type countKey struct {
	kind   Kind
	method string
}

type counter struct {
	mu      sync.Mutex // guards all below
	log     []Request
	counts  map[countKey]int
	sent    map[digest.Digest]int64
	total   int64
	now     int
	highest int
}

// handle records a request and leads it through the faults ordered for it.
func (o *Origin) handle(w http.ResponseWriter, r *http.Request, s subject, serve http.HandlerFunc) {
	o.counter.begin(r, s)
	defer o.counter.end()
	var h http.Handler = serve
	for _, f := range o.faultsFor(r, s) {
		h = f(h)
	}
	h.ServeHTTP(&countingWriter{ResponseWriter: w, c: &o.counter, s: s}, r)
}

func (c *counter) begin(r *http.Request, s subject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts, c.sent = map[countKey]int{}, map[digest.Digest]int64{}
	}
	c.counts[countKey{s.kind, r.Method}]++
	c.now++
	c.highest = max(c.highest, c.now)
	if len(c.log) < maxLog {
		form := r.Form
		if form == nil {
			form = r.URL.Query()
		}
		c.log = append(c.log, Request{
			Kind: s.kind, Method: r.Method, Host: r.Host, Path: r.URL.Path, Repo: s.repo, Digest: s.digest,
			Range: r.Header.Get("Range"), Authorization: r.Header.Get("Authorization"), Form: form, Header: r.Header.Clone(),
		})
	}
}

func (c *counter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
}

// countingWriter counts payload: bytes of bodies with a status of 2xx. What a
// fault added or altered counts as well.
type countingWriter struct {
	http.ResponseWriter
	c      *counter
	s      subject
	status int
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	// Counted before they leave, so that a client that has them finds them
	// counted.
	w.count(len(p))
	n, err := w.ResponseWriter.Write(p)
	w.count(n - len(p))
	return n, err
}

func (w *countingWriter) count(n int) {
	if n == 0 || w.status/100 != 2 || w.s.kind != Blob && w.s.kind != Store && w.s.kind != Manifest {
		return
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.sent[w.s.digest] += int64(n)
	w.c.total += int64(n)
}

// Unwrap lets http.ResponseController flush and hijack.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Count returns how many requests of a kind came, by any of the methods, or
// by any at all if none is given.
func (o *Origin) Count(kind Kind, methods ...string) int {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	n := 0
	for k, v := range o.counter.counts {
		if k.kind == kind && (len(methods) == 0 || slices.Contains(methods, k.method)) {
			n += v
		}
	}
	return n
}

// Requests returns the requests that came, oldest first, of the given kinds
// or of all. Beyond 65,536 none are kept.
func (o *Origin) Requests(of ...Kind) []Request {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	var out []Request
	for _, r := range o.counter.log {
		if len(of) == 0 || slices.Contains(of, r.Kind) {
			out = append(out, r)
		}
	}
	return out
}

// Sent returns the payload bytes sent of a blob, or of a manifest by digest,
// by the API and the store together.
func (o *Origin) Sent(d digest.Digest) int64 {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	return o.counter.sent[d]
}

// SentTotal returns the payload bytes sent of all blobs and manifests.
func (o *Origin) SentTotal() int64 {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	return o.counter.total
}

// MaxConcurrent returns the highest number of requests at once so far.
func (o *Origin) MaxConcurrent() int {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	return o.counter.highest
}

// Concurrent returns the number of requests now.
func (o *Origin) Concurrent() int {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	return o.counter.now
}

// ResetCounters forgets requests and bytes, but not tokens issued.
func (o *Origin) ResetCounters() {
	o.counter.mu.Lock()
	defer o.counter.mu.Unlock()
	o.counter.log, o.counter.total, o.counter.highest = nil, 0, o.counter.now
	clear(o.counter.counts)
	clear(o.counter.sent)
}
