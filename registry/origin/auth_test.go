package origin

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	rt "github.com/shoalproject/shoal/registry/registrytest"
)

func TestTokens(t *testing.T) {
	refresh := aliceOnly()
	refresh.RefreshTokens = map[string]string{"identity-of-alice": user}
	noPost, noGet := aliceOnly(), aliceOnly()
	noPost.NoPost, noGet.NoGet = true, true
	basic := aliceOnly()
	basic.Basic = true
	public := rt.Auth{Allow: func(string, string) bool { return true }, HideLife: true}
	pw := Credential{Username: user, Password: password}
	for name, c := range map[string]struct {
		auth           rt.Auth
		cred           Credential
		posts, gets    int // token requests for two repositories
		challenged     int // API requests beyond the three that are needed
		tls            bool
		wantTokenCount int
	}{
		"password by POST":       {auth: aliceOnly(), cred: pw, posts: 2, challenged: 1, wantTokenCount: 2},
		"over TLS":               {auth: aliceOnly(), cred: pw, posts: 2, challenged: 1, wantTokenCount: 2, tls: true},
		"falls back to GET once": {auth: noPost, cred: pw, posts: 1, gets: 2, challenged: 1, wantTokenCount: 2},
		"POST only":              {auth: noGet, cred: pw, posts: 2, challenged: 1, wantTokenCount: 2},
		"refresh token":          {auth: refresh, cred: Credential{RefreshToken: "identity-of-alice"}, posts: 2, challenged: 1, wantTokenCount: 2},
		"anonymous":              {auth: public, gets: 2, challenged: 1, wantTokenCount: 2},
		"basic":                  {auth: basic, cred: pw, challenged: 1},
	} {
		t.Run(name, func(t *testing.T) {
			opts := []rt.Option{rt.WithAuth(c.auth)}
			if c.tls {
				opts = append(opts, rt.WithTLS())
			}
			o := rt.New(t, opts...)
			img := o.AddImage(repo, "latest", []byte("layer"))
			other := target
			other.Name = "library/y"
			o.AddImage(other.Name, "latest")
			cl := newClient(t, o, as(c.cred))
			if _, err := cl.Manifest(t.Context(), target, "latest", nil); err != nil {
				t.Fatal(err)
			}
			if _, _, err := readBlob(t, cl, img.Layers[0].Digest, 0, -1); err != nil {
				t.Fatal(err)
			}
			if _, err := cl.HeadManifest(t.Context(), other, "latest", nil); err != nil {
				t.Fatal(err)
			}
			if p, g := o.Count(rt.Token, "POST"), o.Count(rt.Token, "GET"); p != c.posts || g != c.gets {
				t.Errorf("%d POST and %d GET for tokens, want %d and %d", p, g, c.posts, c.gets)
			}
			if n := o.Count(rt.Manifest) + o.Count(rt.Blob); n != 3+c.challenged {
				t.Errorf("%d requests, want %d: the second repository must not cost a challenge", n, 3+c.challenged)
			}
			if n := o.TokensIssued(); n != c.wantTokenCount {
				t.Errorf("%d tokens", n)
			}
		})
	}
}

func TestAccessTokenIsSentAsItIs(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	token := o.IssueToken(user, repo)
	if _, _, err := readBlob(t, newClient(t, o, as(Credential{AccessToken: token})), d, 0, -1); err != nil {
		t.Fatal(err)
	}
	if n := o.Count(rt.Token); n != 0 {
		t.Errorf("%d token requests", n)
	}
}

