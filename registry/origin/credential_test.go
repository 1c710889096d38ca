package origin

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/registry"
	rt "github.com/shoalproject/shoal/registry/registrytest"
)

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWhoMayBearCredentials(t *testing.T) {
	for _, c := range []struct {
		endpoint, url string
		api, token    bool
	}{
		{"https://registry-1.docker.io", "https://registry-1.docker.io/v2/", true, true},
		{"https://registry-1.docker.io", "https://registry-1.docker.io:443/v2/", true, true},
		{"https://registry-1.docker.io", "https://REGISTRY-1.docker.io/v2/", true, true},
		{"https://registry-1.docker.io", "https://auth.docker.io/token", false, true},
		{"https://registry-1.docker.io", "http://registry-1.docker.io/v2/", false, false},
		{"https://registry-1.docker.io", "http://auth.docker.io/token", false, false},
		{"https://registry-1.docker.io", "https://registry-1.docker.io:444/", false, true},
		{"https://registry-1.docker.io", "https://docker.io.evil.com/token", false, false},
		{"https://registry-1.docker.io", "https://registry-1.docker.io@evil.com/token", false, false},
		{"https://registry-1.docker.io", "https://evildocker.io/token", false, false},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", false, true},
		{"https://a.github.io", "https://b.github.io/token", false, false}, // a public suffix
		{"https://x.co.uk", "https://y.co.uk/token", false, false},
		{"https://1.dkr.ecr.eu-west-1.amazonaws.com", "https://evil.s3.amazonaws.com/", false, false},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5001/token", false, true},
		{"https://10.0.0.1", "https://9.0.0.1/token", false, false}, // not "0.1"
		{"https://[fd00::1]", "https://[fd00::2]/token", false, false},
		{"https://registry.a.svc.cluster.local", "https://evil.b.svc.cluster.local/token", false, false},
		{"https://registry.corp", "https://auth.corp/token", false, false},
		{"https://registry.lan.corp", "https://auth.lan.corp/token", false, true},
		{"https://registry.corp", "https://allowed.example:8443/token", false, true},
		{"https://registry.corp", "http://allowed.example:8443/token", false, false},
		{"http://registry.corp", "http://registry.corp/v2/", true, true},
		{"http://registry.corp", "https://registry.corp/v2/", false, true},
	} {
		conf := Config{Endpoints: []Endpoint{{
			Upstream:   registry.Upstream{Host: host, Endpoint: *mustURL(t, c.endpoint)},
			AllowHosts: []string{"allowed.example:8443"},
		}}}
		e := newClientOf(t, conf).endpoints[host]
		u := mustURL(t, c.url)
		if got := e.mayBear(forAPI, u); got != c.api {
			t.Errorf("%s → %s: API %v", c.endpoint, c.url, got)
		}
		if got := e.mayBear(forToken, u); got != c.token {
			t.Errorf("%s → %s: token %v", c.endpoint, c.url, got)
		}
	}
}

// wantNoSecrets holds what a server saw against all that is secret.
func wantNoSecrets(t *testing.T, o *rt.Origin) {
	t.Helper()
	for _, r := range o.Requests() {
		if r.Authorization != "" || strings.Contains(r.Form.Encode(), password) || r.Form.Has("password") || r.Form.Has("refresh_token") {
			t.Errorf("%s %s came with a credential: %q %v", r.Method, r.Path, r.Authorization, r.Form)
		}
	}
}

// elsewhere returns an origin under another hostname whose address the client
// takes for a public one.
func elsewhere(t *testing.T, c *Client, o *rt.Origin) (server string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(o.Host())
	server = "localhost:" + port
	c.endpoints[host].exempt[server] = true
	return server
}

