package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/registry"
)

const (
	// maxTokenBody bounds the answer of a token service, in bytes: twice a
	// token of the size that header limits allow, with room to spare.
	maxTokenBody = 128 << 10
	// defaultTokenLife holds where expires_in is missing (distribution
	// specification, token authentication).
	defaultTokenLife = time.Minute
	maxTokenLife     = 12 * time.Hour // the longest known, that of ECR
	clientID         = "shoal"
)

// refused is the answer of a token service that gave no token.
type refused struct {
	reg *registry.Error
}

func (r *refused) Error() string { return "token service: " + r.reg.Error() }

// fetch gets a token: with a secret by POST, and by GET where that is not
// taken. The secret has been cleared for this realm; endpoint.send checks it
// again on every hop.
func (a *authenticator) fetch(ctx context.Context, realm url.URL, c challenge, cred Credential) (token, error) {
	secret := cred.RefreshToken != "" || cred.Password != ""
	if secret && !a.noPost.Contains(c.realm) {
		t, err := a.post(ctx, realm, c, cred)
		status := statusOf(err)
		if status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
			a.noPost.Add(c.realm, struct{}{})
		}
		switch status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed:
			if cred.Password == "" {
				return token{}, err
			}
		default: // a token, or an error that asking otherwise does not cure
			return t, err
		}
	}
	return a.get(ctx, realm, c, cred)
}

func statusOf(err error) int {
	var r *refused
	if errors.As(err, &r) {
		return r.reg.Status
	}
	return 0
}

// post asks as OAuth2 does. It is not repeated: a second one could count as
// a second failed login.
func (a *authenticator) post(ctx context.Context, realm url.URL, c challenge, cred Credential) (token, error) {
	form := url.Values{"service": {c.service}, "client_id": {clientID}}
	if c.scope != "" {
		form.Set("scope", c.scope)
	}
	if cred.RefreshToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cred.RefreshToken)
	} else {
		form.Set("grant_type", "password")
		form.Set("username", cred.Username)
		form.Set("password", cred.Password)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return token{}, clean(err)
	}
	// Without GetBody the transport cannot send the secret a second time.
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.request(req, cred)
}

// get asks as the distribution specification does, with Basic where there is
// a password.
func (a *authenticator) get(ctx context.Context, realm url.URL, c challenge, cred Credential) (token, error) {
	query := realm.Query()
	if c.service != "" {
		query.Set("service", c.service)
	}
	for _, s := range strings.Fields(c.scope) {
		query.Add("scope", s)
	}
	realm.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return token{}, clean(err)
	}
	if cred.Password != "" {
		req.Header.Set("Authorization", basicAuth(cred))
	}
	return a.request(req, cred)
}

func (a *authenticator) request(req *http.Request, cred Credential) (token, error) {
	resp, _, err := a.e.follow(req, forToken)
	if err != nil {
		return token{}, fmt.Errorf("token service %s: %w", req.URL.Host, clean(err))
	}
	defer drain(resp)
	b, err := readAll(resp.Body, maxTokenBody)
	if resp.StatusCode != http.StatusOK {
		reg := registry.ParseError(resp.StatusCode, b, registry.CodeNameUnknown)
		reg.Message = fmt.Sprintf("token service %s: %s", req.URL.Host, scrub(reg.Message, cred.secrets()...))
		reg.RetryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
		return token{}, &refused{reg}
	}
	if errors.Is(err, errTooLong) {
		return token{}, fmt.Errorf("%w: token service %s: %w", ErrBadAnswer, req.URL.Host, err)
	}
	if err != nil {
		return token{}, fmt.Errorf("token service %s: %w", req.URL.Host, err)
	}
	t, err := parseToken(b)
	if err != nil {
		return token{}, fmt.Errorf("%w: token service %s: %w", ErrBadAnswer, req.URL.Host, err)
	}
	return t, nil
}

func (c Credential) secrets() []string {
	return []string{c.Password, c.RefreshToken, c.AccessToken, strings.TrimPrefix(basicAuth(c), "Basic ")}
}

// parseToken reads the answer of a token service. The errors do not repeat
// it.
func parseToken(b []byte) (token, error) {
	var doc struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"` // some send a string
	}
	if json.Unmarshal(b, &doc) != nil {
		return token{}, errors.New("the answer is not a JSON object with a token")
	}
	t := token{value: doc.Token}
	if t.value == "" {
		t.value = doc.AccessToken
	}
	if t.value == "" || strings.Trim(t.value, visible) != "" {
		return token{}, errors.New("the answer holds no usable token")
	}
	life := defaultTokenLife
	if s, err := strconv.ParseFloat(strings.Trim(string(doc.ExpiresIn), `"`), 64); err == nil && s >= 1 {
		life = time.Duration(min(s, maxTokenLife.Seconds()) * float64(time.Second))
	}
	// The clock here is monotonic, and the life was counted from when the
	// service answered: renew a little early.
	t.until = time.Now().Add(life - min(life/10, 10*time.Second))
	return t, nil
}

// visible are the characters that may be in a header without harm.
var visible = func() string {
	var b strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}()
