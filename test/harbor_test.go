package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

const apiToken = "a-token-of-the-job-api"

// withToken has the scheduler ask for a token.
func withToken(t *testing.T) func(*standalone.Config) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(apiToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(c *standalone.Config) { c.APITokenFile = file }
}

// harbor sends what Harbor sends, and returns what it gets back.
func (s *sched) harbor(t *testing.T, method, path, body, token string) (int, map[string]any, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.admin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", token)
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
	var doc map[string]any
	_ = json.Unmarshal(raw, &doc) // health answers need not be documents
	return resp.StatusCode, doc, string(raw)
}

// The requests of each vendor, as each age of Harbor sends them.
func TestHarbor(t *testing.T) {
	o := private(t)
	img := o.AddImage("app", "v1", noise(1, 1<<20))
	tls, identity := secured(t)
	s := startScheduler(t, withToken(t), tls)
	// What Kraken's notification lacks, nodes have themselves.
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"auths":{"`+upstream+`":{"username":"puller","password":"geheim-und-lang"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	nodes := startCluster(t, o, 3, []*sched{s}, identity, func(c *daemon.Config) {
		c.Auth, c.DockerConfig, c.PreheatNodeCredentials = "relay", config, true
	})
	c := s.client(t)
	eventually(t, "the scheduler knows all nodes", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && len(st.Nodes) == 3
	})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	bearer := "Bearer " + apiToken
	pull := o.IssueToken("puller", "app")
	for _, path := range []string{"/healthy", "/_ping", "/health"} {
		if code, _, text := s.harbor(t, "GET", path, "", ""); code != 200 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	manifest := "https://" + upstream + "/v2/app/manifests/"
	newer := func(ref string) string {
		return fmt.Sprintf(`{"type":"preheat","args":{"type":"image","url":"%s%s","tag":"","filtered_query_params":"","headers":{"Authorization":"Bearer %s"},"scope":"","concurrent_count":0,"timeout":0},"scheduler_cluster_ids":null}`, manifest, ref, pull)
	}
	older := func(ref string) string {
		return fmt.Sprintf(`{"type":"image","url":"%s%s","headers":{"Authorization":"Bearer %s"}}`, manifest, ref, pull)
	}
	kraken := fmt.Sprintf(`{"Events":[{"Id":"1","TimeStamp":"2026-01-01T00:00:00Z","Action":"push","Target":{"MediaType":"application/vnd.docker.distribution.manifest.v2+json","Digest":"%s","Repository":"app","Url":"%sv1","Tag":"v1"}}]}`, img.Manifest.Digest, manifest)

	t.Run("wrong token", func(t *testing.T) {
		for _, token := range []string{"", "Bearer wrong", "Basic d3Jvbmc6d3Jvbmc="} {
			for path, body := range map[string]string{"/oapi/v1/jobs": newer("v1"), "/preheats": older("v1"), "/registry/notifications": kraken, "/api/v1/jobs": "{}"} {
				if code, _, _ := s.harbor(t, "POST", path, body, token); code != http.StatusUnauthorized {
					t.Errorf("%s with %q: %d", path, token, code)
				}
			}
		}
	})
	for name, row := range map[string]struct {
		create, poll, id string
		body             func(string) string
		state            string
		good, bad        string
		token            string
	}{
		"2.12":  {"/oapi/v1/jobs", "/oapi/v1/jobs/", "id", newer, "state", "SUCCESS", "FAILURE", bearer},
		"2.9.5": {"/preheats", "/preheats/", "ID", older, "status", "SUCCESS", "FAILED", "Basic aGFyYm9yOmEtdG9rZW4tb2YtdGhlLWpvYi1hcGk="},
	} {
		t.Run(name, func(t *testing.T) {
			for ref, want := range map[string]string{"v1": row.good, "none": row.bad} {
				code, doc, text := s.harbor(t, "POST", row.create, row.body(ref), row.token)
				if code/100 != 2 || code == 208 {
					t.Fatalf("%d %s", code, text)
				}
				id := fmt.Sprint(doc[row.id])
				if f, ok := doc[row.id].(float64); ok {
					id = fmt.Sprintf("%.0f", f)
				}
				eventually(t, ref+" becomes "+want, func() bool {
					_, doc, text = s.harbor(t, "GET", row.poll+id, "", row.token)
					return doc[row.state] == want
				})
				if want == row.bad && !strings.Contains(text, "404") {
					t.Errorf("no reason: %s", text)
				}
				if want == row.good && name == "2.12" && strings.Count(text, `"hostname"`) != 3 {
					t.Errorf("not every node: %s", text)
				}
			}
		})
	}
	t.Run("kraken", func(t *testing.T) {
		for _, n := range nodes {
			n.stored(img.Layers[0].Digest, true)
		}
		if code, _, text := s.harbor(t, "POST", "/registry/notifications", kraken, bearer); code != 200 {
			t.Fatalf("%d %s", code, text)
		}
		st, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantState(t, ended(t, c, st.Jobs[0].ID), jobs.Done)
		if st.Jobs[0].Private {
			t.Error("the notification brought credentials?")
		}
	})
	for what, body := range map[string]string{
		"no document": "{", "no URL": `{"type":"preheat","args":{"type":"image"}}`, "no image": `{"type":"preheat","args":{"type":"file","url":"https://a.b/v2/c/manifests/d"}}`,
		"odd name": strings.ReplaceAll(newer("v1"), "/app/", "/../app/"), "odd scope": strings.ReplaceAll(newer("v1"), `"scope":""`, `"scope":"moon"`),
	} {
		if code, doc, text := s.harbor(t, "POST", "/oapi/v1/jobs", body, bearer); code != 400 || doc["error"] == "" {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	noSecret(t, nodes, s, jobs.Credentials{"a": "Bearer " + pull, "b": bearer, "c": "Basic geheim-und-lang"})
}

// Without TLS Harbor is told why its job, which brings a token, is refused.
func TestHarborWithoutTLS(t *testing.T) {
	o := private(t)
	s := startScheduler(t)
	startCluster(t, o, 1, []*sched{s})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for path, body := range map[string]string{
		"/oapi/v1/jobs": `{"type":"preheat","args":{"type":"image","url":"https://` + upstream + `/v2/app/manifests/v1","headers":{"Authorization":"Bearer 0123456789"}}}`,
		"/preheats":     `{"type":"image","url":"https://` + upstream + `/v2/app/manifests/v1","headers":{"Authorization":"Bearer 0123456789"}}`,
	} {
		code, doc, text := s.harbor(t, "POST", path, body, "")
		if reason, _ := doc["error"].(string); code != http.StatusForbidden || !strings.Contains(reason, "--tls-cert") || strings.Contains(text, "0123456789") {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}