func TestRealmElsewhereGetsNoCredential(t *testing.T) {
	for name, cred := range map[string]Credential{
		"password": {Username: user, Password: password}, "refresh token": {RefreshToken: password},
	} {
		t.Run(name, func(t *testing.T) {
			evil := rt.New(t, rt.WithAuth(rt.Auth{Allow: func(string, string) bool { return true }}))
			_, port, _ := net.SplitHostPort(evil.Host())
			auth := aliceOnly()
			auth.Realm = "http://localhost:" + port + "/token"
			o := rt.New(t, rt.WithAuth(auth))
			d := o.AddBlob(repo, []byte("data"))
			c := newClient(t, o, as(cred))
			elsewhere(t, c, evil)
			_, err := c.HeadBlob(t.Context(), target, d)
			wantStatus(t, err, http.StatusUnauthorized) // its token is worth nothing here
			if evil.Count(rt.Token, "GET") != 1 || evil.Count(rt.Token, "POST") != 0 {
				t.Errorf("the realm was asked %d times by GET, %d by POST", evil.Count(rt.Token, "GET"), evil.Count(rt.Token, "POST"))
			}
			wantNoSecrets(t, evil)
		})
	}
}

func TestRealmOnAnotherPortIfAllowed(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()), rt.WithTokenServer())
	d := o.AddBlob(repo, []byte("data"))
	if _, err := newClient(t, o, alice, allowing(o.TokenHost())).HeadBlob(t.Context(), target, d); err != nil {
		t.Errorf("allowed: %v", err)
	}
	o.ResetCounters()
	_, err := newClient(t, o, alice).HeadBlob(t.Context(), target, d)
	wantStatus(t, err, 502)
	if n := o.Count(rt.Token); n != 0 {
		t.Errorf("%d requests to a loopback address on another port", n)
	}
}

// TestTokenRequestsAreNotLedAstray: a realm that redirects gets the secret to
// itself and to nobody else.
func TestTokenRequestsAreNotLedAstray(t *testing.T) {
	evil := rt.New(t, rt.WithAuth(aliceOnly()))
	for _, noPost := range []bool{false, true} {
		auth := aliceOnly()
		auth.NoPost = noPost
		o := rt.New(t, rt.WithAuth(auth))
		d := o.AddBlob(repo, []byte("data"))
		c := newClient(t, o, alice)
		server := elsewhere(t, c, evil)
		for _, status := range []int{302, 307, 308} {
			cancel := o.Inject(rt.Order{Kind: rt.Token}, rt.Status(status, "Location", "http://"+server+"/token"))
			_, err := c.HeadBlob(t.Context(), target, d)
			cancel()
			if err == nil {
				t.Errorf("%d: no error", status)
			} else {
				checkSecrets(t, err.Error())
			}
		}
	}
	wantNoSecrets(t, evil)
}

func TestAuthorizationIsStrippedAcrossHosts(t *testing.T) {
	data := []byte("data")
	evil := rt.New(t)
	d := evil.AddBlob(repo, data)
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	o.AddBlob(repo, data)
	c := newClient(t, o, alice)
	server := elsewhere(t, c, evil)
	there := "http://" + server + "/v2/" + repo + "/blobs/" + string(d)
	o.Inject(rt.Order{Kind: rt.Blob, Skip: 1, Times: 1}, rt.Redirect(there))
	if b, _, err := readBlob(t, c, d, 0, -1); err != nil || !bytes.Equal(b, data) {
		t.Fatalf("%q, %v", b, err)
	}
	wantNoSecrets(t, evil)
	// There and back again: it stays off.
	evil.Inject(rt.Order{}, rt.Redirect(o.URL()+"/v2/"+repo+"/blobs/"+string(d)))
	o.Inject(rt.Order{Kind: rt.Blob, Times: 1}, rt.Redirect(there))
	before := o.Count(rt.Blob)
	if _, _, err := readBlob(t, c, d, 0, -1); err == nil {
		t.Log("served after the token dance")
	}
	back := o.Requests(rt.Blob)[before+1]
	if back.Authorization != "" {
		t.Error("Authorization came back by a redirect over another host")
	}
	wantNoSecrets(t, evil)
	// Nor a caller's own.
	mine := target
	mine.Authorization = "Bearer " + password
	o.Inject(rt.Order{Kind: rt.Blob}, rt.Redirect(there))
	if s, err := c.Blob(t.Context(), mine, d, 0, -1); err == nil {
		s.Close()
	}
	wantNoSecrets(t, evil)
}

