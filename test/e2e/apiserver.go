package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// APIServer stands in for that of a cluster: it reviews tokens.
type APIServer struct {
	// Env is what pods are told of it.
	Env []string
	// CA is its certificate, as PEM.
	CA string
}

// NewAPIServer returns one that answers the caller with the token own, and knows
// one token: that of the daemon's pod on a node.
func NewAPIServer(t testing.TB, own, token, node string) *APIServer {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			Spec struct {
				Token     string
				Audiences []string
			}
		}
		if r.Header.Get("Authorization") != "Bearer "+own || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" ||
			json.NewDecoder(r.Body).Decode(&review) != nil {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		status := `{"error":"invalid bearer token"}`
		if review.Spec.Token == token && strings.Join(review.Spec.Audiences, " ") == "shoal-issuer" {
			status = fmt.Sprintf(`{"authenticated":true,"audiences":["shoal-issuer"],"user":{"username":"system:serviceaccount:shoal:shoal","extra":{
				"authentication.kubernetes.io/pod-name":["shoal-x"],"authentication.kubernetes.io/node-name":[%q]}}}`, node)
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":%s}`, status)
	}))
	t.Cleanup(srv.Close)
	host, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return &APIServer{
		Env: []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port},
		CA:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})),
	}
}
