package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/daemon/certificate"
	"github.com/shoalproject/shoal/daemon/mirror"
	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/origin"
	"github.com/shoalproject/shoal/scheduler/client"
)

// Config is everything about one node that can be chosen. Names in errors
// are those of the command's flags.
type Config struct {
	// Listen is where the mirror serves, HOST:PORT. Loopback keeps other
	// machines out; whoever reaches it may read what Auth allows.
	Listen string
	// PeerListen is where other daemons fetch from this one, HOST:PORT. Without
	// Schedulers nothing listens there.
	PeerListen string
	// PeerAdvertise is where they reach PeerListen, HOST:PORT; without HOST,
	// or when empty, the address from which the scheduler sees this node.
	PeerAdvertise string
	// AdminListen is where health, metrics and profiles are served.
	AdminListen string
	// LocalHosts are names by which Listen and AdminListen may be addressed
	// over loopback, beside localhost and loopback addresses.
	LocalHosts []string
	// Schedulers are HOST:PORT, or dns:///NAME:PORT for all addresses of a
	// name. All nodes must spell them alike: what they spell decides which
	// blob belongs to which. Empty: the node is alone, and runs nothing of a
	// swarm.
	Schedulers []string
	// NodeName is how the node calls itself to schedulers and other nodes,
	// no two alike. Empty: the first name of TLSCert, else the host's name.
	// With TLS it must be one that TLSCert proves.
	NodeName string
	// Zone is the failure and cost domain of the node; bytes cross from one
	// to another as seldom as can be. Empty is a zone, too.
	Zone string
	// Labels are KEY=VALUE, by which preheat jobs may choose nodes.
	Labels []string
	// TLSCert, TLSKey and TLSCA are PEM files for mutual TLS among nodes and
	// to schedulers: all three, or none for plaintext.
	TLSCert, TLSKey, TLSCA string
	// TLSIssuer is where this node gets its certificate and the later ones,
	// https://HOST:PORT of a scheduler's issuer, in place of TLSCert and
	// TLSKey. TLSTokenFile holds the token that tells the issuer which node
	// this is; it must be the one of NodeName. Without a certificate, as
	// before the first one comes, the node is on its own.
	TLSIssuer, TLSTokenFile string
	// PeerPlaintextPrivate has a node without TLS share also what is not known
	// to be public. Whoever reaches PeerListen and knows a digest then gets it.
	PeerPlaintextPrivate bool
	// Guest makes this process a member of swarms and no node of the cluster:
	// schedulers list it nowhere and order nothing of it.
	Guest bool
	// PreheatNodeCredentials has preheat jobs that bring no credentials use those
	// of DockerConfig, also for registries of auth mode relay. Whoever commands
	// the scheduler may then have this node fetch what those may read.
	PreheatNodeCredentials bool
	// DataDir holds the store. It must belong to this process alone.
	DataDir string
	// CacheSize is the store's quota in bytes; a tenth of the disk stays
	// free in any case.
	CacheSize int64
	// Registries are the allowed upstreams, as ParseRegistry reads them.
	Registries []string
	// DefaultRegistry is the upstream of requests that name none. Empty:
	// such requests are refused.
	DefaultRegistry string
	// Auth is relay, open or node: who decides over upstreams of Registries
	// that do not say so themselves.
	Auth string
	// PermissionTTL is how long an origin's word that a caller may have
	// something is good, unless the caller's token expires before. Longer
	// spares the origin, shorter sees a withdrawn permission sooner.
	PermissionTTL time.Duration
	// AuthOffline is what callers get while an origin gives no
	// answer: proven, none or all, see mirror.Offline. AuthOfflineFor is how
	// long the origin's word is good then.
	AuthOffline    string
	AuthOfflineFor time.Duration
	// AllowBasicRelay hands Basic challenges of origins on to runtimes, which
	// then send passwords over the mirror's plain HTTP.
	AllowBasicRelay bool
	// DockerConfig is the path of docker's config.json for Auth node; empty
	// is where docker keeps it.
	DockerConfig string
	// OriginRate limits what is read from all origins together, in bytes per
	// second; 0 does not.
	OriginRate int64
	// UploadRate and DownloadRate limit what all other nodes together are
	// sent and send, in bytes per second; 0 does not.
	UploadRate, DownloadRate int64
	// TagTTL is how long a tag stays resolved. Longer spares the origin,
	// shorter sees a moved tag sooner.
	TagTTL time.Duration
	// MaxConnections bounds the connections to the mirror. Idle ones make room
	// for more; if all have a request under way, more are closed at once.
	MaxConnections int
	// MaxDownloads bounds the blobs in flight; more wait.
	MaxDownloads int
	// ShutdownGrace is how long a stopping daemon lets responses finish.
	ShutdownGrace time.Duration
	// Version is shown by the metrics.
	Version string
	// Sockets are open already and served in place of what the settings
	// listen, peer-listen and admin-listen say, by which they are named.
	Sockets map[string]net.Listener
	Logger  *slog.Logger
}

