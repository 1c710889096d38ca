// Package certificate keeps a node's certificate valid: it asks a scheduler's
// issuer for one, with the token of the node's pod, and for the next when half
// of its life is over. The key is made here and stays in memory.
//
// It knows HTTP and when to ask. It must not know who issues by what right, nor
// what certificates are for.
package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/shoalproject/shoal/mtls"
)

const (
	// timeout bounds one request.
	timeout = 15 * time.Second
	// After a failure the next request follows minBackoff later, doubled each
	// time up to maxBackoff, of which a random half is left out.
	minBackoff = time.Second
	maxBackoff = time.Minute
	// complainEvery is how often a failure that goes on is logged.
	complainEvery = 10 * time.Minute
	// maxAnswer bounds the issuer's answer.
	maxAnswer = 64 << 10
	// path is where issuers are asked.
	path = "/v1/certificate"
)

// Keeper asks for certificates.
type Keeper struct {
	// Issuer is where to ask, https://HOST:PORT.
	Issuer string
	// CA holds the PEM certificates by which the issuer proves its name.
	CA []byte
	// TokenFile holds the token that tells the issuer which node this is. It
	// is read for each request.
	TokenFile string
	// Identity takes the certificates.
	Identity *mtls.Identity
	Log      *slog.Logger
}

// CheckIssuer returns what is wrong with the URL of an issuer, or nil.
func CheckIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("%q: want https://HOST:PORT", issuer)
	}
	return nil
}

// Run keeps the certificate valid until ctx ends. While no certificate can be
// had it says so and tries again.
func (k *Keeper) Run(ctx context.Context) {
	var complained time.Time
	var said string
	for failures := 0; ; {
		err := k.renew(ctx)
		wait := half(time.Until(k.Identity.Expires()))
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures, said = 0, ""
			k.Log.Info("certificate taken", "issuer", k.Issuer, "expires", k.Identity.Expires(), "renewal", wait.Round(time.Second))
		default:
			wait = half(min(minBackoff<<min(failures, 16), maxBackoff))
			failures++
			if err.Error() != said || time.Since(complained) > complainEvery {
				said, complained = err.Error(), time.Now()
				have := "no certificate yet: the node is on its own"
				if expires := k.Identity.Expires(); !expires.IsZero() {
					have = "the one in use expires on " + expires.UTC().Format(time.RFC3339)
				}
				k.Log.Warn("no certificate could be had: trying again", "issuer", k.Issuer, "err", err, "have", have)
			}
		}
		t := time.NewTimer(max(wait, minBackoff/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// half returns about half of d, so that nodes that began together do not ask
// together: from two fifths to three fifths.
func half(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return 2*d/5 + rand.N(d/5+1)
}

// renew gets one certificate.
func (k *Keeper) renew(ctx context.Context) error {
	token, err := os.ReadFile(k.TokenFile)
	if err != nil {
		return fmt.Errorf("reading the token: %w", err)
	}
	request, key, err := mtls.Request()
	if err != nil {
		return err
	}
	cert, err := k.ask(ctx, strings.TrimSpace(string(token)), request)
	if err != nil {
		return err
	}
	if err := k.Identity.Take(cert, key); err != nil {
		return fmt.Errorf("what %s issued is of no use: %w", k.Issuer, err)
	}
	return nil
}

// ask sends one request and returns the certificate.
func (k *Keeper) ask(ctx context.Context, token string, request []byte) ([]byte, error) {
	cas := x509.NewCertPool()
	if !cas.AppendCertsFromPEM(k.CA) {
		return nil, errors.New("the CA is no PEM certificate")
	}
	// One connection for one request: the next one is hours away.
	client := &http.Client{
		Timeout: timeout,
		// A proxy in the environment is for the way to origins.
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cas, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(k.Issuer, "/")+path, bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/pkcs10")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking for a certificate: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the issuer answers %d: %.300q", resp.StatusCode, bytes.TrimSpace(body))
	}
	return body, nil
}
