package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoalproject/shoal/mtls/mtlstest"
)

func TestLoadNothing(t *testing.T) {
	if id, err := Load("", "", ""); id != nil || err != nil {
		t.Errorf("%v, %v", id, err)
	}
}

// What is wrong is said in one line that names the setting.
func TestLoadRefuses(t *testing.T) {
	ca, foreign := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "a.example")
	_, otherKey := ca.Issue(t, nil, "a.example")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		cert, key, ca string
		setting       string
		mention       string
	}{
		{"no certificate", "", key, ca.File, SettingCert, "missing"},
		{"no key", cert, "", ca.File, SettingKey, "missing"},
		{"no CA", cert, key, "", SettingCA, "missing"},
		{"certificate alone", cert, "", "", SettingKey, "all three"},
		{"certificate not there", "/nonexistent", key, ca.File, SettingCert, "/nonexistent"},
		{"key not there", cert, "/nonexistent", ca.File, SettingKey, "/nonexistent"},
		{"CA not there", cert, key, "/nonexistent", SettingCA, "/nonexistent"},
		{"certificate is text", text, key, ca.File, SettingCert, "no PEM certificate"},
		{"key is text", cert, text, ca.File, SettingKey, text},
		{"CA is text", cert, key, text, SettingCA, "no PEM certificate"},
		{"certificate and key exchanged", key, cert, ca.File, SettingCert, "no PEM certificate"},
		{"key of another", cert, otherKey, ca.File, SettingKey, "does not go with " + cert},
		{"CA of another", cert, key, foreign.File, SettingCert, "unknown authority"},
	} {
		refused(t, c.name, c.cert, c.key, c.ca, c.setting, c.mention)
	}
	for _, c := range []struct {
		name    string
		change  func(*x509.Certificate)
		names   []string
		mention string
	}{
		{"expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, []string{"a"}, "has expired, on 20"},
		{"not yet valid", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, []string{"a"}, "not valid before 20"},
		{"common name alone", nil, nil, "subject alternative name"},
		{"for servers", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, []string{"a"}, "used as a client: its extended key usage lacks clientAuth"},
		{"for clients", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, []string{"a"}, "used as a server: its extended key usage lacks serverAuth"},
		{"for code", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, []string{"a"}, "extended key usage"},
	} {
		cert, key := ca.Issue(t, c.change, c.names...)
		refused(t, c.name, cert, key, ca.File, SettingCert, c.mention)
	}
}

func refused(t *testing.T, name, cert, key, ca, setting, mention string) {
	t.Helper()
	id, err := Load(cert, key, ca)
	var wrong *Error
	if !errors.As(err, &wrong) || id != nil || wrong.Setting != setting || !strings.Contains(err.Error(), mention) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v", name, err)
	}
}

// A certificate that says nothing of its use may be used for everything.
func TestLoadAnyUse(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	for _, uses := range [][]x509.ExtKeyUsage{nil, {x509.ExtKeyUsageAny}} {
		cert, key := ca.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = uses }, "a.example")
		if _, err := Load(cert, key, ca.File); err != nil {
			t.Errorf("%v: %v", uses, err)
		}
	}
}

func TestNames(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "10.0.0.1", "*.nodes.example", "b.example", "a.example", "::1")
	id, err := Load(cert, key, ca.File)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := id.Names(), []string{"b.example", "a.example", "10.0.0.1", "::1"}; !slices.Equal(got, want) {
		t.Errorf("names are %q, want %q", got, want)
	}
}