// SocketNames are the names that Sockets may have.
func SocketNames() []string { return []string{"listen", "peer-listen", "admin-listen"} }

// DefaultConfig returns the configuration of a node that was told nothing.
func DefaultConfig() Config {
	return Config{
		Listen:          "127.0.0.1:4400",
		PeerListen:      ":4401",
		AdminListen:     "127.0.0.1:4403",
		DataDir:         defaultDataDir(),
		CacheSize:       20 << 30,
		Registries:      registry.PublicRegistries(),
		DefaultRegistry: registry.DockerHub,
		Auth:            "relay",
		PermissionTTL:   5 * time.Minute,
		AuthOffline:     "proven",
		AuthOfflineFor:  time.Hour,
		TagTTL:          5 * time.Second,
		MaxConnections:  8192,
		MaxDownloads:    64,
		ShutdownGrace:   20 * time.Second,
	}
}

// defaultDataDir is a directory of the system for root, and of the user for
// others.
func defaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/shoal"
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "shoal")
	}
	return ""
}

// settings is a Config that has been read and found good.
type settings struct {
	Config
	upstreams *registry.Upstreams
	endpoints []origin.Endpoint
	auth      mirror.Auth
	// auths are the upstreams that have another.
	auths   map[string]mirror.Auth
	offline mirror.Offline
	// identity is nil without TLS.
	identity *mtls.Identity
	// keeper gets the certificates of identity; nil where they are files.
	keeper *certificate.Keeper
	// nodeName is NodeName, or what stands for it when that is empty.
	nodeName string
	labels   map[string]string
}

// ConfigError says which setting is wrong.
type ConfigError struct {
	// Setting is the name of the flag, without dashes.
	Setting string
	Err     error
}

