// Package mtls keeps what a process proves itself with, and checks others by:
// a certificate, its key, and the CA of all certificates of the cluster. It
// reads them from files, or is given them, and it signs certificates.
//
// It knows files and TLS. It must not know who talks to whom.
package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

// Names of the settings in errors: those of the command's flags.
const (
	SettingCert = "tls-cert"
	SettingKey  = "tls-key"
	SettingCA   = "tls-ca"
)

// Error says which setting is wrong.
type Error struct {
	// Setting is one of the names above.
	Setting string
	Err     error
}

func (e *Error) Error() string { return e.Setting + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// lookEvery is how often the files are looked at, at most.
const lookEvery = time.Second

// Identity is a certificate that is read again when its files change, or that
// Take replaces. Any goroutine may use it.
type Identity struct {
	certFile, keyFile, caFile string // empty for one that Await made

	cas   *x509.CertPool
	names []string
	now   func() time.Time

	// mu guards what follows.
	mu     sync.Mutex
	cert   *tls.Certificate // nil before the first Take
	stamps stamps           // as the files were read last
	bad    string           // why what was read was not taken, if so
	looked time.Time
}

// stamp is what changes when a file does.
type stamp struct {
	modified time.Time
	size     int64
}

type stamps struct{ cert, key, ca stamp }

// Load reads PEM files: a certificate with its intermediate ones, its key, and
// the CAs that all certificates of the cluster are signed by. It returns nil
// when no file is named. The error is an *Error: when a file cannot be read,
// when only some are named, and when others would not take the certificate:
// every process is dialed and dials, so it must be valid now, be for a server
// and for a client, and name hosts.
//
// The CAs are read once: to change them, name old and new in one file, start
// all processes again, and change the certificates then.
func Load(certFile, keyFile, caFile string) (*Identity, error) {
	return load(certFile, keyFile, caFile, time.Now)
}

func load(certFile, keyFile, caFile string, now func() time.Time) (*Identity, error) {
	if certFile == "" && keyFile == "" && caFile == "" {
		return nil, nil
	}
	for _, f := range []struct{ setting, file string }{
		{SettingCert, certFile}, {SettingKey, keyFile}, {SettingCA, caFile},
	} {
		if f.file == "" {
			return nil, &Error{f.setting, errors.New("is missing: --tls-cert, --tls-key and --tls-ca need each other; give all three, or none for plaintext")}
		}
	}
	id := &Identity{certFile: certFile, keyFile: keyFile, caFile: caFile, now: now}
	id.stamps, id.looked = id.look(), now()
	content, err := os.ReadFile(caFile)
	if err != nil {
		return nil, &Error{SettingCA, err}
	}
	id.cas = x509.NewCertPool()
	if !id.cas.AppendCertsFromPEM(content) {
		return nil, &Error{SettingCA, fmt.Errorf("%s holds no PEM certificate", caFile)}
	}
	if id.cert, err = id.read(); err != nil {
		return nil, err
	}
	id.names = hosts(id.cert.Leaf)
	return id, nil
}

// Await returns an Identity for names that has no certificate yet: before Take
// gives it one, no handshake succeeds. The CAs are those in caPEM.
func Await(caPEM []byte, names ...string) (*Identity, error) {
	id := &Identity{cas: x509.NewCertPool(), names: names, now: time.Now}
	if !id.cas.AppendCertsFromPEM(caPEM) {
		return nil, &Error{SettingCA, errors.New("holds no PEM certificate")}
	}
	return id, nil
}

// Take puts another certificate in use, from the next handshake on. It refuses
// one that Load would refuse, or that lacks one of Names; the one before then
// stays.
func (id *Identity) Take(certPEM, keyPEM []byte) error {
	chain, err := parse(certPEM)
	if err != nil {
		return fmt.Errorf("the certificate %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("key and certificate do not go together: %w", err)
	}
	if err := id.check(chain); err != nil {
		return fmt.Errorf("the certificate %w", err)
	}
	if name := id.lacks(cert.Leaf); name != "" {
		return fmt.Errorf("the certificate is not for %q", name)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.cert = &cert
	return nil
}

// Names returns the names of this process that its certificate proves: DNS
// names and then IP addresses. Patterns are left out, for they name nobody.
func (id *Identity) Names() []string { return slices.Clone(id.names) }

// Expires returns until when the certificate is valid that is in use now, or the
// zero time if there is none yet.
func (id *Identity) Expires() time.Time {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.cert == nil {
		return time.Time{}
	}
	return id.cert.Leaf.NotAfter
}

// Config returns a configuration for both ends of connections, TLS 1.3 at
// least, by which both must prove who they are. Before each handshake the
// certificate is read again if its files have changed, which is looked at once
// a second at most. When the new one would have been refused by Load, or
// lacks one of Names, the old one stays and log hears of it.
func (id *Identity) Config(log *slog.Logger) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  id.cas,
		RootCAs:    id.cas,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.current(log)
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.current(log)
		},
		// Every connection shows certificates, so that one that has expired
		// opens none.
		SessionTicketsDisabled: true,
	}
}

