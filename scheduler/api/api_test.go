package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"sigs.k8s.io/yaml"

	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/jobstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves the API over a manager with one node.
func start(t *testing.T, tokenFile string) (*jobs.Manager, *httptest.Server) {
	t.Helper()
	core := jobs.DefaultConfig()
	core.Credentials = true
	return startWith(t, tokenFile, core)
}

func startWith(t *testing.T, tokenFile string, core jobs.Config) (*jobs.Manager, *httptest.Server) {
	t.Helper()
	m := jobs.NewManager(jobs.ManagerConfig{Core: core, Store: jobstore.NewMemory(), Send: func(context.Context, string, any) error { return nil }})
	m.Connected("c1", jobs.Facts{Name: "n1", Platform: "linux/amd64", Preheats: true, Proven: true})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = m.Run(ctx); close(done) }() // it returns nil
	guard, err := NewGuard(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(Limit(1000, 1000, guard.Protect(Handler(m, func(context.Context) Status { return Status{Version: "v0", Nodes: m.Nodes()} }))))
	t.Cleanup(func() {
		srv.Close()
		cancel()
		<-done
		http.DefaultClient.CloseIdleConnections()
	})
	return m, srv
}

func ask(t *testing.T, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// The description names what there is, and nothing else.
func TestDescription(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]any
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := yaml.Unmarshal(description, &doc); err != nil {
		t.Fatal(err)
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for m := range methods {
			if m != "parameters" {
				described = append(described, strings.ToUpper(m)+" "+path)
			}
		}
	}
	for pattern := range (&service{}).routes() {
		served = append(served, pattern)
	}
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("described are\n%s\nserved are\n%s", strings.Join(described, "\n"), strings.Join(served, "\n"))
	}
	for name, v := range map[string]any{"Request": Request{}, "Job": jobs.Job{}, "Status": Status{}} {
		var fields, properties []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); !f.Anonymous {
				fields = append(fields, tag)
			}
		}
		for p := range doc.Components.Schemas[name].Properties {
			properties = append(properties, p)
		}
		slices.Sort(fields)
		slices.Sort(properties)
		if !slices.Equal(fields, properties) {
			t.Errorf("%s: fields are %q, described are %q", name, fields, properties)
		}
	}
}

func TestJobs(t *testing.T) {
	m, srv := start(t, "")
	c, err := NewClient([]string{"127.0.0.1:1", srv.URL}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	job, err := c.Create(t.Context(), Request{Spec: jobs.Spec{Images: []string{"alpine"}}, Credentials: jobs.Credentials{"docker.io": "Bearer secret-token"}})
	if err != nil || job.Images[0].Name != "docker.io/library/alpine:latest" || len(job.Nodes) != 1 || !job.Private {
		t.Fatalf("%v %+v", err, job)
	}
	changed := make(chan jobs.Job)
	go func() {
		next, _ := c.Wait(context.Background(), job.ID, job.Revision) // nothing comes of an error
		changed <- next
	}()
	select {
	case next := <-changed:
		t.Errorf("nothing has changed: %+v", next)
	case <-time.After(50 * time.Millisecond):
	}
	m.Report("c1", jobs.Report{Job: job.ID, Resolve: true, State: jobs.Failed, Reason: "not there"})
	if next := <-changed; next.State != jobs.Failed || !strings.Contains(next.Reason, "not there") {
		t.Errorf("%+v", next)
	}
	code, text := ask(t, "GET", srv.URL+"/api/v1/jobs", "")
	var list struct{ Jobs []jobs.Job }
	if err := json.Unmarshal([]byte(text), &list); code != 200 || err != nil || len(list.Jobs) != 1 || list.Jobs[0].ID != job.ID {
		t.Errorf("%d %s", code, text)
	}
	if strings.Contains(text, "secret-token") {
		t.Error("a list of jobs has a credential")
	}
	if was, err := c.Cancel(t.Context(), job.ID); err != nil || was.State != jobs.Failed {
		t.Errorf("cancel of what has ended: %v %s", err, was.State)
	}
	var answer *AnswerError
	if _, err := c.Wait(t.Context(), "77", -1); !errors.As(err, &answer) || answer.Status != 404 {
		t.Errorf("%v", err)
	}
	if st, err := c.Status(t.Context()); err != nil || len(st.Nodes) != 1 {
		t.Errorf("%v %+v", err, st)
	}
}

// What is wrong gets one clear error that repeats no secret.
func TestBadRequests(t *testing.T) {
	_, srv := start(t, "")
	for body, want := range map[string]string{
		"":                                       "not the JSON document",
		"[]":                                     "want api.Request",
		`{"images":["a"]} {}`:                    "not the JSON document",
		`{"image":"a"}`:                          `unknown field "image"`,
		`{"images":"a"}`:                         "images: want []string, not a string",
		`{"images":[]}`:                          "images: name at least one",
		`{"images":["A"]}`:                       "images: ",
		`{"images":["a"],"nodes":["x=y"]}`:       "nodes: ",
		`{"images":["a"],"platforms":["x"]}`:     "platforms: ",
		`{"images":["a"],"timeout_seconds":1e9}`: "timeout_seconds: ",
		`{"images":["a"],"credentials":{"a.b":"hunter2"}}`:          "credentials: that of",
		`{"images":["a"],"credentials":{"a.b":"Bearer \nhunter2"}}`: "credentials: that of",
	} {
		code, text := ask(t, "POST", srv.URL+"/api/v1/jobs", body)
		var p Problem
		if err := json.Unmarshal([]byte(text), &p); code != 400 || err != nil || !strings.Contains(p.Error, want) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %d %s", body, code, text)
		}
	}
	if code, text := ask(t, "POST", srv.URL+"/api/v1/jobs", `{"images":["a"],"nodes":["zone=none"]}`); code != 409 {
		t.Errorf("no node: %d %s", code, text)
	}
	if code, _ := ask(t, "POST", srv.URL+"/api/v1/jobs", `{"images":["a"]}`, "Content-Type", "text/plain"); code != 400 {
		t.Errorf("a form's type: %d", code)
	}
	if code, _ := ask(t, "POST", srv.URL+"/api/v1/jobs", strings.Repeat(" ", maxBody+1)); code != 400 {
		t.Errorf("a long body: %d", code)
	}
	if code, text := ask(t, "PATCH", srv.URL+"/api/v1/jobs", ""); code/100 != 4 {
		t.Errorf("a method: %d %s", code, text)
	}
}

