package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is the certificate authority of a cluster, with its key.
type CA struct {
	pair tls.Certificate
	pem  []byte
}

// ReadCA returns the CA whose certificate is the first in caPEM, and whose key
// is caKeyPEM.
func ReadCA(caPEM, caKeyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(caPEM, caKeyPEM)
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	if !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%q is not the certificate of a CA", pair.Leaf.Subject.CommonName)
	}
	return &CA{pair, caPEM}, nil
}

// PEM returns the certificates that ReadCA was given.
func (ca *CA) PEM() []byte { return ca.pem }

// Expires returns until when the CA's own certificate is valid.
func (ca *CA) Expires() time.Time { return ca.pair.Leaf.NotAfter }

// Sign returns a new certificate, as PEM, for the holder of a key. It is for
// names, DNS names or IP addresses, and good as a server and as a client. It is
// valid from a minute ago for the given time, but no longer than the CA is.
func (ca *CA) Sign(key crypto.PublicKey, valid time.Duration, names ...string) ([]byte, error) {
	if len(names) == 0 {
		return nil, errors.New("a certificate needs a name")
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: names[0][:min(len(names[0]), 64)]}, // RFC 5280 allows no more
		NotBefore:    now.Add(-time.Minute), NotAfter: now.Add(valid),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if template.NotAfter.After(ca.Expires()) {
		template.NotAfter = ca.Expires()
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.pair.Leaf, key, ca.pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Issue makes a key and has the CA in caPEM sign a certificate for it, as
// CA.Sign does. It returns certificate and key as PEM.
func Issue(caPEM, caKeyPEM []byte, valid time.Duration, names ...string) (certPEM, keyPEM []byte, err error) {
	ca, err := ReadCA(caPEM, caKeyPEM)
	if err != nil {
		return nil, nil, err
	}
	return ca.Issue(valid, names...)
}

// Issue makes a key and signs a certificate for it. It returns both as PEM.
func (ca *CA) Issue(valid time.Duration, names ...string) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = ca.Sign(key.Public(), valid, names...)
	return certPEM, keyPEM, err
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}

const requestType = "CERTIFICATE REQUEST"

// Request makes a key and a request for a certificate of it (PKCS #10), both as
// PEM. The request names nobody: the issuer knows who asks.
func Request() (requestPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der}), keyPEM, nil
}

// RequestedKey returns the public key in a certificate request, whose sender has
// proved to have the private one. Keys are ECDSA P-256, as Request makes them.
// Nothing else in a request is looked at: no name, no extension.
func RequestedKey(requestPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != requestType {
		return nil, errors.New("not a PEM certificate request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key of the certificate request is not ECDSA P-256")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its key: %w", err)
	}
	return key, nil
}
