package e2e

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Realm is a token service, in the test's own process, that a docker-registry
// trusts: it gives tokens as the distribution specification says, JWTs signed
// by a key whose certificate is in the registry's rootcertbundle.
type Realm struct {
	server *httptest.Server
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	bundle string // path of the PEM file

	mu sync.Mutex
	// Guarded by mu:
	users    map[string]RealmUser
	public   []string // repositories that all may pull from
	requests []RealmRequest
	issued   []string
}

// RealmUser is who gets tokens.
type RealmUser struct {
	Password string
	// Pull are the repositories that the user may pull from.
	Pull []string
	// Push says that the user may push everywhere.
	Push bool
}

// RealmRequest is what a token was asked for with.
type RealmRequest struct {
	User, Password string
	Scope          string
	Given          bool // a token was given
}

const (
	realmService = "e2e-registry"
	pusher       = "pusher"
	// tokenLife is long: nothing here waits for a token to expire.
	tokenLife = 5 * time.Minute
)

// StartRealm runs a token service on the node until the end of the test.
func (n *Node) StartRealm(t testing.TB, users map[string]RealmUser, public ...string) *Realm {
	t.Helper()
	r := &Realm{key: newKey(t), users: map[string]RealmUser{pusher: {Password: rand.Text(), Push: true}}, public: public}
	for name, u := range users {
		r.users[name] = u
	}
	template := certificate("e2e realm")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	var text string
	r.cert, text = sign(t, template, template, &r.key.PublicKey, r.key)
	r.bundle = n.Write(t, text, "realm", "bundle.pem")
	l, err := net.Listen("tcp", net.JoinHostPort(n.Addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Listener.Close()
	r.server.Listener = l
	r.server.Start()
	t.Cleanup(r.server.Close)
	return r
}

// Access lets those into a registry who have a token of the realm in the name
// of issuer.
func (r *Realm) Access(issuer string) *Access {
	return &Access{
		Config: fmt.Sprintf("auth:\n  token:\n    realm: %s/token\n    service: %s\n    issuer: %s\n    rootcertbundle: %s\n",
			r.server.URL, realmService, issuer, r.bundle),
		Push: func(repository string) string {
			token, _ := r.Token(pusher, r.users[pusher].Password, "repository:"+repository+":pull,push")
			return "Bearer " + token
		},
	}
}

// realmIssuer is in whose name tokens are given.
const realmIssuer = "e2e-realm"

// Remove takes a user away. Tokens that were given stay good at the registry.
func (r *Realm) Remove(user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.users, user)
}

// Requests returns who asked for tokens, pushes aside.
func (r *Realm) Requests() (list []RealmRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if q.User != pusher {
			list = append(list, q)
		}
	}
	return list
}

// Issued returns all tokens that were given.
func (r *Realm) Issued() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.issued)
}

func (r *Realm) serve(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	q := RealmRequest{Scope: strings.Join(req.Form["scope"], " ")}
	q.User, q.Password, _ = req.BasicAuth()
	if req.Method == http.MethodPost {
		q.User, q.Password = req.PostForm.Get("username"), req.PostForm.Get("password")
	}
	token, ok := r.Token(q.User, q.Password, q.Scope)
	q.Given = ok
	r.mu.Lock()
	r.requests = append(r.requests, q)
	r.mu.Unlock()
	if !ok {
		http.Error(w, "wrong user name or password", http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds()),
	})
}

type realmAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// Token returns a token for what the user may do of a scope; the user "" is
// anonymous. It reports false if the password is wrong.
func (r *Realm) Token(user, password, scope string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.users[user]
	if user != "" && (!known || u.Password != password) {
		return "", false
	}
	access := []realmAccess{}
	for one := range strings.FieldsSeq(scope) {
		part := strings.Split(one, ":")
		if len(part) != 3 || part[0] != "repository" {
			continue
		}
		switch {
		case u.Push:
			access = append(access, realmAccess{part[0], part[1], strings.Split(part[2], ",")})
		case slices.Contains(u.Pull, part[1]), slices.Contains(r.public, part[1]):
			access = append(access, realmAccess{part[0], part[1], []string{"pull"}})
		}
	}
	now := time.Now()
	token := r.sign(map[string]any{
		"iss": realmIssuer, "sub": user, "aud": realmService, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(tokenLife).Unix(), "access": access,
	})
	r.issued = append(r.issued, token)
	return token, true
}

// sign makes a JWT by ES256 (RFC 7518, 3.4) with the certificate in its header.
func (r *Realm) sign(claims map[string]any) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // only of our own types
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]any{
		"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(r.cert.Raw)},
	}) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, r.key, sum[:])
	if err != nil {
		panic(err) // only without entropy
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}