func (e *ConfigError) Error() string { return "--" + e.Setting + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// Validate reports the first setting that is wrong, as a *ConfigError. It
// reads certificates but touches nothing else.
func (c Config) Validate() error {
	_, err := c.settings()
	return err
}

func (c Config) settings() (*settings, error) {
	s := &settings{Config: c}
	bad := func(setting string, err error) (*settings, error) {
		return nil, &ConfigError{setting, err}
	}
	for _, a := range []struct{ setting, addr string }{
		{"listen", c.Listen}, {"peer-listen", c.PeerListen}, {"admin-listen", c.AdminListen},
	} {
		if err := checkAddress(a.addr); err != nil {
			return bad(a.setting, err)
		}
	}
	switch {
	case c.DataDir == "":
		return bad("data-dir", errors.New("is needed: there is no cache directory for this user"))
	case c.CacheSize < 0:
		return bad("cache-size", errors.New("must not be negative"))
	case c.OriginRate < 0:
		return bad("origin-rate", errors.New("must not be negative"))
	case c.UploadRate < 0:
		return bad("upload-rate", errors.New("must not be negative"))
	case c.DownloadRate < 0:
		return bad("download-rate", errors.New("must not be negative"))
	case c.TagTTL <= 0:
		return bad("tag-ttl", errors.New("must be more than 0"))
	case c.PermissionTTL <= 0:
		return bad("permission-ttl", errors.New("must be more than 0"))
	case c.AuthOfflineFor <= 0:
		return bad("auth-offline-for", errors.New("must be more than 0"))
	case c.MaxConnections < 1:
		return bad("max-connections", errors.New("must be at least 1"))
	case c.MaxDownloads < 1:
		return bad("max-downloads", errors.New("must be at least 1"))
	case c.ShutdownGrace < 0:
		return bad("shutdown-grace", errors.New("must not be negative"))
	}
	var err error
	if s.auth, err = parseAuth(c.Auth); err != nil {
		return bad("auth", err)
	}
	var ok bool
	if s.offline, ok = map[string]mirror.Offline{"proven": mirror.OfflineProven, "none": mirror.OfflineNone, "all": mirror.OfflineAll}[c.AuthOffline]; !ok {
		return bad("auth-offline", fmt.Errorf("%q is none of proven, none, all", c.AuthOffline))
	}
	s.auths = map[string]mirror.Auth{}
	var list []registry.Upstream
	for _, text := range c.Registries {
		r, err := ParseRegistry(text)
		if err != nil {
			return bad("registry", err)
		}
		if r.Auth != "" {
			s.auths[r.Host], err = parseAuth(r.Auth)
		}
		if err != nil {
			return bad("registry", fmt.Errorf("%s: option auth: %w", r.Host, err))
		}
		s.endpoints = append(s.endpoints, r.Endpoint)
		list = append(list, r.Upstream)
	}
	if s.upstreams, err = registry.NewUpstreams(list, ""); err != nil {
		return bad("registry", err)
	}
	if s.upstreams, err = registry.NewUpstreams(list, c.DefaultRegistry); err != nil {
		return bad("default-registry", err)
	}
	if err := s.swarm(); err != nil {
		return nil, err
	}
	return s, nil
}

var authNames = map[mirror.Auth]string{mirror.Relay: "relay", mirror.Open: "open", mirror.Node: "node"}

func parseAuth(s string) (mirror.Auth, error) {
	for auth, name := range authNames {
		if name == s {
			return auth, nil
		}
	}
	return 0, fmt.Errorf("%q is none of relay, open, node", s)
}

// authFor returns who decides over an upstream.
func (s *settings) authFor(host string) mirror.Auth {
	if auth, ok := s.auths[host]; ok {
		return auth
	}
	return s.auth
}

// swarm reads what concerns schedulers and other nodes.
func (s *settings) swarm() error {
	if s.PeerAdvertise != "" {
		if err := checkReachable(s.PeerAdvertise); err != nil {
			return &ConfigError{"peer-advertise", err}
		}
	}
	for _, name := range s.Schedulers {
		if err := client.CheckScheduler(name); err != nil {
			return &ConfigError{"scheduler", err}
		}
	}
	if err := checkWord(s.Zone); err != nil {
		return &ConfigError{"zone", err}
	}
	var err error
	if s.labels, err = parseLabels(s.Labels); err != nil {
		return &ConfigError{"label", err}
	}
	if s.TLSIssuer != "" || s.TLSTokenFile != "" {
		s.identity, err = s.issued()
	} else {
		s.identity, err = mtls.Load(s.TLSCert, s.TLSKey, s.TLSCA)
	}
	if wrong := (*mtls.Error)(nil); errors.As(err, &wrong) {
		return &ConfigError{wrong.Setting, wrong.Err}
	} else if err != nil {
		return err
	}
	if s.nodeName, err = s.name(); err == nil {
		err = checkWord(s.nodeName)
	}
	if err != nil {
		return &ConfigError{"node-name", err}
	}
	return nil
}

// issued returns the identity of a node whose certificate is still to come from
// an issuer, and sets the keeper that gets it.
func (s *settings) issued() (*mtls.Identity, error) {
	for _, need := range []struct{ setting, value, why string }{
		{"tls-issuer", s.TLSIssuer, "is missing: --tls-token-file is for it"},
		{"tls-token-file", s.TLSTokenFile, "is missing: the token in it tells --tls-issuer which node this is"},
		{"tls-ca", s.TLSCA, "is missing: --tls-issuer proves its name by it"},
		{"node-name", s.NodeName, "is missing: --tls-issuer needs it, to see that the certificate is this node's"},
	} {
		if need.value == "" {
			return nil, &ConfigError{need.setting, errors.New(need.why)}
		}
	}
	if s.TLSCert != "" || s.TLSKey != "" {
		return nil, &ConfigError{"tls-issuer", errors.New("is for nodes without --tls-cert and --tls-key: name either")}
	}
	if err := certificate.CheckIssuer(s.TLSIssuer); err != nil {
		return nil, &ConfigError{"tls-issuer", err}
	}
	ca, err := os.ReadFile(s.TLSCA)
	if err != nil {
		return nil, &ConfigError{"tls-ca", err}
	}
	identity, err := mtls.Await(ca, s.NodeName)
	if err != nil {
		return nil, err
	}
	s.keeper = &certificate.Keeper{Issuer: s.TLSIssuer, CA: ca, TokenFile: s.TLSTokenFile, Identity: identity}
	return identity, nil
}

// name returns what the node calls itself.
func (s *settings) name() (string, error) {
	if s.identity != nil {
		names := s.identity.Names()
		switch {
		case len(names) == 0:
			return "", fmt.Errorf("%s names no single node: it needs a name that no other node has", s.TLSCert)
		case s.NodeName == "":
			return names[0], nil
		case !slices.Contains(names, s.NodeName):
			return "", fmt.Errorf("%q is none of the names that %s proves: %s", s.NodeName, s.TLSCert, strings.Join(names, ", "))
		}
	}
	if s.NodeName != "" {
		return s.NodeName, nil
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "", errors.New("is needed: the host has no name")
	}
	return host, nil
}

// maxWord is how long names of nodes and zones may be, in bytes; schedulers
// take no longer ones.
const maxWord = 253

func checkWord(s string) error {
	if len(s) > maxWord {
		return fmt.Errorf("has %d bytes, want at most %d", len(s), maxWord)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%q: want printable ASCII without blanks", s)
	}
	return nil
}

func checkReachable(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		err = checkWord(host)
	}
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 {
		return fmt.Errorf("%q: want HOST:PORT, with a port that others can dial", addr)
	}
	return nil
}

