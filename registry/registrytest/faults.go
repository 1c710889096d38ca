package registrytest

import (
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/time/rate"
)

// instead is a fault that never asks the handler.
func instead(f http.HandlerFunc) Fault {
	return func(http.Handler) http.Handler { return f }
}

// Answer answers with a status, headers and a body, whatever was asked. The
// headers are given as key, value, key, value.
func Answer(status int, body string, header ...string) Fault {
	return instead(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Add(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // the client may be gone
	})
}

// Status answers with a status and no body. Pass "Retry-After", "1" to go
// with a 429 or 503.
func Status(status int, header ...string) Fault { return Answer(status, "", header...) }

// HTML answers 200 with a page, as captive portals do.
func HTML() Fault {
	return Answer(http.StatusOK, "<html><body>Please log in.</body></html>", "Content-Type", "text/html; charset=utf-8")
}

// Redirect answers 307 with a Location.
func Redirect(location string) Fault {
	return Status(http.StatusTemporaryRedirect, "Location", location)
}

// RedirectLoop redirects every request to itself.
func RedirectLoop() Fault {
	return instead(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.RequestURI())
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
}

// Reset resets the connection before any header. Over HTTP/2 the stream is
// reset.
func Reset() Fault {
	return instead(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		raw := conn
		if t, ok := conn.(*tls.Conn); ok {
			raw = t.NetConn()
		}
		if t, ok := raw.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // else the close below is orderly: harmless
		}
		_ = raw.Close()
	})
}

// Endless answers 200 with a body of that type that never ends.
func Endless(contentType string) Fault {
	return instead(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		block := []byte(strings.Repeat(" ", 32<<10))
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
}

// Hang sends nothing until release is closed, then behaves.
func Hang(release <-chan struct{}) Fault {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
				h.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		})
	}
}

// NoRanges answers as if no range had been asked for.
func NoRanges() Fault {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			h.ServeHTTP(w, r)
		})
	}
}

// altered is a ResponseWriter whose header and body can be changed on the
// way. Both functions may be nil.
type altered struct {
	http.ResponseWriter
	req    *http.Request
	header func(h http.Header)
	body   func(p []byte) error // writes to the ResponseWriter below
	wrote  bool
}

func (w *altered) WriteHeader(status int) {
	if w.wrote {
		return
	}
	w.wrote = true
	if w.header != nil {
		w.header(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *altered) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.body == nil {
		return w.ResponseWriter.Write(p)
	}
	if err := w.body(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *altered) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// alter makes a fault of what prepare sets on the writer; done is called
// after the handler, and may be nil.
func alter(prepare func(w *altered) (done func())) Fault {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := &altered{ResponseWriter: w, req: r}
			done := prepare(a)
			h.ServeHTTP(a, r)
			if done != nil {
				done()
			}
		})
	}
}

// Header sets a header of the answer, or deletes it if value is "".
func Header(key, value string) Fault {
	return alter(func(w *altered) func() {
		w.header = func(h http.Header) {
			h.Del(key)
			if value != "" {
				h.Set(key, value)
			}
		}
		return nil
	})
}

// Length adds delta to the Content-Length. What was announced and does not
// come is a closed connection; what was not announced is not sent.
func Length(delta int64) Fault {
	return alter(func(w *altered) func() {
		left := int64(math.MaxInt64)
		w.header = func(h http.Header) {
			if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
				left = max(n+delta, 0)
				h.Set("Content-Length", strconv.FormatInt(left, 10))
			}
		}
		w.body = func(p []byte) error {
			p = p[:min(int64(len(p)), left)]
			left -= int64(len(p))
			_, err := w.ResponseWriter.Write(p)
			return err
		}
		return nil
	})
}

// Extra sends n bytes more than there are, without a Content-Length.
func Extra(n int) Fault {
	return alter(func(w *altered) func() {
		w.header = func(h http.Header) { h.Del("Content-Length") }
		return func() { _, _ = w.Write(make([]byte, n)) } // the client may be gone
	})
}

// Flip inverts one bit of the byte at an offset of the blob.
func Flip(offset int64) Fault {
	return alter(func(w *altered) func() {
		pos := int64(0)
		w.header = func(h http.Header) {
			if _, err := fmt.Sscanf(h.Get("Content-Range"), "bytes %d-", &pos); err != nil {
				pos = 0 // the whole blob
			}
		}
		w.body = func(p []byte) error {
			if i := offset - pos; i >= 0 && i < int64(len(p)) {
				p = append([]byte{}, p...)
				p[i] ^= 1
			}
			pos += int64(len(p))
			_, err := w.ResponseWriter.Write(p)
			return err
		}
		return nil
	})
}

// After calls do once n bytes of the body have been sent, and goes on.
func After(n int64, do func()) Fault {
	return alter(func(w *altered) func() {
		left := n
		w.body = func(p []byte) error {
			head := p[:min(int64(len(p)), max(left, 0))]
			if _, err := w.ResponseWriter.Write(head); err != nil {
				return err
			}
			before := left
			if left -= int64(len(head)); before > 0 && left == 0 || before == 0 && n == 0 {
				left = -1
				_ = http.NewResponseController(w.ResponseWriter).Flush() // then it comes with the rest
				do()
			}
			if len(head) == len(p) {
				return nil
			}
			_, err := w.ResponseWriter.Write(p[len(head):])
			return err
		}
		return nil
	})
}

// Cut closes the connection after n bytes of the body, whatever was
// announced. Over HTTP/2 the stream is reset.
func Cut(n int64) Fault {
	return After(n, func() { panic(http.ErrAbortHandler) })
}

// HangAfter sends n bytes and then none until release is closed.
func HangAfter(n int64, release <-chan struct{}) Fault {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			After(n, func() {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			})(h).ServeHTTP(w, r)
		})
	}
}

// Slow sends at most chunk bytes for every value received from step; closing
// step lets the rest go.
func Slow(chunk int, step <-chan struct{}) Fault {
	return paced(chunk, func(r *http.Request, _ int) {
		select {
		case <-step:
		case <-r.Context().Done():
		}
	})
}

// Throttle sends at most so many bytes per second, for demonstrations and
// benchmarks; tests should use Slow. All requests that meet the same Throttle
// share its rate.
func Throttle(bytesPerSecond int) Fault {
	const chunk = 16 << 10
	l := rate.NewLimiter(rate.Limit(bytesPerSecond), chunk)
	return paced(chunk, func(r *http.Request, n int) {
		_ = l.WaitN(r.Context(), n) // an error is that of the request, which the write finds too
	})
}

func paced(chunk int, wait func(r *http.Request, n int)) Fault {
	return alter(func(w *altered) func() {
		w.body = func(p []byte) error {
			for len(p) > 0 {
				n := min(chunk, len(p))
				wait(w.req, n)
				if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
					return err
				}
				_ = http.NewResponseController(w.ResponseWriter).Flush() // then it comes with the rest
				p = p[n:]
			}
			return nil
		}
		return nil
	})
}

// Gzip compresses the body, though nobody asked for it.
func Gzip() Fault {
	return alter(func(w *altered) func() {
		z := gzip.NewWriter(w.ResponseWriter)
		w.header = func(h http.Header) {
			h.Set("Content-Encoding", "gzip")
			h.Del("Content-Length")
		}
		w.body = func(p []byte) error {
			_, err := z.Write(p)
			return err
		}
		return func() { _ = z.Close() } // the client may be gone
	})
}
