package api

import (
	"bytes"
	"context"
	_ "embed" // for the description
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

//go:embed openapi.yaml
var description []byte

const (
	// maxBody bounds a request: 64 images with a credential each.
	maxBody = 2 << 20
	// longPoll is how long an answer waits at most for a change.
	longPoll = 20 * time.Second
)

// Jobs are the preheat jobs; jobs.Manager says what each method does.
type Jobs interface {
	Create(ctx context.Context, spec jobs.Spec, creds jobs.Credentials) (jobs.Job, error)
	Wait(ctx context.Context, id string, than int64) (jobs.Job, error)
	List(ctx context.Context) ([]jobs.Job, error)
	Cancel(ctx context.Context, id string) (jobs.Job, error)
	Renew(ctx context.Context, id string, creds jobs.Credentials) error
}

// Request asks for a job.
type Request struct {
	jobs.Spec
	// Credentials are Authorization headers for origins, by host/name of the
	// repository or by host. They are kept in memory alone.
	Credentials jobs.Credentials `json:"credentials,omitempty"`
}

// Renewal brings a job other credentials.
type Renewal struct {
	Credentials jobs.Credentials `json:"credentials"`
}

// Status is what the cluster is doing, as far as this scheduler knows.
type Status struct {
	Version string          `json:"version"`
	Totals  Totals          `json:"totals"`
	Nodes   []jobs.NodeInfo `json:"nodes"`
	// Swarms are those that most nodes want, at most 100.
	Swarms []Swarm `json:"swarms"`
	// Jobs are without their nodes, the newest first, at most 50.
	Jobs []jobs.Job `json:"jobs"`
}

// Totals count what a scheduler has.
type Totals struct {
	Nodes   int `json:"nodes"`
	Swarms  int `json:"swarms"`
	Members int `json:"members"`
	Streams int `json:"origin_streams"`
	Holds   int `json:"holds"`
	Bans    int `json:"bans"`
}

// Swarm is a blob that nodes want.
type Swarm struct {
	Blob     string `json:"blob"`
	Size     int64  `json:"size"`
	Wanting  int    `json:"wanting"`
	Complete int    `json:"complete"`
	Streams  int    `json:"origin_streams"`
}

// Handler serves the API below /api/v1/. Status gets what is said of the
// cluster. Who may use it is to be checked before.
func Handler(j Jobs, status func(context.Context) Status) http.Handler {
	s := &service{jobs: j, status: status}
	mux := http.NewServeMux()
	for pattern, handle := range s.routes() {
		mux.HandleFunc(pattern, handle)
	}
	mux.HandleFunc("/api/v1/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, fmt.Errorf("there is no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

type service struct {
	jobs   Jobs
	status func(context.Context) Status
}

func (s *service) routes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"POST /api/v1/jobs":                 s.create,
		"GET /api/v1/jobs":                  s.list,
		"GET /api/v1/jobs/{id}":             s.get,
		"DELETE /api/v1/jobs/{id}":          s.cancel,
		"PUT /api/v1/jobs/{id}/credentials": s.renew,
		"GET /api/v1/status": func(w http.ResponseWriter, r *http.Request) {
			write(w, http.StatusOK, s.status(r.Context()))
		},
		"GET /api/v1/openapi.yaml": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/yaml")
			_, _ = w.Write(description) // an error means that the client has gone
		},
	}
}

// badRequest is something wrong with a request.
type badRequest struct{ field, why string }

func (e *badRequest) Error() string { return e.why }
func (e *badRequest) Name() string  { return e.field }

// read takes a body in, strictly.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &badRequest{"", "Content-Type must be application/json"}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return &badRequest{"", fmt.Sprintf("the body cannot be read, or has more than %d bytes", maxBody)}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err = dec.Decode(into)
	if err == nil && dec.More() {
		err = errors.New("something follows the document")
	}
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind):
		return &badRequest{kind.Field, fmt.Sprintf("%s: want %s, not a %s", kind.Field, kind.Type, kind.Value)}
	case err != nil:
		// Of the decoder's errors this one names a field; no other repeats
		// what was sent.
		if rest, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			field, _ := strconv.Unquote(rest)
			return &badRequest{field, "unknown field " + rest}
		}
		return &badRequest{"", "the body is not the JSON document that is wanted"}
	}
	return nil
}

