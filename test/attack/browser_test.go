package attack

import (
	"net/http"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/test/rig"
)

// browse sends a request to a scheduler's admin port as a browser does for a
// page of another site.
func browse(t *testing.T, s *rig.Scheduler, method, path, host, kind, body string) int {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+s.Admin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Close = host, true
	r.Header.Set("Origin", "http://evil.test")
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// A page that somebody on the scheduler's machine looks at can send what a form
// sends, without a question beforehand. No job begins by that.
func TestWebPageBeginsNoJob(t *testing.T) {
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	rig.StartDaemon(t, rig.DaemonConfig{Name: "node-1", Schedulers: []*rig.Scheduler{s}, Registries: []string{upstream + "=http://127.0.0.1:1"}})
	const manifest = "https://" + upstream + "/v2/app/manifests/v1"
	for path, body := range map[string]string{
		"/preheats":               `{"type":"image","url":"` + manifest + `"}`,
		"/oapi/v1/jobs":           `{"type":"preheat","args":{"type":"image","url":"` + manifest + `"}}`,
		"/registry/notifications": `{"Events":[{"Action":"push","Target":{"Url":"` + manifest + `"}}]}`,
		"/api/v1/jobs":            `{"images":["` + upstream + `/app:v1"]}`,
	} {
		for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", ""} {
			if code := browse(t, s, "POST", path, s.Admin, kind, body); code/100 == 2 {
				t.Errorf("a page's POST of %q to %s begins a job: %d", kind, path, code)
			}
		}
	}
}

// A page's author may have a name of his own lead to 127.0.0.1; the page then
// reads what that name's server answers. It reads nothing of the scheduler.
func TestWebPageReadsNothingOfTheScheduler(t *testing.T) {
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	for _, path := range []string{"/metrics", "/debug/pprof/cmdline", "/api/v1/status"} {
		if code := browse(t, s, "GET", path, "evil.test", "", ""); code/100 == 2 {
			t.Errorf("%s is given to a page of evil.test: %d", path, code)
		}
		if code := browse(t, s, "GET", path, s.Admin, "", ""); code != 200 {
			t.Errorf("%s at the scheduler's own address: %d", path, code)
		}
	}
}
