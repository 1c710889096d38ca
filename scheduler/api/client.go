package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

// Client speaks to the API of schedulers, to the next one when one does not
// answer.
type Client struct {
	bases []string
	token string
	http  *http.Client
	last  int // of bases, that answered
}

// AnswerError is a refusal of the API.
type AnswerError struct {
	Status  int
	Problem Problem
}

func (e *AnswerError) Error() string { return "the scheduler says: " + e.Problem.Error }

// NewClient returns a client for schedulers, HOST:PORT or a URL each. The
// token is in a file, and so is a PEM CA for https; both may be empty.
func NewClient(schedulers []string, tokenFile, caFile string) (*Client, error) {
	c := &Client{http: &http.Client{Timeout: longPoll + 10*time.Second}}
	for _, s := range schedulers {
		if !strings.Contains(s, "://") {
			s = "http://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("%q: want HOST:PORT or http[s]://HOST:PORT of a scheduler's --admin-listen", s)
		}
		c.bases = append(c.bases, u.Scheme+"://"+u.Host)
	}
	if tokenFile != "" {
		raw, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, err
		}
		c.token = strings.TrimSpace(string(raw))
	}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", caFile)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
		c.http.Transport = transport
	}
	return c, nil
}

// patience is how often a question is repeated that came too soon.
const patience = 10

// do asks one scheduler after the other, beginning with the one that answered
// last. Questions that come too fast are repeated.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	for try := 1; ; try++ {
		err := c.once(ctx, method, path, body, into)
		var answer *AnswerError
		if method != http.MethodGet || !errors.As(err, &answer) || answer.Status != http.StatusTooManyRequests || try == patience {
			return err
		}
		pause := time.NewTimer(time.Second)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

func (c *Client) once(ctx context.Context, method, path string, body, into any) error {
	var failed error
	for try := range c.bases {
		at := (c.last + try) % len(c.bases)
		err := c.ask(ctx, method, c.bases[at]+path, body, into)
		var answer *AnswerError
		if err == nil || errors.As(err, &answer) || ctx.Err() != nil {
			c.last = at
			return err
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

func (c *Client) ask(ctx context.Context, method, url string, body, into any) error {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, payload)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// A port that speaks HTTP/2 or TLS alone answers so to HTTP/1, the latter
		// by hanging up.
		if strings.Contains(err.Error(), "malformed HTTP response") || errors.Is(err, io.EOF) {
			return fmt.Errorf("%s does not speak HTTP: it looks like the port for daemons (--listen of the scheduler, gRPC, 4402 by default). Give the address of its --admin-listen, 4404 by default, and https:// before it if that is behind TLS", req.URL.Host)
		}
		return fmt.Errorf("scheduler: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		answer := &AnswerError{Status: resp.StatusCode}
		raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what cannot be read is not there
		if json.Unmarshal(raw, &answer.Problem) != nil || answer.Problem.Error == "" {
			answer.Problem.Error = resp.Status + ": is this the admin address of a scheduler?"
		}
		return answer
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("scheduler: reading its answer: %w", err)
	}
	return nil
}

// Create begins a job.
func (c *Client) Create(ctx context.Context, req Request) (job jobs.Job, err error) {
	return job, c.do(ctx, http.MethodPost, "/api/v1/jobs", req, &job)
}

// Wait returns a job once it has another revision than the one given, or after
// a while; a negative one is no job's.
func (c *Client) Wait(ctx context.Context, id string, than int64) (job jobs.Job, err error) {
	return job, c.do(ctx, http.MethodGet, "/api/v1/jobs/"+url.PathEscape(id)+"?revision="+strconv.FormatInt(than, 10), nil, &job)
}

// Cancel ends a job, and returns how it stands: one that had ended before is as
// it was, one of another scheduler ends within seconds.
func (c *Client) Cancel(ctx context.Context, id string) (job jobs.Job, err error) {
	return job, c.do(ctx, http.MethodDelete, "/api/v1/jobs/"+url.PathEscape(id), nil, &job)
}

// Renew gives a job other credentials.
func (c *Client) Renew(ctx context.Context, id string, creds jobs.Credentials) error {
	return c.do(ctx, http.MethodPut, "/api/v1/jobs/"+url.PathEscape(id)+"/credentials", Renewal{creds}, nil)
}

// Status returns what the cluster is doing. Of several schedulers each is
// asked for the swarms that it has.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var all Status
	var failed error
	answered := 0
	for _, base := range c.bases {
		var one Status
		if err := c.ask(ctx, http.MethodGet, base+"/api/v1/status", nil, &one); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		answered++
		all = merge(all, one)
	}
	if answered == 0 {
		return all, failed
	}
	return all, nil
}

// merge adds what another scheduler says. Nodes are connected to all of them,
// blobs belong to one.
func merge(a, b Status) Status {
	if a.Version == "" {
		return b
	}
	a.Swarms = append(a.Swarms, b.Swarms...)
	a.Totals.Swarms += b.Totals.Swarms
	a.Totals.Members += b.Totals.Members
	a.Totals.Streams += b.Totals.Streams
	a.Totals.Nodes = max(a.Totals.Nodes, b.Totals.Nodes)
	for _, n := range b.Nodes {
		if !slices.ContainsFunc(a.Nodes, func(o jobs.NodeInfo) bool { return o.Name == n.Name }) {
			a.Nodes = append(a.Nodes, n)
		}
	}
	for _, j := range b.Jobs {
		if i := slices.IndexFunc(a.Jobs, func(o jobs.Job) bool { return o.ID == j.ID }); i < 0 {
			a.Jobs = append(a.Jobs, j)
		} else if j.Revision > a.Jobs[i].Revision {
			a.Jobs[i] = j
		}
	}
	return a
}