// Both ends prove who they are, or there is no connection.
func TestHandshake(t *testing.T) {
	ours, foreign := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	a, b, stranger := config(t, ours, "a.example"), config(t, ours, "b.example"), config(t, foreign, "b.example")
	naked := &tls.Config{RootCAs: b.RootCAs}
	old := b.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	trusting := stranger.Clone()
	trusting.RootCAs = b.RootCAs
	for _, c := range []struct {
		name         string
		server, dial *tls.Config
		target       string
		ok           bool
	}{
		{"ours", a, b, "a.example", true},
		{"another name", a, b, "c.example", false},
		{"a strange server", stranger, b, "b.example", false},
		{"a strange client", a, trusting, "a.example", false},
		{"no certificate", a, naked, "a.example", false},
		{"TLS 1.2", a, old, "a.example", false},
	} {
		if state, err := handshake(t, c.server, c.dial, c.target); (err == nil) != c.ok {
			t.Errorf("%s: %v, %v", c.name, state, err)
		} else if c.ok && (state.Version != tls.VersionTLS13 || state.PeerCertificates[0].DNSNames[0] != "b.example") {
			t.Errorf("%s: %+v", c.name, state)
		}
	}
}

// A certificate is read again when its files change, a second later at most,
// and not before it is good.
func TestChange(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "a.example", "10.0.0.1")
	now := time.Now()
	id, err := load(cert, key, ca.File, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cfg := id.Config(slog.New(slog.NewTextHandler(&said, nil)))
	dial := config(t, ca, "b.example")
	serial := func() string {
		t.Helper()
		conn := make(chan tls.ConnectionState, 1)
		client := dial.Clone()
		client.VerifyConnection = func(s tls.ConnectionState) error { conn <- s; return nil }
		if _, err := handshake(t, cfg, client, "a.example"); err != nil {
			t.Fatal(err)
		}
		asServer := (<-conn).PeerCertificates[0].SerialNumber.String()
		state, err := handshake(t, dial, cfg, "b.example")
		if err != nil {
			t.Fatal(err)
		}
		if asClient := state.PeerCertificates[0].SerialNumber.String(); asClient != asServer {
			t.Errorf("%s as client, %s as server", asClient, asServer)
		}
		return asServer
	}
	first := serial()
	expires := id.Expires()

	ca.Reissue(t, cert, key, func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Hour) }, "10.0.0.1", "a.example", "c.example")
	now = now.Add(lookEvery - 1)
	if serial() != first {
		t.Error("looked too soon")
	}
	now = now.Add(1)
	second := serial()
	if second == first || id.Expires().Before(expires.Add(time.Hour)) {
		t.Errorf("not read again; expires %s", id.Expires())
	}

	keeps := func(reason string) {
		t.Helper()
		said.Reset()
		for range 3 {
			now = now.Add(lookEvery)
			if serial() != second {
				t.Errorf("%s: taken", reason)
			}
		}
		if strings.Count(said.String(), "the one before stays") != 1 || !strings.Contains(said.String(), reason) {
			t.Errorf("%s: the log says %q", reason, said.String())
		}
	}
	ca.Reissue(t, cert, key, nil, "c.example")
	keeps(`not for \"a.example\"`)
	mtlstest.NewAuthority(t).Reissue(t, cert, key, nil, "a.example", "10.0.0.1")
	keeps("unknown authority")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	keeps("no such file")

	// It is taken when it becomes valid, though nothing is written then. The
	// handshake itself goes by the true time.
	ca.Reissue(t, cert, key, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute).Truncate(time.Second) }, "a.example", "10.0.0.1")
	keeps("not valid before")
	now = now.Add(time.Minute)
	if got, err := id.current(slog.New(slog.DiscardHandler)); err != nil || got.Leaf.SerialNumber.String() == second {
		t.Error("not taken when it became valid")
	}
}

