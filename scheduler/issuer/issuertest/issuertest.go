// Package issuertest has an API server for tests that reviews tokens as
// Kubernetes 1.30 and later do. It is a stand-in: what the real one answers is
// seen where a real cluster runs.
package issuertest

import (
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Own is the token by which a scheduler may ask.
const Own = "token-of-the-scheduler"

// Token is what an API server knows of a token.
type Token struct {
	Audience string
	// User is its user name, system:serviceaccount:NAMESPACE:NAME.
	User string
	// Pod and Node are where it is mounted; empty for a token that is bound to
	// none, or of a Kubernetes that does not name nodes.
	Pod, Node string
	// Expires is when it ends. Zero: never.
	Expires time.Time
}

// Node returns the token of a daemon's pod on a node.
func Node(name string) Token {
	return Token{Audience: "shoal-issuer", User: "system:serviceaccount:shoal:shoal", Pod: "shoal-" + name, Node: name}
}

// API is an API server.
type API struct {
	// Host and Port are its address, as Kubernetes tells it to pods by
	// KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
	Host, Port string
	// Dir has the files token and ca.crt.
	Dir string

	// mu guards what follows.
	mu     sync.Mutex
	tokens map[string]Token
	fault  int
	blind  bool
	asked  int
}

// New starts an API server that knows no token but Own.
func New(tb testing.TB) *API {
	tb.Helper()
	a := &API{tokens: map[string]Token{}, Dir: tb.TempDir()}
	srv := httptest.NewTLSServer(http.HandlerFunc(a.serve))
	tb.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err == nil {
		a.Host, a.Port, err = net.SplitHostPort(u.Host)
	}
	if err == nil {
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		err = os.WriteFile(filepath.Join(a.Dir, "ca.crt"), ca, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(a.Dir, "token"), []byte(Own+"\n"), 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// Env is the environment of a pod.
func (a *API) Env() []string {
	return []string{"KUBERNETES_SERVICE_HOST=" + a.Host, "KUBERNETES_SERVICE_PORT=" + a.Port}
}

// Grant makes a token known.
func (a *API) Grant(name string, t Token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens[name] = t
}

// Revoke forgets a token, as when its pod is deleted.
func (a *API) Revoke(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tokens, name)
}

// Fail answers everything with a status from now on; 0 ends that.
func (a *API) Fail(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = status
}

// Blind makes it a server that does not know audiences.
func (a *API) Blind() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.blind = true
}

// Asked returns how many reviews were asked for.
func (a *API) Asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	var review struct {
		APIVersion, Kind string
		Spec             struct {
			Token     string
			Audiences []string
		}
	}
	switch {
	case a.fault != 0:
		http.Error(w, http.StatusText(a.fault), a.fault)
		return
	case r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews":
		http.NotFound(w, r)
		return
	case r.Header.Get("Authorization") != "Bearer "+Own:
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	case json.NewDecoder(r.Body).Decode(&review) != nil, review.APIVersion != "authentication.k8s.io/v1", review.Kind != "TokenReview":
		http.Error(w, "not a TokenReview", http.StatusBadRequest)
		return
	}
	type object = map[string]any
	status := object{"error": "[invalid bearer token, token lookup failed]"}
	t, known := a.tokens[review.Spec.Token]
	switch {
	case !known:
	case !t.Expires.IsZero() && time.Now().After(t.Expires):
		status["error"] = "[invalid bearer token, service account token has expired]"
	case !a.blind && (len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != t.Audience):
		status["error"] = "[invalid bearer token, token audiences are invalid for the target audiences]"
	default:
		extra := object{}
		if t.Pod != "" {
			extra["authentication.kubernetes.io/pod-name"] = []string{t.Pod}
			extra["authentication.kubernetes.io/pod-uid"] = []string{"uid-of-" + t.Pod}
		}
		if t.Node != "" {
			extra["authentication.kubernetes.io/node-name"] = []string{t.Node}
		}
		status = object{"authenticated": true, "user": object{"username": t.User, "extra": extra}}
		if !a.blind {
			status["audiences"] = review.Spec.Audiences
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(object{"apiVersion": review.APIVersion, "kind": review.Kind, "status": status})
}
