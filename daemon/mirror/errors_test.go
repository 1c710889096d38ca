package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/shoalproject/shoal/registry"
)

// What an origin or a fault says becomes a status that sends a runtime on to
// the origin at once.
func TestAnswers(t *testing.T) {
	origin := func(status int) error {
		return fmt.Errorf("asking: %w", &registry.Error{Status: status, Code: "X", Message: "m"})
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{origin(400), 400}, {origin(401), 401}, {origin(403), 403}, {origin(404), 404}, {origin(416), 416},
		{origin(408), 503}, {origin(429), 503},
		{origin(500), 500}, {origin(502), 502}, {origin(503), 503},
		{origin(200), 502}, {origin(302), 502}, {origin(0), 502}, {origin(999), 502},
		{errors.New("anything else"), 503},
	} {
		w := httptest.NewRecorder()
		fail(w, httptest.NewRequest("GET", "/v2/x", nil), c.err)
		if w.Code != c.want {
			t.Errorf("%v is answered by %d, want %d", c.err, w.Code, c.want)
		}
		if got := w.Header().Get("Content-Type"); got != "application/json" || w.Body.Len() == 0 {
			t.Errorf("%v: %s %q", c.err, got, w.Body)
		}
	}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	(&call{Mirror: &Mirror{}, w: w, r: r}).fail(err)
}

func TestChallengesAndRetryAfter(t *testing.T) {
	w := httptest.NewRecorder()
	fail(w, httptest.NewRequest("GET", "/v2/x", nil), &registry.Error{
		Status: 401, RetryAfter: 1500 * time.Millisecond,
		Challenges: []string{`Bearer realm="https://a/b",service="c"`, `Basic realm="x"`, "Negotiate", `bearer realm="d"`},
	})
	if got := w.Header()["Www-Authenticate"]; !slices.Equal(got, []string{`Bearer realm="https://a/b",service="c"`, `bearer realm="d"`}) {
		t.Errorf("challenges %q", got)
	}
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After %q", got)
	}
}

// Nothing is written to a client that has gone.
func TestClientGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	fail(w, httptest.NewRequestWithContext(ctx, "GET", "/v2/x", nil), ctx.Err())
	if w.Body.Len() != 0 {
		t.Errorf("%q was written", w.Body)
	}
}
