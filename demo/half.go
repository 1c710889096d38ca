package demo

import (
	"net/http"
	"sync"

	"github.com/shoalproject/shoal/registry/registrytest"
)

// half is an order to the origin: when it has sent so many bytes of blobs, in
// all answers together, it says so and waits. So whatever the machine is like,
// what is done then is done in the middle.
type half struct {
	// reached is closed by the origin, resume by who ordered it.
	reached, resume chan struct{}

	mu sync.Mutex
	// Guarded by mu, which is held while the origin waits:
	left int64
}

func newHalf(left int64) *half {
	return &half{left: left, reached: make(chan struct{}), resume: make(chan struct{})}
}

// fault makes an order to the origin of it.
func (h *half) fault() registrytest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&halfWriter{w, h}, r)
		})
	}
}

type halfWriter struct {
	http.ResponseWriter
	h *half
}

func (w *halfWriter) Write(p []byte) (int, error) {
	w.h.pass(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController flush.
func (w *halfWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (h *half) pass(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.left
	if h.left -= n; before > 0 && h.left <= 0 {
		close(h.reached)
		<-h.resume
	}
}