// Of several credentials the first that is not refused is found, and found
// again at once.
func TestSeveralCredentials(t *testing.T) {
	good := Credential{Username: user, Password: password}
	wrong := Credential{Username: user, Password: "wrong-password"}
	other := Credential{Username: "bob", Password: password + "-of-bob"}
	for name, c := range map[string]struct {
		auth  rt.Auth
		creds []Credential
	}{
		"first refused by the token service":  {rt.Auth{}, []Credential{wrong, good}},
		"first has no access":                 {rt.Auth{}, []Credential{other, good}},
		"first refused by the registry":       {rt.Auth{Basic: true}, []Credential{wrong, good}},
		"first is forbidden by the registry":  {rt.Auth{Basic: true}, []Credential{other, good}},
		"anonymous would do, none is refused": {rt.Auth{}, []Credential{good, wrong}},
	} {
		t.Run(name, func(t *testing.T) {
			c.auth.Users = map[string]string{user: password, "bob": other.Password}
			c.auth.Allow = func(who, _ string) bool { return who == user }
			o := rt.New(t, rt.WithAuth(c.auth))
			d := o.AddBlob(repo, []byte("data"))
			client := newClient(t, o, as(c.creds...))
			if _, err := client.HeadBlob(t.Context(), target, d); err != nil {
				t.Fatal(err)
			}
			o.ResetCounters()
			if _, err := client.HeadBlob(t.Context(), target, d); err != nil || len(o.Requests()) != 1 {
				t.Errorf("the second time: %v, %d requests", err, len(o.Requests()))
			}
			o.ResetCounters()
			// What is not there is asked for once by each credential at most.
			if _, err := client.HeadBlob(t.Context(), target, digest.FromString("absent")); err == nil || IsUnavailable(err) {
				t.Errorf("what is not there: %v", err)
			}
			if n := o.Count(rt.Blob); n > 2 {
				t.Errorf("%d requests for what is not there", n)
			}
		})
	}
}

// One credential is not tried twice on what is not there.
func TestNotFoundCostsOneRequest(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	client := newClient(t, o, alice)
	if _, err := client.HeadBlob(t.Context(), target, d); err != nil {
		t.Fatal(err)
	}
	o.ResetCounters()
	_, err := client.HeadBlob(t.Context(), target, digest.FromString("absent"))
	wantStatus(t, err, 404)
	if n := len(o.Requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestOneTokenRequestForMany(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	release := make(chan struct{})
	o.Inject(rt.Order{Kind: rt.Token}, rt.Hang(release))
	c := newClient(t, o, alice)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, _, err := readBlob(t, c, d, 0, -1); err != nil {
				t.Error(err)
			}
		})
	}
	// One caller goes away; the token is for the others all the same.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.HeadBlob(ctx, target, d); !errors.Is(err, context.Canceled) || IsUnavailable(err) {
		t.Errorf("cancelled: %v", err)
	}
	waitUntil(t, func() bool { return o.Count(rt.Blob) >= 20 && o.Count(rt.Token) >= 1 })
	close(release)
	wg.Wait()
	if n := o.TokensIssued(); n != 1 {
		t.Errorf("%d tokens for 20 callers", n)
	}
}

// TestTokenExpiresInTheMiddle: renewed, resumed by range, nothing twice.
func TestTokenExpiresInTheMiddle(t *testing.T) {
	data := randomBytes(t, 4<<20)
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, data)
	o.Inject(rt.Order{Kind: rt.Blob, Skip: 1, Times: 1}, rt.Chain(rt.After(1<<20, o.RevokeTokens), rt.Cut(1<<20)))
	b, _, err := readBlob(t, newClient(t, o, alice), d, 0, -1)
	if err != nil || !bytes.Equal(b, data) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if n := o.TokensIssued(); n != 2 {
		t.Errorf("%d tokens", n)
	}
	if extra := o.Sent(d) - int64(len(data)); extra != 0 {
		t.Errorf("%d bytes came twice", extra)
	}
}

