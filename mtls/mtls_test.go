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
	if got := id.current(slog.New(slog.DiscardHandler)); got.Leaf.SerialNumber.String() == second {
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
		id.current(slog.New(slog.NewTextHandler(&said, nil)))
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
