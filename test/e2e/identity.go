package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// CA issues certificates.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

// Identity is what a node proves itself by, and whom it believes: paths of PEM
// files.
type Identity struct {
	Cert, Key, CA string
}

// flags are those of daemon and scheduler; none for nil.
func (id *Identity) flags() []string {
	if id == nil {
		return nil
	}
	return []string{"--tls-cert", id.Cert, "--tls-key", id.Key, "--tls-ca", id.CA}
}

// NewCA makes a CA that nobody knows yet.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{key: newKey(t)}
	template := certificate(name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	ca.cert, ca.pem = sign(t, template, template, &ca.key.PublicKey, ca.key)
	return ca
}

// Issue writes a certificate for a node, its name and its address, with its key
// and with what the node is to believe in: the certificates of trusted CAs.
func (ca *CA) Issue(t testing.TB, n *Node, trusted ...*CA) *Identity {
	t.Helper()
	return ca.issueUntil(t, n, time.Now().Add(24*time.Hour), trusted...)
}

// issueUntil is Issue with an end, in the place of what was issued before.
func (ca *CA) issueUntil(t testing.TB, n *Node, end time.Time, trusted ...*CA) *Identity {
	t.Helper()
	key := newKey(t)
	template := certificate(n.Name)
	template.NotAfter = end
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = []string{n.Name}
	template.IPAddresses = []net.IP{net.ParseIP(n.Addr)}
	_, cert := sign(t, template, ca.cert, &key.PublicKey, ca.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	bundle := ""
	for _, other := range trusted {
		bundle += other.pem
	}
	return &Identity{
		Cert: n.Write(t, cert, "tls", "cert.pem"),
		Key:  n.Write(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "tls", "key.pem"),
		CA:   n.Write(t, bundle, "tls", "ca.pem"),
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, signer *ecdsa.PrivateKey) (*x509.Certificate, string) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatalf("signing the certificate of %s: %v", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
