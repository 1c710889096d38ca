package mtls_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/mtls/mtlstest"
)

// What is issued is what Load takes.
func TestIssue(t *testing.T) {
	a := mtlstest.NewAuthority(t)
	caFile, caKey := a.Issue(t, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.ExtKeyUsage = nil
	})
	ca, key := read(t, caFile), read(t, caKey)
	certPEM, keyPEM, err := mtls.Issue(ca, key, 24*time.Hour, "node-1", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cert"), certPEM)
	write(t, filepath.Join(dir, "key"), keyPEM)
	id, err := mtls.Load(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), caFile)
	if err != nil {
		t.Fatal(err)
	}
	if names := id.Names(); !slices.Equal(names, []string{"node-1", "10.0.0.1"}) {
		t.Errorf("it is for %q", names)
	}
	// The CA is valid for an hour.
	if left := time.Until(id.Expires()); left > time.Hour {
		t.Errorf("it is valid for %v, longer than the CA", left)
	}
	if _, _, err := mtls.Issue(certPEM, keyPEM, time.Hour, "node-2"); err == nil {
		t.Error("a node could issue certificates")
	}
	if _, _, err := mtls.Issue(ca, keyPEM, time.Hour, "node-2"); err == nil {
		t.Error("another key would do")
	}
	if _, _, err := mtls.Issue(ca, key, time.Hour); err == nil {
		t.Error("no name is needed")
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// While a CA is replaced its file has two certificates. The first one issues, by
// its key, and both are trusted.
func TestCAWithTwo(t *testing.T) {
	old, fresh := mtlstest.NewAuthority(t), mtlstest.NewAuthority(t)
	ca, err := mtls.ReadCA(append(read(t, fresh.File), read(t, old.File)...), read(t, fresh.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	id, err := mtls.Await(ca.PEM(), "node-1")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(time.Hour, "node-1")
	if err == nil {
		err = id.Take(cert, key)
	}
	if err != nil {
		t.Errorf("the new one: %v", err)
	}
	certFile, keyFile := old.Issue(t, nil, "node-1")
	if err := id.Take(read(t, certFile), read(t, keyFile)); err != nil {
		t.Errorf("the old one: %v", err)
	}
	if _, err := mtls.ReadCA(append(read(t, fresh.File), read(t, old.File)...), read(t, old.KeyFile)); err == nil {
		t.Error("the key of the second issues by the first")
	}
}
