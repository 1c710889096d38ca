package mtls

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// parse returns the certificates in a PEM file, at least one.
func parse(content []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("holds a certificate that cannot be read: %w", err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return chain, nil
}

// check returns why others would not take a certificate, the first of chain.
func (id *Identity) check(chain []*x509.Certificate) error {
	leaf, now := chain[0], id.now()
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("has expired, on %s", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("is not valid before %s; is the clock right?", leaf.NotBefore.Format(time.RFC3339))
	case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return errors.New("names no host: it needs a subject alternative name (DNS or IP), the common name does not count")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	for _, use := range []struct {
		as, name string
		key      x509.ExtKeyUsage
	}{
		{"server", "serverAuth", x509.ExtKeyUsageServerAuth}, {"client", "clientAuth", x509.ExtKeyUsageClientAuth},
	} {
		if !allows(leaf, use.key) {
			return fmt.Errorf("may not be used as a %s: its extended key usage lacks %s, and both serverAuth and clientAuth are needed", use.as, use.name)
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: id.cas, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use.key}})
		if err != nil {
			return fmt.Errorf("is not accepted as a %s by --tls-ca: %w", use.as, err)
		}
	}
	return nil
}

// allows reports whether a certificate itself may be used so. One that says
// nothing may be used for everything.
func allows(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// hosts returns the names of one host in a certificate.
func hosts(c *x509.Certificate) []string {
	var names []string
	for _, name := range c.DNSNames {
		if !strings.Contains(name, "*") {
			names = append(names, name)
		}
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
