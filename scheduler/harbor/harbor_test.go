package harbor

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// counting takes every job and counts them.
type counting struct{ created int }

func (c *counting) Create(context.Context, jobs.Spec, jobs.Credentials) (jobs.Job, error) {
	c.created++
	return jobs.Job{ID: "1"}, nil
}

func (c *counting) Get(context.Context, string) (jobs.Job, error) { return jobs.Job{ID: "1"}, nil }

// A browser sends a page's text/plain or form to any site without asking. No
// job begins by that.
func TestJSONAlone(t *testing.T) {
	const manifest = "https://r.test/v2/app/manifests/v1"
	for path, body := range map[string]string{
		"/oapi/v1/jobs":           `{"type":"preheat","args":{"type":"image","url":"` + manifest + `"}}`,
		"/preheats":               `{"type":"image","url":"` + manifest + `"}`,
		"/registry/notifications": `{"Events":[{"Action":"push","Target":{"Url":"` + manifest + `"}}]}`,
	} {
		for kind, want := range map[string]int{
			"application/json": 200, "application/json; charset=utf-8": 200,
			"": 400, "text/plain": 400, "application/x-www-form-urlencoded": 400, "multipart/form-data": 400, "text/plain; application/json": 400,
		} {
			j := &counting{}
			mux := http.NewServeMux()
			Register(mux, j, func(h http.Handler) http.Handler { return h })
			r := httptest.NewRequest("POST", path, strings.NewReader(body))
			if kind != "" {
				r.Header.Set("Content-Type", kind)
			}
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code != want || (j.created > 0) != (want == 200) {
				t.Errorf("%s as %q: %d and %d jobs, want %d: %s", path, kind, w.Code, j.created, want, w.Body)
			}
		}
	}
}
