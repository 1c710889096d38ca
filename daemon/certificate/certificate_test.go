package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/mtls/mtlstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// server is an issuer that answers as it is told.
type server struct {
	*httptest.Server
	ca *mtls.CA

	// mu guards tokens.
	mu     sync.Mutex
	tokens []string
}

func newServer(t *testing.T, answer func(s *server, w http.ResponseWriter, key any)) *server {
	t.Helper()
	a := mtlstest.NewAuthority(t)
	ca, err := mtls.ReadCA(read(t, a.File), read(t, a.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ca: ca}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/certificate" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		key, err := mtls.RequestedKey(body)
		if err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		s.tokens = append(s.tokens, r.Header.Get("Authorization"))
		s.mu.Unlock()
		answer(s, w, key)
	}))
	certFile, keyFile := a.Issue(t, nil, "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.tokens...)
}

// issue answers with a certificate for names.
func (s *server) issue(t *testing.T, w http.ResponseWriter, key any, valid time.Duration, names ...string) {
	cert, err := s.ca.Sign(key, valid, names...)
	if err != nil {
		t.Error(err)
	}
	_, _ = w.Write(cert)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func setToken(t *testing.T, file, token string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// log is a log that may be read while it is written.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// keep runs a Keeper for node-1 until the test ends.
func keep(t *testing.T, s *server, ca []byte) (*mtls.Identity, string, *log) {
	t.Helper()
	identity, err := mtls.Await(ca, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	said := new(log)
	k := &Keeper{Issuer: s.URL, CA: ca, TokenFile: filepath.Join(t.TempDir(), "token"), Identity: identity, Log: slog.New(slog.NewTextHandler(said, nil))}
	setToken(t, k.TokenFile, "first")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return identity, k.TokenFile, said
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A certificate is asked for until there is one, and renewed before it expires,
// with the token that is in the file by then.
func TestKeeps(t *testing.T) {
	var down sync.Once
	s := newServer(t, func(s *server, w http.ResponseWriter, key any) {
		failed := false
		down.Do(func() {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			failed = true
		})
		if !failed {
			s.issue(t, w, key, 4*time.Second, "node-1")
		}
	})
	id, file, said := keep(t, s, s.ca.PEM())
	eventually(t, "the first certificate", func() bool { return !id.Expires().IsZero() })
	setToken(t, file, "second")
	first := id.Expires()
	eventually(t, "another", func() bool {
		if time.Now().After(first) {
			t.Fatal("it expired")
		}
		return id.Expires().After(first)
	})
	if got := strings.Join(s.asked()[:3], ", "); got != "Bearer first, Bearer first, Bearer second" {
		t.Errorf("tokens: %s", got)
	}
	if text := said.String(); !strings.Contains(text, "503") || !strings.Contains(text, "not now") || strings.Contains(text, "Bearer") {
		t.Errorf("the log says %s", text)
	}
}

// A certificate that is not this node's is refused, and that is said once.
func TestAnotherName(t *testing.T) {
	s := newServer(t, func(s *server, w http.ResponseWriter, key any) { s.issue(t, w, key, time.Hour, "node-2") })
	id, _, said := keep(t, s, s.ca.PEM())
	eventually(t, "three requests", func() bool { return len(s.asked()) >= 3 })
	if !id.Expires().IsZero() {
		t.Error("it was taken")
	}
	if text := said.String(); strings.Count(text, `not for \\\"node-1\\\"`)+strings.Count(text, `not for \"node-1\"`) != 1 {
		t.Errorf("the log says %s", text)
	}
}

// A server that does not prove the issuer's name gets no token.
func TestFalseIssuer(t *testing.T) {
	s := newServer(t, func(*server, http.ResponseWriter, any) {})
	_, _, said := keep(t, s, read(t, mtlstest.NewAuthority(t).File))
	eventually(t, "a complaint", func() bool { return strings.Contains(said.String(), "unknown authority") })
	if got := s.asked(); len(got) > 0 {
		t.Errorf("it was sent %q", got)
	}
}

// A redirect does not carry the token elsewhere.
func TestNoRedirect(t *testing.T) {
	var s *server
	s = newServer(t, func(_ *server, w http.ResponseWriter, _ any) {
		w.Header().Set("Location", s.URL+"/v1/certificate?again")
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	_, _, said := keep(t, s, s.ca.PEM())
	eventually(t, "a complaint", func() bool { return strings.Contains(said.String(), "answers 307") })
}

func TestCheckIssuer(t *testing.T) {
	for issuer, ok := range map[string]bool{
		"https://a.example:4405": true, "https://a.example:4405/": true, "https://[::1]:4405": true,
		"http://a.example": false, "a.example:4405": false, "https://": false, "https://a/x": false, "https://u:p@a": false, "": false,
	} {
		if err := CheckIssuer(issuer); (err == nil) != ok {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}
