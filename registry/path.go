package registry

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Repository is a repository at an upstream.
type Repository struct {
	// Host is the canonical host of the upstream.
	Host string
	// Name is the name of the repository there, such as library/alpine.
	Name string
}

// String returns the repository as image names write it.
func (r Repository) String() string { return r.Host + "/" + r.Name }

// Kind is an endpoint of the pull API.
type Kind int

// The endpoints, by the names of the OCI distribution specification.
const (
	Ping      Kind = iota // /v2/
	Manifests             // /v2/<name>/manifests/<tag or digest>
	Blobs                 // /v2/<name>/blobs/<digest>
	Referrers             // /v2/<name>/referrers/<digest>
	Tags                  // /v2/<name>/tags/list
)

// Path is a parsed path of the pull API.
type Path struct {
	Kind Kind
	// Name is the repository name as it came, possibly with an upstream
	// host in front. Empty for Ping.
	Name string
	// Tag is set for Manifests by tag.
	Tag string
	// Digest is set for Manifests by digest, Blobs and Referrers.
	Digest digest.Digest
}

// maxNameLength is the bound that the distribution specification recommends
// for host and name together.
const maxNameLength = 255

var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// ParsePath parses a decoded request path. Names, tags and digests are held
// to their grammar, so that nothing which is not one of them (dot segments,
// control characters) goes further. Errors are an *Error to answer the
// request with.
func ParsePath(p string) (Path, error) {
	rest, ok := strings.CutPrefix(p, "/v2/")
	if !ok {
		if p == "/v2" {
			return Path{Kind: Ping}, nil
		}
		return Path{}, &Error{Status: 404, Code: CodeUnsupported, Message: "not a path of the registry API"}
	}
	if rest == "" {
		return Path{Kind: Ping}, nil
	}
	name, kind, ref, ok := cutKind(rest)
	if !ok {
		return Path{}, &Error{Status: 404, Code: CodeUnsupported, Message: "not a path of the pull API"}
	}
	out := Path{Kind: kind, Name: name}
	if err := checkName(name); err != nil {
		return Path{}, err
	}
	var err error
	switch {
	case kind == Tags:
		if ref != "list" {
			return Path{}, &Error{Status: 404, Code: CodeUnsupported, Message: "not a path of the pull API"}
		}
	case kind == Manifests && !strings.Contains(ref, ":"):
		if !tagPattern.MatchString(ref) {
			return Path{}, &Error{Status: 400, Code: CodeManifestInvalid, Message: fmt.Sprintf("tag %.200q is not valid", ref)}
		}
		out.Tag = ref
	default:
		if out.Digest, err = ParseDigest(ref); err != nil {
			return Path{}, &Error{Status: 400, Code: CodeDigestInvalid, Message: err.Error()}
		}
	}
	return out, nil
}

// cutKind splits "name/kind/ref". The kind is the last but one component: a
// repository may itself be called blobs.
func cutKind(s string) (name string, kind Kind, ref string, ok bool) {
	end := strings.LastIndexByte(s, '/')
	if end < 0 {
		return "", 0, "", false
	}
	ref = s[end+1:]
	start := strings.LastIndexByte(s[:end], '/')
	if start < 0 {
		return "", 0, "", false
	}
	switch s[start+1 : end] {
	case "manifests":
		kind = Manifests
	case "blobs":
		kind = Blobs
	case "referrers":
		kind = Referrers
	case "tags":
		kind = Tags
	default:
		return "", 0, "", false
	}
	return s[:start], kind, ref, true
}

func checkName(name string) error {
	bad := func(why string) error {
		return &Error{Status: 400, Code: CodeNameInvalid, Message: fmt.Sprintf("repository name %.100q %s", name, why)}
	}
	if len(name) > maxNameLength {
		return bad(fmt.Sprintf("is longer than %d bytes", maxNameLength))
	}
	host, path, ok := strings.Cut(name, "/")
	if !ok || !looksLikeHost(host) {
		host, path = "", name
	}
	if _, escaped := hostOfPathPrefix(host); host != "" && !escaped && !hostPattern.MatchString(strings.ToLower(host)) {
		return bad("starts with something that is not a host")
	}
	if !namePattern.MatchString("x/" + path) {
		return bad("is not valid")
	}
	return nil
}
