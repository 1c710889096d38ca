package hostcheck

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	s := httptest.NewServer(Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }), "mirror.internal"))
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	for host, want := range map[string]int{
		"127.0.0.1:" + port: 200, "127.0.0.1": 200, "127.8.8.8:80": 200, "[::1]:" + port: 200, "::1": 200, "[::1]": 200,
		"localhost:" + port: 200, "LOCALHOST": 200, "mirror.internal:1": 200, "Mirror.Internal": 200,
		"evil.test:" + port: 421, "evil.test": 421, "localhost.evil.test": 421, "127.0.0.1.evil.test": 421, "10.0.0.1": 421,
		"0.0.0.0:" + port: 421, "169.254.169.254": 421, "x.localhost": 421,
	} {
		r, err := http.NewRequest("GET", s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || (want == 200) != (string(body) == "secret") {
			t.Errorf("Host %q: %d %q, want %d", host, resp.StatusCode, body, want)
		}
	}
}

// A request without a Host, which HTTP/1.0 permits, is a probe's.
func TestNoHost(t *testing.T) {
	s := httptest.NewServer(Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") })))
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	if !strings.HasSuffix(string(answer), "fine") {
		t.Errorf("%q", answer)
	}
}

// What did not come in over loopback may name the listener as it likes: names
// of services and addresses of pods are not known here.
func TestOtherListeners(t *testing.T) {
	h := Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for local, want := range map[string]int{"10.0.0.7": 200, "127.0.0.1": 421, "::1": 421} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "http://shoal-scheduler.shoal.svc/", nil)
		ctx := contextWith(r, &net.TCPAddr{IP: net.ParseIP(local), Port: 4404})
		h.ServeHTTP(w, ctx)
		if w.Code != want {
			t.Errorf("over %s: %d, want %d", local, w.Code, want)
		}
	}
}

func contextWith(r *http.Request, local net.Addr) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
}
