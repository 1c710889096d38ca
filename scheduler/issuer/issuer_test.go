package issuer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/mtls/mtlstest"
	"github.com/shoalproject/shoal/scheduler/issuer"
	"github.com/shoalproject/shoal/scheduler/issuer/issuertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is an issuer before a stand-in for the API server.
type bed struct {
	*issuer.Issuer
	api *issuertest.API
	ca  *mtls.CA
	log *bytes.Buffer
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{api: issuertest.New(t), ca: readCA(t, mtlstest.NewAuthority(t)), log: new(bytes.Buffer)}
	k, err := issuer.NewKubernetes(net.JoinHostPort(b.api.Host, b.api.Port), b.api.Dir, "shoal-issuer", []string{"shoal:shoal", "shoal:other"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	b.Issuer = newIssuer(t, issuer.Config{
		CA: b.ca, Reviewer: k, Valid: 24 * time.Hour, Reserved: []string{"scheduler.example.com"},
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
	})
	return b
}

func newIssuer(t *testing.T, cfg issuer.Config) *issuer.Issuer {
	t.Helper()
	i, err := issuer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func readCA(t *testing.T, a *mtlstest.Authority) *mtls.CA {
	t.Helper()
	ca, err := mtls.ReadCA(read(t, a.File), read(t, a.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask sends a request from an address.
func (b *bed) ask(from, token string, body []byte) (int, []byte) {
	r := httptest.NewRequest(http.MethodPost, issuer.Path, bytes.NewReader(body))
	r.RemoteAddr = from
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	b.Handler().ServeHTTP(w, r)
	return w.Code, w.Body.Bytes()
}

// request returns a certificate request by a key, which asks for what it can.
func request(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "scheduler.example.com", Organization: []string{"system:masters"}},
		DNSNames:    []string{"scheduler.example.com", "node-2", "*.example.com"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		// basicConstraints: CA.
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The name in a certificate is that of the node whose pod has the token, and
// nothing else that a request asks for is granted.
func TestNodeGetsItsOwnNameAlone(t *testing.T) {
	b := newBed(t)
	b.api.Grant("one", issuertest.Node("node-1"))
	key := newKey(t)
	code, body := b.ask("10.0.0.1:1", "one", request(t, key))
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	block, _ := pem.Decode(body)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cert.DNSNames, []string{"node-1"}) || len(cert.IPAddresses)+len(cert.URIs)+len(cert.EmailAddresses) > 0 || cert.Subject.String() != "CN=node-1" {
		t.Errorf("it is for %q, %v, %s", cert.DNSNames, cert.IPAddresses, cert.Subject)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA %v, usage %v", cert.IsCA, cert.KeyUsage)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		t.Error("it is for another key")
	}
	if life := time.Until(cert.NotAfter); life > 24*time.Hour {
		t.Errorf("it is valid for %v", life)
	}
	if got := b.Stats(); got != (issuer.Stats{Issued: 1}) {
		t.Errorf("%+v", got)
	}
}

// Whoever is not a daemon's pod gets nothing, and is told why.
func TestStrangersGetNothing(t *testing.T) {
	b := newBed(t)
	grant := func(name string, change func(*issuertest.Token)) {
		token := issuertest.Node("node-1")
		change(&token)
		b.api.Grant(name, token)
	}
	grant("good", func(*issuertest.Token) {})
	grant("expired", func(t *issuertest.Token) { t.Expires = time.Now().Add(-time.Second) })
	grant("audience", func(t *issuertest.Token) { t.Audience = "https://kubernetes.default.svc" })
	grant("namespace", func(t *issuertest.Token) { t.User = "system:serviceaccount:default:shoal" })
	grant("account", func(t *issuertest.Token) { t.User = "system:serviceaccount:shoal:shoal-scheduler" })
	grant("user", func(t *issuertest.Token) { t.User = "shoal:shoal" })
	grant("no pod", func(t *issuertest.Token) { t.Pod = "" })
	grant("no node", func(t *issuertest.Token) { t.Node = "" })
	grant("odd node", func(t *issuertest.Token) { t.Node = "*.example.com" })
	grant("scheduler", func(t *issuertest.Token) { t.Node = "scheduler.example.com" })
	good := request(t, newKey(t))
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged := pem.EncodeToMemory(block)
	for i, c := range []struct {
		token   string
		body    []byte
		code    int
		mention string
	}{
		{"", good, 401, "token is needed"},
		{"unknown", good, 401, "not good"},
		{"expired", good, 401, "expired"},
		{"audience", good, 401, "audience"},
		{"namespace", good, 403, "system:serviceaccount:default:shoal"},
		{"account", good, 403, "shoal-scheduler"},
		{"user", good, 403, "no certificate"},
		{"no pod", good, 403, "not bound to a pod"},
		{"no node", good, 403, "Kubernetes 1.30"},
		{"odd node", good, 403, "does not name its node"},
		{"scheduler", good, 403, "name of a scheduler"},
		{"good", nil, 400, "PEM"},
		{"good", []byte("hello"), 400, "PEM"},
		{"good", forged, 400, "signed by its key"},
		{"good", request(t, weak), 400, "P-256"},
		{"good", request(t, other), 400, "P-256"},
		{"good", bytes.Repeat([]byte("x"), 17<<10), 400, "too large"},
	} {
		from := net.JoinHostPort(net.IPv4(10, 0, 0, byte(i)).String(), "1")
		code, body := b.ask(from, c.token, c.body)
		if code != c.code || !strings.Contains(string(body), c.mention) || bytes.Contains(body, []byte("CERTIFICATE")) {
			t.Errorf("%q: %d %s, want %d and %q", c.token, code, body, c.code, c.mention)
		}
	}
	if got := b.Stats(); got.Issued != 0 || got.Refused != 17 {
		t.Errorf("%+v", got)
	}
	if bytes.Contains(b.log.Bytes(), []byte(issuertest.Own)) {
		t.Error("the log has a token")
	}
	// An API server that does not know audiences says so by naming none.
	b.api.Blind()
	if code, body := b.ask("10.0.1.1:1", "audience", good); code != 403 || !strings.Contains(string(body), "audience") {
		t.Errorf("%d %s", code, body)
	}
}

// While tokens cannot be reviewed, that is said, and not that the token is bad.
func TestReviewerAway(t *testing.T) {
	b := newBed(t)
	b.api.Grant("one", issuertest.Node("node-1"))
	good := request(t, newKey(t))
	for status, mention := range map[int]string{403: "system:auth-delegator", 401: "401", 500: "500", 302: "302"} {
		b.api.Fail(status)
		b.log.Reset()
		if code, body := b.ask("10.0.0.1:1", "one", good); code != 503 || !strings.Contains(b.log.String(), mention) {
			t.Errorf("API %d: %d %s; the log says %s", status, code, body, b.log)
		}
	}
	b.api.Fail(0)
	if code, body := b.ask("10.0.0.1:1", "one", good); code != 200 {
		t.Errorf("%d %s", code, body)
	}
}

// One address cannot keep the API server busy, nor one node the issuer.
func TestBounds(t *testing.T) {
	b := newBed(t)
	good := request(t, newKey(t))
	codes, start := map[int]int{}, time.Now()
	for i := range 200 {
		code, _ := b.ask(net.JoinHostPort("2001:db8::"+string(rune('a'+i%6)), "1"), "unknown", good)
		codes[code]++
	}
	if most := 21 + int(2*time.Since(start).Seconds()); codes[401] > most || codes[401]+codes[429] != 200 || b.api.Asked() != codes[401] {
		t.Errorf("one network: %v, %d reviews", codes, b.api.Asked())
	}
	b.api.Grant("one", issuertest.Node("node-1"))
	b.api.Grant("two", issuertest.Node("node-2"))
	clear(codes)
	for i := range 40 {
		code, _ := b.ask(net.JoinHostPort(net.IPv4(10, 0, 0, byte(i)).String(), "1"), "one", good)
		codes[code]++
	}
	if codes[200] != 10 || codes[429] != 30 {
		t.Errorf("one node: %v", codes)
	}
	if code, body := b.ask("10.0.9.9:1", "two", good); code != 200 {
		t.Errorf("another node: %d %s", code, body)
	}
}

// stuck never answers.
type stuck struct{}

func (stuck) Review(ctx context.Context, _ string) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

// Reviews that are under way are few, however many ask.
func TestReviewsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{ca: readCA(t, mtlstest.NewAuthority(t))}
		b.Issuer = newIssuer(t, issuer.Config{CA: b.ca, Reviewer: stuck{}, Valid: time.Hour, Log: slog.New(slog.DiscardHandler)})
		good := request(t, newKey(t))
		const asking = 30
		answers := make(chan string, asking)
		for i := range asking {
			go func() {
				code, body := b.ask(net.JoinHostPort(net.IPv4(10, 0, 0, byte(i)).String(), "1"), "x", good)
				if code != 503 {
					t.Errorf("%d %s", code, body)
				}
				answers <- string(body)
			}()
		}
		busy := 0
		for range asking {
			if strings.Contains(<-answers, "too many requests at once") {
				busy++
			}
		}
		if busy != asking-8 {
			t.Errorf("%d did not get their turn, want %d", busy, asking-8)
		}
	})
}

// Over the network it speaks TLS, lets nobody hold its connections, and stops.
func TestServe(t *testing.T) {
	b := newBed(t)
	b.api.Grant("one", issuertest.Node("node-1"))
	identity, err := mtls.Await(b.ca.PEM(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := b.ca.Issue(time.Hour, "127.0.0.1")
	if err == nil {
		err = identity.Take(cert, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Serve(ctx, lis, identity.Config(slog.New(slog.DiscardHandler))) }()
	cas := x509.NewCertPool()
	cas.AppendCertsFromPEM(b.ca.PEM())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: cas}, DisableKeepAlives: true}}
	url := "https://" + lis.Addr().String() + issuer.Path
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(request(t, newKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer one")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("%s", resp.Status)
	}
	if resp, err = client.Get(url); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %s", resp.Status)
	}
	// Silent connections: the seventeenth of one address is closed at once.
	var conns []net.Conn
	for range 17 {
		c, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	last := conns[16]
	last.SetReadDeadline(time.Now().Add(4 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many was kept: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(conns[0]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Logf("a connection was cut: %v", err)
	}
}
