// Package harbor answers Harbor's P2P preheat as the two vendors do that Harbor
// knows, so that a scheduler can be registered there as an instance of
// Dragonfly or of Kraken.
//
// It knows their wire formats, of Harbor up to 2.9.5 and from 2.12 on, and
// what they mean as jobs. Who may call is to be checked before.
//
// A Dragonfly instance gets a pull token along with each image, which becomes
// the job's credential. Kraken's notification brings none: nodes use what they
// have themselves.
package harbor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

const (
	// maxBody bounds a request: Kraken's notification may bring many events.
	maxBody = 1 << 20
	// maxEvents bounds the jobs that one notification begins.
	maxEvents = 32
	// timeout is how long Harbor asks after a job.
	timeout = 30 * time.Minute
	// maxTasks bounds the nodes of which an answer tells.
	maxTasks = 1000
)

// Jobs are the preheat jobs; jobs.Manager says what each method does.
type Jobs interface {
	Create(ctx context.Context, spec jobs.Spec, creds jobs.Credentials) (jobs.Job, error)
	Get(ctx context.Context, id string) (jobs.Job, error)
}

// Register puts the endpoints into mux. Those that ask whether the instance
// is there are open; protect is put around the others.
func Register(mux *http.ServeMux, j Jobs, protect func(http.Handler) http.Handler) {
	s := &service{j}
	for _, path := range []string{"/healthy", "/_ping", "/health"} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, "ok") })
	}
	for pattern, handle := range map[string]http.HandlerFunc{
		"POST /oapi/v1/jobs":           s.create,
		"GET /oapi/v1/jobs/{id}":       s.poll,
		"POST /preheats":               s.createOld,
		"GET /preheats/{id}":           s.pollOld,
		"POST /registry/notifications": s.notified,
	} {
		mux.Handle(pattern, protect(handle))
	}
}

type service struct{ jobs Jobs }

func write(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(doc)
}

func fail(w http.ResponseWriter, err error) {
	var spec *jobs.SpecError
	var bad *badRequest
	status := http.StatusServiceUnavailable
	switch {
	case errors.As(err, &bad), errors.As(err, &spec):
		status = http.StatusBadRequest
	case errors.Is(err, jobs.ErrCredentials):
		status = http.StatusForbidden
	case errors.Is(err, jobs.ErrUnknown):
		status = http.StatusNotFound
	case errors.Is(err, jobs.ErrNoNodes):
		status = http.StatusConflict
	case errors.Is(err, jobs.ErrFull):
		status = http.StatusTooManyRequests
	}
	write(w, status, map[string]string{"error": err.Error()})
}

type badRequest struct{ why string }

func (e *badRequest) Error() string { return e.why }

// read takes a body in. It must come as JSON, as Harbor sends it: a browser
// does not send that for another site's page without asking first.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &badRequest{"Content-Type must be application/json"}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	// Newer Harbors may say more than is known here.
	if err != nil || json.Unmarshal(raw, into) != nil {
		return &badRequest{"the body is not the JSON document that is wanted"}
	}
	return nil
}

// image reads the URL of a manifest as an image name. The host stays as it is:
// it is the one that pulls name.
func image(manifest string) (jobs.Ref, error) {
	u, err := url.Parse(manifest)
	if err != nil {
		return jobs.Ref{}, &badRequest{"url: cannot be read"}
	}
	path, ok := strings.CutPrefix(u.Path, "/v2/")
	i := strings.LastIndex(path, "/manifests/")
	if !ok || i < 1 || u.Host == "" {
		return jobs.Ref{}, &badRequest{"url: want https://HOST/v2/NAME/manifests/REFERENCE"}
	}
	name, ref := path[:i], path[i+len("/manifests/"):]
	if !strings.ContainsAny(u.Host, ".:") && u.Host != "localhost" {
		return jobs.Ref{}, &badRequest{fmt.Sprintf("url: %q cannot be the registry of an image name: it has neither dot nor port", u.Host)}
	}
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
	}
	out, err := jobs.ParseImage(u.Host + "/" + name + sep + ref)
	if err != nil {
		return jobs.Ref{}, &badRequest{"url: " + err.Error()}
	}
	return out, nil
}

// nodes are those that a scope of Dragonfly means. Every node here is a peer,
// and each is a seed for the others.
func nodes(scope string) ([]string, error) {
	switch scope {
	case "", "all_peers", "all_seed_peers":
		return []string{"all"}, nil
	case "single_seed_peer", "single_peer":
		return []string{"1"}, nil
	}
	return nil, &badRequest{fmt.Sprintf("scope: %.80q is none of single_seed_peer, all_seed_peers, all_peers", scope)}
}

// begin creates the job for the manifest at a URL.
func (s *service) begin(ctx context.Context, kind, manifest, scope string, headers map[string]string, most time.Duration) (jobs.Job, error) {
	if kind != "image" && kind != "" {
		return jobs.Job{}, &badRequest{fmt.Sprintf("type: %.80q is not image", kind)}
	}
	ref, err := image(manifest)
	if err != nil {
		return jobs.Job{}, err
	}
	selected, err := nodes(scope)
	if err != nil {
		return jobs.Job{}, err
	}
	var creds jobs.Credentials
	for name, value := range headers {
		if !strings.EqualFold(name, "authorization") || value == "" {
			continue
		}
		if len(value) > jobs.MaxAuthorization || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return jobs.Job{}, &badRequest{"headers: Authorization cannot be a header"}
		}
		creds = jobs.Credentials{ref.Repository: value}
	}
	if most <= 0 || most > jobs.MaxTimeout {
		most = timeout
	}
	spec := jobs.Spec{Images: []string{ref.String()}, Nodes: selected, Timeout: max(int64(most/time.Second), 1)}
	return s.jobs.Create(ctx, spec, creds)
}