func TestTokenLife(t *testing.T) {
	for answer, want := range map[string]time.Duration{
		`{"token":"t"}`:                           54 * time.Second, // 60 s where nothing is said
		`{"token":"t","expires_in":300}`:          290 * time.Second,
		`{"access_token":"t","expires_in":"300"}`: 290 * time.Second,
		`{"token":"t","access_token":"u"}`:        54 * time.Second,
		`{"token":"t","expires_in":-5}`:           54 * time.Second,
		`{"token":"t","expires_in":1e300}`:        12*time.Hour - 10*time.Second,
		`{"token":"t","expires_in":{"a":[]}}`:     54 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			got, err := parseToken([]byte(answer))
			if err != nil || got.value != "t" || time.Until(got.until) != want {
				t.Errorf("%s: %v for %v, want %v", answer, err, time.Until(got.until), want)
			}
			a := &authenticator{tokens: newLRU[tokenKey, token](1)}
			a.tokens.Add(tokenKey{}, got)
			time.Sleep(want) // the bubble's clock
			if _, ok := a.cached(tokenKey{}, ""); !ok {
				t.Errorf("%s: expired early", answer)
			}
			time.Sleep(time.Nanosecond)
			if _, ok := a.cached(tokenKey{}, ""); ok {
				t.Errorf("%s: still used", answer)
			}
		})
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"token":""}`, `{"token":"a b"}`, "{\"token\":\"a\\r\\nX: y\"}", `{"token":5}`} {
		if _, err := parseToken([]byte(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func TestTokenRefused(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()))
	d := o.AddBlob(repo, []byte("data"))
	for name, cred := range map[string]Credential{
		"wrong password": {Username: user, Password: "wrong-password"}, "anonymous": {},
		"wrong refresh token": {RefreshToken: "wrong-refresh"},
	} {
		_, err := newClient(t, o, as(cred)).HeadBlob(t.Context(), target, d)
		e := wantStatus(t, err, http.StatusUnauthorized)
		if len(e.Challenges) != 1 || !strings.HasPrefix(e.Challenges[0], "Bearer realm=") || IsUnavailable(err) {
			t.Errorf("%s: challenges %q", name, e.Challenges)
		}
	}
}

// TestTokenServiceMisbehaves: whatever it answers, there is an end and an
// error, and what it was sent is not repeated in it.
func TestTokenServiceMisbehaves(t *testing.T) {
	for name, c := range map[string]struct {
		fault  rt.Fault
		status int
	}{
		"endless":        {rt.Endless("application/json"), 502},
		"HTML":           {rt.HTML(), 502},
		"no token":       {rt.Answer(200, `{}`), 502},
		"500":            {rt.Status(500), 500},
		"400":            {rt.Status(400), 502},
		"echo":           {rt.Answer(403, `{"errors":[{"code":"DENIED","message":"not `+password+`"}]}`), 403},
		"429":            {rt.Status(429, "Retry-After", "60"), 503},
		"reset":          {rt.Reset(), 503},
		"redirect loop":  {rt.RedirectLoop(), 502},
		"cut":            {rt.Chain(rt.Cut(5), rt.Answer(200, `{"token":"x"}`)), 503},
		"header in body": {rt.Answer(200, `{"token":"a\r\nX-Evil: 1"}`), 502},
	} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t, rt.WithAuth(aliceOnly()))
			d := o.AddBlob(repo, []byte("data"))
			o.Inject(rt.Order{Kind: rt.Token}, c.fault)
			_, err := newClient(t, o, alice).HeadBlob(t.Context(), target, d)
			wantStatus(t, err, c.status)
		})
	}
}

// TestRelay: a caller's own header goes to the origin, and a 401 comes back
// as it was.
func TestRelay(t *testing.T) {
	o := rt.New(t, rt.WithAuth(aliceOnly()), rt.WithStore())
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o, alice, allowing(o.StoreHost()))
	mine := target
	mine.Authorization = "Bearer wrong-token-of-the-caller"
	_, err := c.HeadBlob(t.Context(), mine, d)
	e := wantStatus(t, err, http.StatusUnauthorized)
	want := `Bearer realm="http://` + o.Host() + `/token",service="registrytest",scope="repository:library/x:pull",error="invalid_token"`
	if len(e.Challenges) != 1 || e.Challenges[0] != want {
		t.Errorf("challenges %q, want %q", e.Challenges, want)
	}
	anonymous := target
	anonymous.Anonymous = true
	_, err = c.HeadBlob(t.Context(), anonymous, d)
	wantStatus(t, err, http.StatusUnauthorized)
	if n := o.Count(rt.Token); n != 0 {
		t.Errorf("%d token requests for callers who brought their own", n)
	}
	mine.Authorization = "Bearer " + o.IssueToken("bob", repo)
	if s, err := c.Blob(t.Context(), mine, d, 0, -1); err != nil {
		t.Fatal(err)
	} else {
		s.Close()
	}
	for _, r := range o.Requests(rt.Store) {
		if r.Authorization != "" {
			t.Error("the store saw the caller's token")
		}
	}
	// The caller's token opens nothing for others, nor theirs for him.
	o.RevokeUser("bob")
	if _, err := c.HeadBlob(t.Context(), target, d); err != nil {
		t.Errorf("the daemon's own credentials: %v", err)
	}
	_, err = c.HeadBlob(t.Context(), mine, d)
	wantStatus(t, err, http.StatusUnauthorized)
}

func TestEchoedCredentialIsNotRepeated(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o)
	o.Inject(rt.Order{}, rt.Answer(403, `{"errors":[{"code":"DENIED","message":"token `+password+` is not good"}]}`))
	for _, auth := range []string{"Bearer " + password, password, basicAuth(Credential{Username: user, Password: password})} {
		mine := target
		mine.Authorization = auth
		_, err := c.Blob(t.Context(), mine, d, 0, -1)
		if e := wantStatus(t, err, 403); !strings.Contains(e.Message, "[redacted]") {
			t.Errorf("message %q", e.Message)
		}
	}
}

// TestMalformedAnswerIsNotRepeated: net/http quotes what it cannot parse.
func TestMalformedAnswerIsNotRepeated(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	o.Inject(rt.Order{}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Write([]byte(r.Header.Get("Authorization") + "\r\n\r\n")) // the client may be gone
		})
	})
	mine := target
	mine.Authorization = "Bearer " + password
	_, err := newClient(t, o).Blob(t.Context(), mine, d, 0, -1)
	e := wantStatus(t, err, 503)
	for _, err := range []error{err, errors.Unwrap(err), e} {
		if err != nil {
			checkSecrets(t, err.Error())
		}
	}
}

// TestDrippingErrorPage: a refusal is told although its page never ends.
func TestDrippingErrorPage(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	release := make(chan struct{})
	defer close(release)
	o.Inject(rt.Order{}, rt.Chain(rt.HangAfter(1, release), rt.Answer(404, strings.Repeat("x", 100))))
	c := newClient(t, o, func(c *Config) { c.StallTimeout = 50 * time.Millisecond })
	_, err := c.Blob(t.Context(), target, d, 0, -1)
	wantStatus(t, err, 404)
}

func TestChallenges(t *testing.T) {
	for _, c := range []struct {
		headers []string
		want    challenge
		ok      bool
	}{
		{[]string{`Bearer realm="https://a/t",service="s",scope="repository:x:pull"`}, challenge{realm: "https://a/t", service: "s", scope: "repository:x:pull"}, true},
		{[]string{`bearer  Realm = "https://a/t" , service=s`}, challenge{realm: "https://a/t", service: "s"}, true},
		{[]string{`Basic realm="x"`}, challenge{basic: true}, true},
		{[]string{`Basic realm="x"`, `Bearer realm="https://a"`}, challenge{realm: "https://a"}, true},
		{[]string{`Basic realm="x, y=\"z\"", Bearer realm="https://a"`}, challenge{realm: "https://a"}, true},
		{[]string{`Negotiate, Basic`}, challenge{basic: true}, true},
		{[]string{`Bearer realm="https://first",realm="https://second"`}, challenge{realm: "https://first"}, true},
		{[]string{`Bearer realm="unterminated`}, challenge{}, false},
		{[]string{`Bearer`}, challenge{}, false},
		{[]string{``, `,,,`, `=`, `"`, `\`}, challenge{}, false},
	} {
		got, ok := pickChallenge(c.headers)
		if got != c.want || ok != c.ok {
			t.Errorf("%q: %+v %v", c.headers, got, ok)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Add(`Basic realm="x, \"y", Bearer realm=a`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges(s) {
			if c.scheme == "" {
				t.Errorf("%q: a challenge without scheme", s)
			}
		}
	})
}

// waitUntil polls for what other goroutines do.
func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("the condition did not come true")
		}
	}
}