// checkCredentials bounds what will be sent on as a header.
func checkCredentials(c jobs.Credentials) error {
	if len(c) > jobs.MaxImages {
		return &badRequest{"credentials", fmt.Sprintf("credentials: %d of them, at most %d", len(c), jobs.MaxImages)}
	}
	for repo, auth := range c {
		scheme, rest, ok := strings.Cut(auth, " ")
		known := strings.EqualFold(scheme, "bearer") || strings.EqualFold(scheme, "basic")
		if !ok || !known || rest == "" || len(auth) > jobs.MaxAuthorization || strings.ContainsFunc(auth, func(r rune) bool { return r < ' ' || r > '~' }) {
			return &badRequest{"credentials", fmt.Sprintf("credentials: that of %.200q is no Authorization header of scheme Bearer or Basic", repo)}
		}
	}
	return nil
}

// accept reads a body that brings credentials, or answers why not and reports
// false.
func accept(w http.ResponseWriter, r *http.Request, into any, credentials *jobs.Credentials) bool {
	err := read(w, r, into)
	if err == nil {
		err = checkCredentials(*credentials)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
	}
	return err == nil
}

func (s *service) create(w http.ResponseWriter, r *http.Request) {
	var req Request
	if !accept(w, r, &req, &req.Credentials) {
		return
	}
	job, err := s.jobs.Create(r.Context(), req.Spec, req.Credentials)
	if err != nil {
		s.failed(w, err)
		return
	}
	w.Header().Set("Location", "/api/v1/jobs/"+job.ID)
	write(w, http.StatusCreated, withoutLayers(job))
}

// failed says what became of a request that the jobs did not take.
func (s *service) failed(w http.ResponseWriter, err error) {
	var spec *jobs.SpecError
	status := http.StatusServiceUnavailable
	switch {
	case errors.As(err, &spec):
		status, err = http.StatusBadRequest, &badRequest{spec.Field, spec.Error()}
	case errors.Is(err, jobs.ErrCredentials):
		status, err = http.StatusForbidden, &badRequest{"credentials", err.Error()}
	case errors.Is(err, jobs.ErrUnknown):
		status = http.StatusNotFound
	case errors.Is(err, jobs.ErrNotOwner), errors.Is(err, jobs.ErrNoNodes):
		status = http.StatusConflict
	case errors.Is(err, jobs.ErrFull):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "30")
	}
	fail(w, status, err)
}

func (s *service) list(w http.ResponseWriter, r *http.Request) {
	list, err := s.jobs.List(r.Context())
	if err != nil {
		s.failed(w, err)
		return
	}
	if list == nil {
		list = []jobs.Job{}
	}
	write(w, http.StatusOK, map[string]any{"jobs": list})
}

// get answers with a job: at once, or, of the revision that the client has,
// when there is another.
func (s *service) get(w http.ResponseWriter, r *http.Request) {
	than := int64(-1)
	if v := r.URL.Query().Get("revision"); v != "" {
		var err error
		if than, err = strconv.ParseInt(v, 10, 64); err != nil {
			fail(w, http.StatusBadRequest, &badRequest{"revision", "revision: want a number"})
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), longPoll)
	defer cancel()
	job, err := s.jobs.Wait(ctx, r.PathValue("id"), than)
	if err != nil {
		s.failed(w, err)
		return
	}
	if r.URL.Query().Get("layers") != "true" {
		job = withoutLayers(job)
	}
	write(w, http.StatusOK, job)
}

// withoutLayers returns a job without what makes it long.
func withoutLayers(job jobs.Job) jobs.Job {
	job = job.Clone()
	for i := range job.Nodes {
		for k := range job.Nodes[i].Images {
			job.Nodes[i].Images[k].Layers = nil
		}
	}
	return job
}

func (s *service) cancel(w http.ResponseWriter, r *http.Request) {
	job, err := s.jobs.Cancel(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, err)
		return
	}
	write(w, http.StatusOK, withoutLayers(job))
}

func (s *service) renew(w http.ResponseWriter, r *http.Request) {
	var req Renewal
	if !accept(w, r, &req, &req.Credentials) {
		return
	}
	if len(req.Credentials) == 0 {
		fail(w, http.StatusBadRequest, &badRequest{"credentials", "credentials: name at least one, or the job would lose those it has"})
		return
	}
	if err := s.jobs.Renew(r.Context(), r.PathValue("id"), req.Credentials); err != nil {
		s.failed(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
