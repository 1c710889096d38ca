package registry

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// DockerHub is the upstream name of Docker Hub. Its API answers at another
// host, and images without a path live under "library/".
const DockerHub = "docker.io"

// Upstream is a registry that Shoal may be asked for: the host as image names
// carry it, and the origin that answers for it.
type Upstream struct {
	// Host is the name in lower case, with the port if there is one.
	Host string
	// Endpoint is the origin: http or https, a host and optionally a path,
	// which then precedes the repository name (https://harbor.example/proxy
	// makes library/x the repository proxy/library/x).
	Endpoint url.URL
}

// ParseUpstream reads HOST or HOST=URL as given to --registry. Without a URL
// the endpoint is https at the host itself. Errors name the value.
func ParseUpstream(s string) (Upstream, error) {
	name, endpoint, given := strings.Cut(s, "=")
	host, err := ParseHost(name)
	if err != nil {
		return Upstream{}, err
	}
	if !given {
		return Upstream{Host: host, Endpoint: url.URL{Scheme: "https", Host: apiHost(host)}}, nil
	}
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return Upstream{}, fmt.Errorf("registry %q: URL %q: %w", host, endpoint, err)
	}
	return Upstream{Host: host, Endpoint: *u}, nil
}

func parseEndpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("want http://… or https://…")
	case u.Hostname() == "":
		return nil, errors.New("the host is missing")
	case u.User != nil:
		return nil, errors.New("credentials do not belong in it: put them into docker's config.json")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("a query or fragment has no meaning here")
	}
	if u.Path = strings.Trim(path.Clean("/"+u.Path), "/"); u.Path != "" {
		if !namePattern.MatchString("x/" + u.Path) {
			return nil, fmt.Errorf("path %q cannot precede a repository name", u.Path)
		}
	}
	u.RawPath = ""
	return u, nil
}

// apiHost returns the host that serves the API of an upstream.
func apiHost(host string) string {
	if host == DockerHub {
		return "registry-1.docker.io"
	}
	return host
}

// ParseHost returns the canonical form of an upstream host: lower case, with
// the names that Docker Hub also goes by folded into DockerHub. Anything but
// a host with an optional port is an error that names s.
func ParseHost(s string) (string, error) {
	host := strings.ToLower(s)
	if len(host) > 255 || !hostPattern.MatchString(host) {
		return "", fmt.Errorf("registry host %.200q: want HOST or HOST:PORT, without scheme or path", s)
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return DockerHub, nil
	}
	return host, nil
}

// The library's patterns are not anchored, and its FindString stops at the
// first way to match, not at the longest.
var (
	hostPattern = whole(reference.DomainRegexp)
	namePattern = whole(reference.NameRegexp)
)

func whole(re *regexp.Regexp) *regexp.Regexp {
	return regexp.MustCompile("^(?:" + re.String() + ")$")
}

// PublicRegistries are the upstreams that are allowed when none is named.
func PublicRegistries() []string {
	return []string{
		DockerHub, "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "public.ecr.aws",
		"mcr.microsoft.com", "nvcr.io", "registry.gitlab.com", "cgr.dev",
	}
}

// Upstreams is the allow-list: what is not in it is never asked.
type Upstreams struct {
	byHost map[string]Upstream
	// fallback is the host for requests that name none, or "".
	fallback string
}

// NewUpstreams returns the allow-list of the given upstreams. The upstream
// of a request that names none is defaultHost; it need not be in the list,
// then such requests are refused. An upstream given twice is an error.
func NewUpstreams(list []Upstream, defaultHost string) (*Upstreams, error) {
	u := &Upstreams{byHost: make(map[string]Upstream, len(list))}
	for _, up := range list {
		if _, twice := u.byHost[up.Host]; twice {
			return nil, fmt.Errorf("registry %q is given twice", up.Host)
		}
		u.byHost[up.Host] = up
	}
	if defaultHost != "" {
		host, err := ParseHost(defaultHost)
		if err != nil {
			return nil, fmt.Errorf("default registry: %w", err)
		}
		u.fallback = host
	}
	return u, nil
}

// Get returns the upstream with that canonical host.
func (u *Upstreams) Get(host string) (Upstream, bool) {
	up, ok := u.byHost[host]
	return up, ok
}