// Reload looks at once whether the files have changed, as the next handshake
// would.
func (id *Identity) Reload(log *slog.Logger) {
	id.mu.Lock()
	id.looked = time.Time{}
	id.mu.Unlock()
	// Without a certificate there is none to read again.
	_, _ = id.current(log)
}

// errNone is why a handshake fails before the first certificate is there.
var errNone = errors.New("this process has no certificate yet")

// current returns the certificate, read again if need be.
func (id *Identity) current(log *slog.Logger) (*tls.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.certFile == "" {
		if id.cert == nil {
			return nil, errNone
		}
		return id.cert, nil
	}
	return id.reread(log), nil
}

// reread returns the certificate in the files, or the one before if that is not
// good. The caller holds mu.
func (id *Identity) reread(log *slog.Logger) *tls.Certificate {
	if since := id.now().Sub(id.looked); 0 <= since && since < lookEvery {
		return id.cert
	}
	id.looked = id.now()
	// The stamps are taken first: what is written while it is read is read
	// again.
	now, before := id.look(), id.stamps
	// What was not taken may become good by itself, as one does that is not
	// valid yet.
	if now == before && id.bad == "" {
		return id.cert
	}
	id.stamps = now
	if now.ca != before.ca {
		log.Warn("the file of CAs has changed: start again to use it", "file", id.caFile)
	}
	cert, err := id.read()
	if err == nil {
		if name := id.lacks(cert.Leaf); name != "" {
			err = fmt.Errorf("%s is not for %q any more: start again to use it", id.certFile, name)
		}
	}
	if err != nil {
		if id.bad != err.Error() {
			log.Error("certificate has changed and is not good: the one before stays in use", "expires", id.cert.Leaf.NotAfter, "err", err)
		}
		id.bad = err.Error()
		return id.cert
	}
	if !bytes.Equal(id.cert.Leaf.Raw, cert.Leaf.Raw) {
		log.Info("certificate has changed", "file", id.certFile, "expires", cert.Leaf.NotAfter)
	}
	id.cert, id.bad = cert, ""
	return cert
}

func (id *Identity) look() stamps {
	return stamps{stampOf(id.certFile), stampOf(id.keyFile), stampOf(id.caFile)}
}

// stampOf returns zero for a file that is not there.
func stampOf(file string) stamp {
	info, err := os.Stat(file)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

// lacks returns a name of the first certificate, by which the process may be
// known, that another one does not prove; empty, it proves all.
func (id *Identity) lacks(cert *x509.Certificate) string {
	names := hosts(cert)
	for _, name := range id.names {
		if !slices.Contains(names, name) {
			return name
		}
	}
	return ""
}

// read returns the certificate as it is in the files.
func (id *Identity) read() (*tls.Certificate, error) {
	certPEM, err := os.ReadFile(id.certFile)
	if err != nil {
		return nil, &Error{SettingCert, err}
	}
	chain, err := parse(certPEM)
	if err != nil {
		return nil, &Error{SettingCert, fmt.Errorf("%s %w", id.certFile, err)}
	}
	keyPEM, err := os.ReadFile(id.keyFile)
	if err != nil {
		return nil, &Error{SettingKey, err}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, &Error{SettingKey, fmt.Errorf("%s does not go with %s: %w", id.keyFile, id.certFile, err)}
	}
	if err := id.check(chain); err != nil {
		return nil, &Error{SettingCert, fmt.Errorf("%s %w", id.certFile, err)}
	}
	return &cert, nil
}