// request is what Harbor from 2.12 on sends.
type request struct {
	Type string `json:"type"`
	Args struct {
		Type    string            `json:"type"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
		Scope   string            `json:"scope"`
		Timeout time.Duration     `json:"timeout"`
	} `json:"args"`
}

type response struct {
	ID      int64     `json:"id"`
	Created time.Time `json:"created_at"`
	Updated time.Time `json:"updated_at"`
	State   string    `json:"state"`
	Result  result    `json:"result"`
}

type result struct {
	JobStates []jobState `json:"job_states"`
}

type jobState struct {
	Error   string  `json:"error"`
	Results []tasks `json:"results"`
}

type tasks struct {
	Success []task `json:"success_tasks"`
	Failure []task `json:"failure_tasks"`
	Cluster uint   `json:"scheduler_cluster_id"`
}

type task struct {
	URL         string `json:"url"`
	Hostname    string `json:"hostname"`
	IP          string `json:"ip"`
	Description string `json:"description,omitempty"`
}

func (s *service) create(w http.ResponseWriter, r *http.Request) {
	var req request
	if err := read(w, r, &req); err != nil {
		fail(w, err)
		return
	}
	if req.Type != "preheat" {
		fail(w, &badRequest{fmt.Sprintf("type: %.80q is not preheat", req.Type)})
		return
	}
	job, err := s.begin(r.Context(), req.Args.Type, req.Args.URL, req.Args.Scope, req.Args.Headers, req.Args.Timeout)
	if err != nil {
		fail(w, err)
		return
	}
	write(w, http.StatusOK, describe(job))
}

func (s *service) poll(w http.ResponseWriter, r *http.Request) {
	job, err := s.jobs.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		fail(w, err)
		return
	}
	write(w, http.StatusOK, describe(job))
}

// describe says a job in Dragonfly's words.
func describe(job jobs.Job) response {
	id, _ := strconv.ParseInt(job.ID, 10, 64) // ours are numbers
	out := response{ID: id, Created: job.Created, Updated: job.Updated, State: "PENDING"}
	switch {
	case job.State == jobs.Done:
		out.State = "SUCCESS"
	case job.Ended():
		out.State = "FAILURE"
	default:
		return out
	}
	state := jobState{Error: job.Reason, Results: []tasks{{Success: []task{}, Failure: []task{}, Cluster: 1}}}
	for i, n := range job.Nodes {
		if i == maxTasks {
			break
		}
		t := task{URL: strings.Join(job.Spec.Images, " "), Hostname: n.Name}
		if n.State == jobs.Done {
			state.Results[0].Success = append(state.Results[0].Success, t)
			continue
		}
		t.Description = string(n.State) + ": " + n.Reason
		state.Results[0].Failure = append(state.Results[0].Failure, t)
	}
	out.Result.JobStates = []jobState{state}
	// Harbor shows the errors and not the tasks of a job that has failed.
	for _, t := range state.Results[0].Failure[:min(len(state.Results[0].Failure), 20)] {
		out.Result.JobStates = append(out.Result.JobStates, jobState{Error: "node " + t.Hostname + " is " + t.Description, Results: []tasks{}})
	}
	return out
}

// oldRequest is what Harbor up to 2.9.5 sends.
type oldRequest struct {
	Type    string            `json:"type"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
}

type oldResponse struct {
	ID       string `json:"ID"`
	Start    string `json:"startTime,omitempty"`
	Finish   string `json:"finishTime,omitempty"`
	ErrorMsg string `json:"errorMsg"`
	Status   string `json:"status,omitempty"`
}

func (s *service) createOld(w http.ResponseWriter, r *http.Request) {
	var req oldRequest
	err := read(w, r, &req)
	var job jobs.Job
	if err == nil {
		job, err = s.begin(r.Context(), req.Type, req.URL, "", req.Headers, 0)
	}
	if err != nil {
		fail(w, err)
		return
	}
	write(w, http.StatusOK, describeOld(job))
}

func (s *service) pollOld(w http.ResponseWriter, r *http.Request) {
	job, err := s.jobs.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		fail(w, err)
		return
	}
	write(w, http.StatusOK, describeOld(job))
}

// describeOld says a job in the words of the first Dragonfly.
func describeOld(job jobs.Job) oldResponse {
	out := oldResponse{ID: job.ID, Start: job.Created.Format(time.RFC3339), Status: "RUNNING"}
	if !job.Ended() {
		return out
	}
	out.Finish = job.Updated.Format(time.RFC3339)
	if out.Status = "SUCCESS"; job.State != jobs.Done {
		out.Status, out.ErrorMsg = "FAILED", job.Reason
	}
	return out
}

// notification is what is sent to a Kraken: that a manifest was pushed.
type notification struct {
	Events []struct {
		Action string
		Target struct{ URL string }
	}
}

// notified begins a job for each manifest. Nobody will ask after them.
func (s *service) notified(w http.ResponseWriter, r *http.Request) {
	var n notification
	if err := read(w, r, &n); err != nil {
		fail(w, err)
		return
	}
	if len(n.Events) > maxEvents {
		fail(w, &badRequest{fmt.Sprintf("%d events, at most %d", len(n.Events), maxEvents)})
		return
	}
	for _, e := range n.Events {
		if e.Action != "push" {
			continue
		}
		if _, err := s.begin(r.Context(), "image", e.Target.URL, "", nil, 0); err != nil {
			fail(w, err)
			return
		}
	}
	write(w, http.StatusOK, struct{}{})
}