func checkAddress(addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%q: want HOST:PORT", addr)
	}
	return nil
}

// Registry is an allowed upstream with how to reach it.
type Registry struct {
	origin.Endpoint
	// Auth is who decides over it, or empty for what holds for all.
	Auth string
}

// ParseRegistry reads HOST[=URL] with options behind it, each after a comma:
// ca=FILE (PEM) to verify the origin with, cert=FILE and key=FILE to present
// to it, allow=HOST:PORT for a further server that it may redirect to,
// auth=relay|node|open.
func ParseRegistry(s string) (Registry, error) {
	parts := strings.Split(s, ",")
	up, err := registry.ParseUpstream(parts[0])
	if err != nil {
		return Registry{}, err
	}
	e := Registry{Endpoint: origin.Endpoint{Upstream: up}}
	var cert, key string
	for _, option := range parts[1:] {
		name, value, _ := strings.Cut(option, "=")
		switch {
		case value == "":
			err = fmt.Errorf("option %q: want ca=FILE, cert=FILE, key=FILE, allow=HOST:PORT or auth=MODE", option)
		case name == "ca":
			e.RootCAs, err = readCAs(value)
		case name == "cert":
			cert = value
		case name == "key":
			key = value
		case name == "allow":
			err = checkAddress(value)
			e.AllowHosts = append(e.AllowHosts, value)
		case name == "auth":
			e.Auth = value
		default:
			err = fmt.Errorf("option %q is unknown: want ca=FILE, cert=FILE, key=FILE, allow=HOST:PORT or auth=MODE", name)
		}
		if err != nil {
			return Registry{}, fmt.Errorf("%s: %w", up.Host, err)
		}
	}
	if (cert == "") != (key == "") {
		return Registry{}, fmt.Errorf("%s: options cert and key need each other", up.Host)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return Registry{}, fmt.Errorf("%s: client certificate: %w", up.Host, err)
		}
		e.ClientCert = &pair
	}
	return e, nil
}

func readCAs(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("option ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("option ca: %s holds no PEM certificate", file)
	}
	return pool, nil
}
