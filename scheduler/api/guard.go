package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"golang.org/x/time/rate"
)

// TokenHeader carries the token for clients that cannot send an
// Authorization of their own choice.
const TokenHeader = "X-Shoal-Token"

// Guard decides who may use the API. With a token file, who has the token:
// as Bearer, as the password of Basic, or in TokenHeader. Without, only who
// is on this machine.
type Guard struct {
	file string
	// wrong bounds how often tokens may be tried.
	wrong *rate.Limiter
}

// NewGuard returns a guard for the token in a file; empty, for none. The file
// is read again with every request, so that a token can be changed.
func NewGuard(file string) (*Guard, error) {
	g := &Guard{file: file, wrong: rate.NewLimiter(1, 20)}
	if file == "" {
		return g, nil
	}
	_, err := g.token()
	return g, err
}

func (g *Guard) token() (string, error) {
	raw, err := os.ReadFile(g.file)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(raw))
	if len(token) < 16 {
		return "", fmt.Errorf("%s: a token of at least 16 bytes is needed", g.file)
	}
	return token, nil
}

// Protect lets through to h only who may.
func (g *Guard) Protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status, err := g.check(r); err != nil {
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="shoal"`)
			}
			fail(w, status, err)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (g *Guard) check(r *http.Request) (int, error) {
	if g.file == "" {
		// A name in Host that is not this machine's is a web page's doing.
		if !local(r.RemoteAddr) || !local(r.Host) {
			return http.StatusForbidden, errors.New("without --api-token-file the scheduler serves its API on this machine alone")
		}
		return 0, nil
	}
	token, err := g.token()
	if err != nil {
		return http.StatusInternalServerError, errors.New("the API token cannot be read")
	}
	given := sha256.Sum256([]byte(sent(r)))
	want := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
		return 0, nil
	}
	if !g.wrong.Allow() {
		return http.StatusTooManyRequests, errors.New("too many wrong tokens")
	}
	return http.StatusUnauthorized, errors.New("the API token is missing or wrong")
}

// sent returns the token that a request bears.
func sent(r *http.Request) string {
	if t := r.Header.Get(TokenHeader); t != "" {
		return t
	}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

// local reports whether an address, with a port or without, is this machine's.
func local(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Limit lets through at most so many requests a second, of all clients
// together, and so many at once.
func Limit(perSecond float64, burst int, h http.Handler) http.Handler {
	limiter := rate.NewLimiter(rate.Limit(perSecond), burst)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !limiter.Allow() {
			w.Header().Set("Retry-After", "1")
			fail(w, http.StatusTooManyRequests, errors.New("too many requests"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Problem is the body of an answer that is no success.
type Problem struct {
	Error string `json:"error"`
	// Field of the request that is wrong, if it is one.
	Field string `json:"field,omitempty"`
}

func fail(w http.ResponseWriter, status int, err error) {
	p := Problem{Error: err.Error()}
	var f interface{ Name() string }
	if errors.As(err, &f) {
		p.Field = f.Name()
	}
	write(w, status, p)
}

func write(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(doc)
}