func TestGuard(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewGuard(file); err == nil {
		t.Error("a short token is taken")
	}
	const token = "0123456789abcdef0123"
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, srv := start(t, file)
	url := srv.URL + "/api/v1/status"
	for _, h := range [][]string{{"Authorization", "Bearer " + token}, {TokenHeader, token}, {"Authorization", "Basic aGFyYm9yOjAxMjM0NTY3ODlhYmNkZWYwMTIz"}} {
		if code, text := ask(t, "GET", url, "", h...); code != 200 {
			t.Errorf("%q: %d %s", h, code, text)
		}
	}
	seen := map[int]bool{}
	for range 40 {
		code, _ := ask(t, "GET", url, "", "Authorization", "Bearer wrong")
		seen[code] = true
	}
	if !seen[401] || !seen[429] || len(seen) != 2 {
		t.Errorf("wrong tokens get %v", seen)
	}
	if code, _ := ask(t, "GET", url, "", TokenHeader, token); code != 200 {
		t.Errorf("then the right one gets %d", code)
	}

	// Without a token, this machine alone, and no web page's request.
	_, srv = start(t, "")
	if code, _ := ask(t, "GET", srv.URL+"/api/v1/status", ""); code != 200 {
		t.Errorf("local: %d", code)
	}
	if code, _ := ask(t, "GET", srv.URL+"/api/v1/status", "", "Host", "evil.example"); code != 403 {
		t.Errorf("by another name: %d", code)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "http://127.0.0.1/api/v1/status", nil)
	r.RemoteAddr = "192.0.2.1:1234"
	g, _ := NewGuard("") // no file, no error
	g.Protect(http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != 403 {
		t.Errorf("from elsewhere: %d", w.Code)
	}
}

// A renewal that brings nothing takes nothing away.
func TestRenewalOfNothing(t *testing.T) {
	m, srv := start(t, "")
	job, err := m.Create(t.Context(), jobs.Spec{Images: []string{"a"}}, jobs.Credentials{"docker.io": "Bearer abcdef"})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{`{}`, `{"credentials":{}}`, `{"credentials":null}`} {
		if code, text := ask(t, "PUT", srv.URL+"/api/v1/jobs/"+job.ID+"/credentials", body); code != 400 || !strings.Contains(text, "credentials") {
			t.Errorf("%s: %d %s", body, code, text)
		}
	}
}

// In clear text a job that brings credentials is refused, and told why.
func TestCredentialsWithoutTLS(t *testing.T) {
	_, srv := startWith(t, "", jobs.DefaultConfig())
	code, text := ask(t, "POST", srv.URL+"/api/v1/jobs", `{"images":["r.test/app:v1"],"credentials":{"r.test":"Bearer secret-token"}}`, "Content-Type", "application/json")
	if code != http.StatusForbidden || !strings.Contains(text, "--tls-cert") || !strings.Contains(text, `"field":"credentials"`) || strings.Contains(text, "secret-token") {
		t.Errorf("%d %s", code, text)
	}
	if code, text := ask(t, "POST", srv.URL+"/api/v1/jobs", `{"images":["r.test/app:v1"]}`, "Content-Type", "application/json"); code != http.StatusCreated {
		t.Errorf("without credentials: %d %s", code, text)
	}
}

func TestLimit(t *testing.T) {
	h := Limit(1, 2, http.NotFoundHandler())
	var codes []int
	for range 3 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		codes = append(codes, w.Code)
	}
	if !slices.Equal(codes, []int{404, 404, 429}) {
		t.Errorf("%v", codes)
	}
}