// Whoever changes the CA hears that it takes more than that.
func TestChangeOfCA(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	cert, key := ca.Issue(t, nil, "a.example")
	now := time.Now()
	id, err := load(cert, key, ca.File, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca.File, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	for range 3 {
		now = now.Add(lookEvery)
		if _, err := id.current(slog.New(slog.NewTextHandler(&said, nil))); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(said.String(), "file of CAs has changed") != 1 || strings.Contains(said.String(), "certificate has changed") {
		t.Errorf("the log says %q", said.String())
	}
}

// While a CA is replaced, both are in the file, and certificates of either do.
func TestTwoCAs(t *testing.T) {
	old, fresh := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	var both []byte
	for _, ca := range []*mtlstest.Authority{old, fresh} {
		content, err := os.ReadFile(ca.File)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, content...)
	}
	for _, ca := range []*mtlstest.Authority{old, fresh} {
		if err := os.WriteFile(ca.File, both, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, b := config(t, old, "a.example"), config(t, fresh, "b.example")
	if _, err := handshake(t, a, b, "a.example"); err != nil {
		t.Error(err)
	}
	if _, err := handshake(t, b, a, "b.example"); err != nil {
		t.Error(err)
	}
}

func config(t *testing.T, ca *mtlstest.Authority, name string) *tls.Config {
	t.Helper()
	cert, key := ca.Issue(t, nil, name)
	id, err := Load(cert, key, ca.File)
	if err != nil {
		t.Fatal(err)
	}
	return id.Config(slog.New(slog.DiscardHandler))
}

// handshake connects two ends and returns what the server knows then.
func handshake(t *testing.T, server, dial *tls.Config, target string) (tls.ConnectionState, error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan result, 1)
	go func() {
		conn, err := lis.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		err = s.Handshake()
		served <- result{s.ConnectionState(), err}
	}()
	conn, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dial = dial.Clone()
	dial.ServerName = target
	err = tls.Client(conn, dial).Handshake()
	if err != nil {
		conn.Close()
	}
	r := <-served
	return r.state, errors.Join(err, r.err)
}

// An identity without a certificate connects with nobody; it takes only what
// Load would take, and the one before stays.
func TestAwait(t *testing.T) {
	ca := mtlstest.NewAuthority(t)
	id, err := Await(content(t, ca.File), "a.example")
	if err != nil {
		t.Fatal(err)
	}
	cfg, peer := id.Config(slog.New(slog.DiscardHandler)), config(t, ca, "b.example")
	if _, err := handshake(t, cfg, peer, "a.example"); err == nil || !id.Expires().IsZero() {
		t.Errorf("a server without a certificate: %v", err)
	}
	if _, err := handshake(t, peer, cfg, "b.example"); err == nil {
		t.Error("a client without a certificate")
	}
	take := func(ca *mtlstest.Authority, change func(*x509.Certificate), names ...string) error {
		cert, key := ca.Issue(t, change, names...)
		return id.Take(content(t, cert), content(t, key))
	}
	refuses := func() {
		t.Helper()
		for name, err := range map[string]error{
			"another name": take(ca, nil, "b.example"),
			"another CA":   take(mtlstest.NewAuthority(t), nil, "a.example"),
			"expired":      take(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, "a.example"),
			"no keys":      id.Take(nil, nil),
		} {
			if err == nil {
				t.Errorf("%s: taken", name)
			}
		}
	}
	refuses()
	if err := take(ca, nil, "a.example"); err != nil {
		t.Fatal(err)
	}
	expires := id.Expires()
	refuses()
	if !id.Expires().Equal(expires) || expires.IsZero() {
		t.Errorf("it expires %s, then %s", expires, id.Expires())
	}
	if _, err := handshake(t, cfg, peer, "a.example"); err != nil {
		t.Error(err)
	}
	if _, err := handshake(t, peer, cfg, "b.example"); err != nil {
		t.Error(err)
	}
	if _, err := Await([]byte("hello"), "a.example"); err == nil {
		t.Error("text as CA")
	}
}

// What is requested can be signed, and goes with its key.
func TestRequest(t *testing.T) {
	authority := mtlstest.NewAuthority(t)
	ca, err := ReadCA(content(t, authority.File), content(t, authority.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	request, keyPEM, err := Request()
	if err != nil {
		t.Fatal(err)
	}
	key, err := RequestedKey(request)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(key, time.Hour, "a.example")
	if err != nil {
		t.Fatal(err)
	}
	id, err := Await(ca.PEM(), "a.example")
	if err == nil {
		err = id.Take(cert, keyPEM)
	}
	if err != nil {
		t.Error(err)
	}
}

func content(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
