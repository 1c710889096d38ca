package registrytest

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/shoalproject/shoal/registry"
)

// Service is the service that challenges name.
const Service = "registrytest"

// Auth says who may read what. Bearer tokens are used unless Basic is set.
type Auth struct {
	// Basic wants the password with every request, and gives no tokens.
	Basic bool
	// Users are passwords by user name.
	Users map[string]string
	// RefreshTokens are user names by OAuth2 refresh token.
	RefreshTokens map[string]string
	// Allow decides who may pull from a repository; the user "" is anonymous.
	// Default: every user who is known, and nobody else.
	Allow func(user, repo string) bool
	// Life is how long a token is good, default 5 min. It is announced as
	// expires_in, in whole seconds, unless HideLife is set.
	Life     time.Duration
	HideLife bool
	// NoPost and NoGet answer 405 to that way of asking for a token.
	NoPost, NoGet bool
	// Realm is named in challenges instead of the origin's own.
	Realm string
}

// issuer holds the tokens that are good.
type issuer struct {
	mu     sync.Mutex // guards all below
	tokens map[string]grant
	issued int
	key    []byte // signs URLs of the store
}

type grant struct {
	user  string
	repos map[string]bool
	until time.Time
}

func newIssuer() *issuer {
	return &issuer{tokens: map[string]grant{}, key: []byte(rand.Text())}
}

// RevokeTokens makes every token that was given out invalid.
func (o *Origin) RevokeTokens() {
	o.issuer.mu.Lock()
	defer o.issuer.mu.Unlock()
	clear(o.issuer.tokens)
}

// RevokeUser makes the tokens of a user invalid; "" is anonymous.
func (o *Origin) RevokeUser(user string) {
	o.issuer.mu.Lock()
	defer o.issuer.mu.Unlock()
	for t, g := range o.issuer.tokens {
		if g.user == user {
			delete(o.issuer.tokens, t)
		}
	}
}

// TokensIssued returns how many tokens were given out.
func (o *Origin) TokensIssued() int {
	o.issuer.mu.Lock()
	defer o.issuer.mu.Unlock()
	return o.issuer.issued
}

// IssueToken returns a token that reads the given repositories as user.
func (o *Origin) IssueToken(user string, repos ...string) string {
	life := 5 * time.Minute
	if o.cfg.auth != nil && o.cfg.auth.Life > 0 {
		life = o.cfg.auth.Life
	}
	g := grant{user: user, repos: map[string]bool{}, until: time.Now().Add(life)}
	for _, r := range repos {
		g.repos[r] = true
	}
	token := rand.Text()
	o.issuer.mu.Lock()
	defer o.issuer.mu.Unlock()
	o.issuer.tokens[token] = g
	o.issuer.issued++
	return token
}

func (a *Auth) allows(user, repo string) bool {
	if a.Allow != nil {
		return a.Allow(user, repo)
	}
	return user != ""
}

func (a *Auth) checkPassword(user, password string) bool {
	want, ok := a.Users[user]
	return ok && subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
}

// authorize reports whether the request may go on; if not it has been
// answered.
func (o *Origin) authorize(w http.ResponseWriter, r *http.Request, p registry.Path) bool {
	a := o.cfg.auth
	switch {
	case a == nil:
		return true
	case a.Basic:
		return o.authorizeBasic(w, r, p)
	}
	e := &registry.Error{Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized, Message: "authentication required"}
	realm := a.Realm
	if realm == "" {
		realm = o.scheme() + "://" + o.TokenHost() + tokenPath
	}
	c := fmt.Sprintf(`Bearer realm=%q,service=%q`, realm, Service)
	if p.Kind != registry.Ping {
		c += fmt.Sprintf(`,scope="repository:%s:pull"`, p.Name)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if ok {
		o.issuer.mu.Lock()
		g, known := o.issuer.tokens[token]
		o.issuer.mu.Unlock()
		switch {
		case !known || time.Now().After(g.until):
			c += `,error="invalid_token"`
		case p.Kind == registry.Ping || g.repos[p.Name]:
			return true
		default:
			c += `,error="insufficient_scope"`
		}
	}
	e.Challenges = []string{c}
	refuse(w, e)
	return false
}

func (o *Origin) authorizeBasic(w http.ResponseWriter, r *http.Request, p registry.Path) bool {
	user, password, given := r.BasicAuth()
	switch {
	case given && !o.cfg.auth.checkPassword(user, password), !given && !o.cfg.auth.allows("", p.Name):
		refuse(w, &registry.Error{
			Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized, Message: "authentication required",
			Challenges: []string{fmt.Sprintf(`Basic realm=%q`, Service)},
		})
		return false
	case p.Kind != registry.Ping && !o.cfg.auth.allows(user, p.Name):
		refuse(w, &registry.Error{Status: http.StatusForbidden, Code: registry.CodeDenied, Message: "denied"})
		return false
	}
	return true
}

func (o *Origin) tokenHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		_ = r.ParseForm() // what does not parse is missing below
		o.handle(w, r, subject{kind: Token}, o.serveToken)
	})
}

func (o *Origin) serveToken(w http.ResponseWriter, r *http.Request) {
	a := o.cfg.auth
	if a == nil || r.URL.Path != tokenPath {
		http.NotFound(w, r)
		return
	}
	if r.Method == http.MethodPost && a.NoPost || r.Method == http.MethodGet && a.NoGet || r.Method != http.MethodPost && r.Method != http.MethodGet {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	user, ok := a.identify(r)
	if !ok {
		refuse(w, &registry.Error{Status: http.StatusUnauthorized, Code: registry.CodeUnauthorized, Message: "incorrect username or password"})
		return
	}
	var repos []string
	for _, list := range r.Form["scope"] {
		for scope := range strings.FieldsSeq(list) {
			parts := strings.Split(scope, ":")
			if len(parts) == 3 && parts[0] == "repository" && a.allows(user, parts[1]) {
				repos = append(repos, parts[1])
			}
		}
	}
	doc := map[string]any{}
	token := o.IssueToken(user, repos...)
	doc["access_token"] = token
	if r.Method == http.MethodGet {
		doc["token"] = token
	}
	if !a.HideLife {
		life := a.Life
		if life <= 0 {
			life = 5 * time.Minute
		}
		doc["expires_in"] = int(life.Seconds())
	}
	writeDocument(w, r, "application/json", mustJSON(doc))
}

// identify returns who asks for a token; "" is anonymous.
func (a *Auth) identify(r *http.Request) (user string, ok bool) {
	if r.Method == http.MethodPost {
		switch r.PostForm.Get("grant_type") {
		case "password":
			user = r.PostForm.Get("username")
			return user, a.checkPassword(user, r.PostForm.Get("password"))
		case "refresh_token":
			user, ok = a.RefreshTokens[r.PostForm.Get("refresh_token")]
			return user, ok
		}
		return "", false
	}
	user, password, given := r.BasicAuth()
	if !given {
		return "", true
	}
	return user, a.checkPassword(user, password)
}
