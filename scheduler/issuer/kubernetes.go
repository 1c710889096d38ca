package issuer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// AccountDir is where Kubernetes puts the token of a pod's service account and
// the CA of its API server.
const AccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// Keys of what a token's review says beside the name of the service account.
// The node is named by Kubernetes 1.30 and later (feature
// ServiceAccountTokenPodNodeInfo: beta and on in 1.30, always on from 1.32).
const (
	extraNode = "authentication.kubernetes.io/node-name"
	extraPod  = "authentication.kubernetes.io/pod-name"
)

// maxReview bounds the answer of the API server.
const maxReview = 256 << 10

// Kubernetes reviews tokens of service accounts by asking the API server of the
// cluster that this process runs in (TokenReview, authentication.k8s.io/v1). Its
// own service account must be allowed to create tokenreviews.
type Kubernetes struct {
	url      string
	dir      string
	audience string
	accounts []string // user names
	client   *http.Client
}

// NewKubernetes returns a Reviewer of tokens for an audience that belong to one
// of the service accounts, NAMESPACE:NAME. The API server is at host, HOST:PORT;
// dir is AccountDir, or a directory with the same files, token and ca.crt.
func NewKubernetes(host, dir, audience string, accounts []string) (*Kubernetes, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the CA of the API server: %w", err)
	}
	cas := x509.NewCertPool()
	if !cas.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no PEM certificate", filepath.Join(dir, "ca.crt"))
	}
	k := &Kubernetes{
		url: "https://" + host + "/apis/authentication.k8s.io/v1/tokenreviews",
		dir: dir, audience: audience,
		client: &http.Client{
			// A proxy in the environment is for the way to origins.
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{RootCAs: cas, MinVersion: tls.VersionTLS12},
				DialContext:         (&net.Dialer{Timeout: reviewTimeout}).DialContext,
				TLSHandshakeTimeout: reviewTimeout,
				MaxIdleConnsPerHost: reviews, IdleConnTimeout: time.Minute,
				ForceAttemptHTTP2: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	for _, a := range accounts {
		namespace, name, ok := strings.Cut(a, ":")
		if !ok || !nodeName.MatchString(namespace) || !nodeName.MatchString(name) {
			return nil, fmt.Errorf("%q: want NAMESPACE:NAME of a service account", a)
		}
		k.accounts = append(k.accounts, "system:serviceaccount:"+namespace+":"+name)
	}
	return k, nil
}

// Close closes idle connections.
func (k *Kubernetes) Close() { k.client.CloseIdleConnections() }

// tokenReview is what this package uses of a TokenReview.
type tokenReview struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Spec       reviewSpec   `json:"spec"`
	Status     reviewStatus `json:"status"`
}

type reviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type reviewStatus struct {
	Authenticated bool     `json:"authenticated"`
	Audiences     []string `json:"audiences"`
	Error         string   `json:"error"`
	User          struct {
		Username string              `json:"username"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
}

// Review implements Reviewer: it returns the node of the pod that a token is
// bound to.
func (k *Kubernetes) Review(ctx context.Context, token string) (string, error) {
	status, err := k.ask(ctx, token)
	if err != nil {
		return "", fmt.Errorf("reviewing a token at %s: %w", k.url, err)
	}
	return k.node(status)
}

// ask returns what the API server says of a token.
func (k *Kubernetes) ask(ctx context.Context, token string) (s reviewStatus, err error) {
	// The kubelet replaces the file before the token in it expires.
	own, err := os.ReadFile(filepath.Join(k.dir, "token"))
	if err != nil {
		return s, err
	}
	body, err := json.Marshal(tokenReview{
		APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview",
		Spec: reviewSpec{Token: token, Audiences: []string{k.audience}},
	})
	if err != nil {
		return s, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url, bytes.NewReader(body))
	if err != nil {
		return s, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(own)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
	case http.StatusForbidden:
		return s, errors.New("the scheduler's service account may not create tokenreviews: bind it to the cluster role system:auth-delegator")
	default:
		return s, fmt.Errorf("the API server answers %s", resp.Status)
	}
	var review tokenReview
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReview)).Decode(&review); err != nil {
		return s, fmt.Errorf("reading the answer: %w", err)
	}
	return review.Status, nil
}

// nodeName is the grammar of names of nodes (RFC 1123, in lower case); those of
// namespaces and service accounts are within it.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// node returns the node that the review of a token names, or a *Refusal.
func (k *Kubernetes) node(s reviewStatus) (string, error) {
	switch {
	case !s.Authenticated:
		detail := "the token is not good: expired, forged, or its pod is gone"
		if s.Error != "" {
			detail += fmt.Sprintf(" (%.200q)", s.Error)
		}
		return "", &Refusal{Detail: detail}
	// An API server that does not know audiences answers without any.
	case !slices.Contains(s.Audiences, k.audience):
		return "", &Refusal{Known: true, Detail: fmt.Sprintf("the token is not for the audience %q", k.audience)}
	case !slices.Contains(k.accounts, s.User.Username):
		return "", &Refusal{Known: true, Detail: fmt.Sprintf("the token is of %.300q, whose pods get no certificate", s.User.Username)}
	case len(s.User.Extra[extraPod]) != 1:
		return "", &Refusal{Known: true, Detail: "the token is not bound to a pod"}
	}
	nodes := s.User.Extra[extraNode]
	if len(nodes) != 1 || len(nodes[0]) > 253 || !nodeName.MatchString(nodes[0]) {
		return "", &Refusal{Known: true, Detail: "the token does not name its node: Kubernetes 1.30 or later is needed"}
	}
	return nodes[0], nil
}