func TestSameHostRedirectKeepsAuthorization(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	o.Inject(rt.Order{Kind: rt.Blob, Skip: 1, Times: 1}, rt.Redirect("/v2/"+repo+"/blobs/"+string(d)+"?again=1"))
	if b, _, err := readBlob(t, newClient(t, o, alice), d, 0, -1); err != nil || string(b) != "data" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestTLSIsVerified(t *testing.T) {
	o := rt.New(t, rt.WithTLS(), rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	_, err := newClient(t, o, alice, func(c *Config) { c.Endpoints[0].RootCAs = nil }).HeadBlob(t.Context(), target, d)
	wantStatus(t, err, 503)
	if n := len(o.Requests()); n != 0 {
		t.Errorf("%d requests to a server that nobody vouches for", n)
	}
}

// TestClientCertificate is presented to the endpoint and to nobody else.
func TestClientCertificate(t *testing.T) {
	o := rt.New(t, rt.WithMTLS())
	d := o.AddBlob(repo, []byte("data"))
	_, err := newClient(t, o).HeadBlob(t.Context(), target, d)
	wantStatus(t, err, 503)
	var seen int
	store := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen += len(r.TLS.PeerCertificates)
		w.Write([]byte("data"))
	}))
	store.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	store.StartTLS()
	defer store.Close()
	pool := o.RootCAs().Clone()
	pool.AddCert(store.Certificate())
	cert := o.ClientCert()
	c := newClient(t, o, allowing(store.Listener.Addr().String()), func(c *Config) {
		c.Endpoints[0].RootCAs, c.Endpoints[0].ClientCert = pool, &cert
	})
	if _, err := c.HeadBlob(t.Context(), target, d); err != nil {
		t.Fatal(err)
	}
	o.Inject(rt.Order{Kind: rt.Blob}, rt.Redirect(store.URL))
	if b, _, err := readBlob(t, c, d, 0, -1); err != nil || string(b) != "data" {
		t.Fatalf("%q, %v", b, err)
	}
	if seen != 0 {
		t.Error("the store saw the client certificate")
	}
}

// TestSendKeepsTheRule: whatever the callers of send forget.
func TestSendKeepsTheRule(t *testing.T) {
	evil := rt.New(t)
	c := newClient(t, rt.New(t), alice)
	e := c.endpoints[host]
	there := "http://" + elsewhere(t, c, evil) + "/v2/"
	for _, p := range []purpose{forAPI, forToken} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, there, nil)
		req.SetBasicAuth(user, password)
		resp, err := e.send(req, p)
		if err != nil {
			t.Fatal(err)
		}
		drain(resp)
		req, _ = http.NewRequestWithContext(t.Context(), http.MethodPost, there, strings.NewReader("password="+password))
		if resp, err := e.send(req, p); err == nil {
			t.Error("a body with a password was sent")
			drain(resp)
		}
	}
	if n := len(evil.Requests()); n != 2 {
		t.Errorf("%d requests, want the two without a body", n)
	}
	wantNoSecrets(t, evil)
}

// TestTokenRedirectStrips: another server that could be a realm of its own is
// not given what was meant for the first.
func TestTokenRedirectStrips(t *testing.T) {
	other := rt.New(t, rt.WithAuth(aliceOnly()))
	auth := aliceOnly()
	auth.NoPost = true
	o := rt.New(t, rt.WithAuth(auth))
	d := o.AddBlob(repo, []byte("data"))
	o.Inject(rt.Order{Kind: rt.Token, Method: http.MethodGet}, rt.Redirect(other.URL()+"/token"))
	if _, err := newClient(t, o, alice, allowing(other.Host())).HeadBlob(t.Context(), target, d); err == nil {
		t.Error("a token of another registry was good")
	}
	if n := other.Count(rt.Token); n == 0 {
		t.Error("the redirect was not followed")
	}
	wantNoSecrets(t, other)
}
