// Package mtlstest makes certificates for tests, as files.
package mtlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	// File holds its own certificate, KeyFile its key.
	File, KeyFile string

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority writes the certificate of a new authority, valid from an hour
// ago for a day, to a directory of the test's.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mtlstest CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	dir := t.TempDir()
	a := &Authority{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), cert, key}
	write(t, a.File, "CERTIFICATE", der)
	write(t, a.KeyFile, "PRIVATE KEY", secret)
	return a
}

// Issue writes a certificate for DNS names and IP addresses, and its key, to
// new files. It is valid from a minute ago for an hour, for servers and
// clients; change, if not nil, makes another of it.
func (a *Authority) Issue(t testing.TB, change func(*x509.Certificate), names ...string) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	a.Reissue(t, certFile, keyFile, change, names...)
	return certFile, keyFile
}

// Reissue is Issue to files that are named; both are replaced by renaming.
func (a *Authority) Reissue(t testing.TB, certFile, keyFile string, change func(*x509.Certificate), names ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "mtlstest"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, name)
		}
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	check(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	write(t, keyFile, "PRIVATE KEY", secret)
	write(t, certFile, "CERTIFICATE", der)
}

func write(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	temporary := file + ".new"
	check(t, os.WriteFile(temporary, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	check(t, os.Rename(temporary, file))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
