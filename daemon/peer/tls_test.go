package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/piece"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &authority{must(x509.ParseCertificate(der)), key}
}

// config is that of a node of this name.
func (a *authority) config(name string) *tls.Config {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key))
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, RootCAs: pool, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

// Only members of one cluster talk, and each knows the other's name.
func TestTLS(t *testing.T) {
	ours, foreign := newAuthority(), newAuthority()
	src := newContent(3*piece.MinLength + 1)
	halfForeign := foreign.config("b.example") // trusts us, is not one of us
	halfForeign.RootCAs = ours.config("x").RootCAs
	for _, tc := range []struct {
		name         string
		server, dial *tls.Config
		target       string
		ok           bool
	}{
		{"plain", nil, nil, "", true},
		{"mutual", ours.config("a.example"), ours.config("b.example"), "a.example", true},
		{"a borrowed ID", ours.config("a.example"), ours.config("c.example"), "a.example", false},
		{"a server's borrowed ID", ours.config("d.example"), ours.config("b.example"), "d.example", false},
		{"mutual by address", ours.config("a.example"), ours.config("b.example"), "", true},
		{"another node's name", ours.config("c.example"), ours.config("b.example"), "a.example", false},
		{"plain to TLS", ours.config("a.example"), nil, "", false},
		{"TLS to plain", nil, ours.config("b.example"), "a.example", false},
		{"foreign server", foreign.config("a.example"), ours.config("b.example"), "a.example", false},
		{"foreign client", ours.config("a.example"), halfForeign, "a.example", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ev := newEvents()
			a := newEndpoint(t, Config{TLS: tc.server, ID: IDOf("a.example")})
			b := newEndpoint(t, Config{TLS: tc.dial, ID: IDOf("b.example")})
			addr := serve(t, a, "127.0.0.1")
			open(t, a, src.blob(ev, src.all()...))
			c, err := open(t, b, src.blob(nil)).Dial(t.Context(), addr, tc.target)
			if !tc.ok {
				if err == nil {
					t.Error("connected")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range src.layout.Count() {
				mustGet(t, c, src, i)
			}
			if tc.server == nil {
				return
			}
			if in := ev.await(t, "opened").conn; c.Name() != "a.example" || in.Name() != "b.example" || !in.Incoming() {
				t.Errorf("they take each other for %q and %q", c.Name(), in.Name())
			}
		})
	}
}

// A configuration that would let strangers in is refused.
func TestTLSConfigRefused(t *testing.T) {
	ca := newAuthority()
	for name, weaken := range map[string]func(*tls.Config){
		"version":      func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 },
		"client":       func(c *tls.Config) { c.ClientAuth = tls.VerifyClientCertIfGiven },
		"client CA":    func(c *tls.Config) { c.ClientCAs = nil },
		"server CA":    func(c *tls.Config) { c.RootCAs = nil },
		"verification": func(c *tls.Config) { c.InsecureSkipVerify = true },
		"certificate":  func(c *tls.Config) { c.Certificates = nil },
	} {
		c := ca.config("a.example")
		weaken(c)
		if _, err := New(Config{TLS: c}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, cfg := range []Config{{Block: 1}, {Block: MaxBlock + 1}, {Slots: -1}, {Queue: -1}, {Upload: rate.NewLimiter(1, 0)}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v: accepted", cfg)
		}
	}
}