// Hosts returns the allowed hosts in order.
func (u *Upstreams) Hosts() []string {
	hosts := make([]string, 0, len(u.byHost))
	for h := range u.byHost {
		hosts = append(hosts, h)
	}
	slices.Sort(hosts)
	return hosts
}

// Select finds the repository that a request means. The upstream is, in this
// order: the ns parameter (containerd, BuildKit, Docker with the containerd
// store), a host in front of the name (CRI-O, podman, skopeo), as it is or as
// PathPrefix writes it, the default.
// ns holds every value of the parameter that came.
//
// Errors are an *Error to answer the request with.
func (u *Upstreams) Select(ns []string, name string) (Repository, error) {
	host, name, err := u.split(ns, name)
	if err != nil {
		return Repository{}, err
	}
	if _, allowed := u.byHost[host]; !allowed {
		return Repository{}, &Error{
			Status: 403, Code: CodeDenied,
			Message: fmt.Sprintf("registry %q is not allowed here: allow it with --registry", host),
		}
	}
	if host == DockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return Repository{Host: host, Name: name}, nil
}

func (u *Upstreams) split(ns []string, name string) (host, rest string, err error) {
	switch len(ns) {
	case 0:
	case 1:
		if host, err = ParseHost(ns[0]); err != nil {
			return "", "", &Error{Status: 400, Code: CodeNameInvalid, Message: "parameter ns: " + err.Error()}
		}
		if strings.Contains(name, ":") {
			return "", "", &Error{Status: 400, Code: CodeNameInvalid, Message: fmt.Sprintf("repository name %.100q names a host beside the parameter ns", name)}
		}
		if !namePattern.MatchString("x/" + name) {
			return "", "", &Error{Status: 400, Code: CodeNameInvalid, Message: fmt.Sprintf("repository name %.100q is not valid", name)}
		}
		return host, name, nil
	default:
		return "", "", &Error{Status: 400, Code: CodeNameInvalid, Message: "parameter ns is given more than once"}
	}
	if first, rest, ok := strings.Cut(name, "/"); ok {
		if escaped, ok := hostOfPathPrefix(first); ok {
			// Without a dot it may be a repository as well: then it is a
			// host if the host is allowed.
			name, _, _ := strings.Cut(escaped, ":")
			if _, allowed := u.byHost[escaped]; allowed || looksLikeHost(name) {
				return escaped, rest, nil
			}
		}
		if looksLikeHost(first) {
			if host, err := ParseHost(first); err == nil {
				return host, rest, nil
			}
		}
	}
	if u.fallback == "" {
		return "", "", &Error{Status: 404, Code: CodeDenied, Message: "the request names no registry and there is no default: set --default-registry"}
	}
	return u.fallback, name, nil
}

// PathPrefix returns a host as it stands in front of a repository name where
// names may hold no colon, as in the mirrors of registries.conf: HOST:PORT is
// HOST_PORT there. No host name holds an underscore, so it means nothing else.
// An IPv6 address cannot be written so.
func PathPrefix(host string) (string, error) {
	if strings.ContainsAny(host, "[]") {
		return "", fmt.Errorf("registry %s: an IPv6 address cannot stand in the path of an image name: give the registry a name in the DNS or in /etc/hosts", host)
	}
	return strings.Replace(host, ":", "_", 1), nil
}

// portPattern is a port as PathPrefix writes it, in canonical form.
var portPattern = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)

// hostOfPathPrefix returns the host HOST:PORT that PathPrefix writes so.
func hostOfPathPrefix(s string) (host string, ok bool) {
	i := strings.LastIndexByte(s, '_')
	if i < 1 || !portPattern.MatchString(s[i+1:]) {
		return "", false
	}
	if port, err := strconv.ParseUint(s[i+1:], 10, 16); err != nil || port == 0 {
		return "", false
	}
	if strings.ContainsAny(s[:i], ":_") {
		return "", false
	}
	host, err := ParseHost(s[:i] + ":" + s[i+1:])
	return host, err == nil
}

// looksLikeHost tells a host from the first component of a repository name,
// by the rule of image references: a dot, a colon, or localhost.
func looksLikeHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:")
}
