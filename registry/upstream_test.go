package registry

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]Upstream{
		"docker.io":                {"docker.io", url.URL{Scheme: "https", Host: "registry-1.docker.io"}},
		"index.docker.io":          {"docker.io", url.URL{Scheme: "https", Host: "registry-1.docker.io"}},
		"GHCR.io":                  {"ghcr.io", url.URL{Scheme: "https", Host: "ghcr.io"}},
		"localhost:5000":           {"localhost:5000", url.URL{Scheme: "https", Host: "localhost:5000"}},
		"a.b=http://127.0.0.1:1":   {"a.b", url.URL{Scheme: "http", Host: "127.0.0.1:1"}},
		"a.b=https://[::1]:1/":     {"a.b", url.URL{Scheme: "https", Host: "[::1]:1"}},
		"docker.io=https://h/a/b/": {"docker.io", url.URL{Scheme: "https", Host: "h", Path: "a/b"}},
	} {
		if got, err := ParseUpstream(in); err != nil || got != want {
			t.Errorf("ParseUpstream(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, mention := range map[string]string{
		"":                      "host",
		"https://a.b":           "without scheme",
		"a.b/c":                 "without scheme or path",
		"a b":                   "a b",
		"a.b=":                  "http://",
		"a.b=ftp://x":           "http://",
		"a.b=http://":           "host is missing",
		"a.b=http://:80":        "host is missing",
		"a.b=http://u:p@x":      "credentials",
		"a.b=http://x?y":        "query",
		"a.b=http://x/UPPER":    "UPPER",
		"a.b=http://x:notaport": "port",
	} {
		if _, err := ParseUpstream(in); err == nil || !strings.Contains(err.Error(), mention) {
			t.Errorf("ParseUpstream(%q) fails with %v, want a mention of %q", in, err, mention)
		}
	}
}

func upstreams(t *testing.T, fallback string, hosts ...string) *Upstreams {
	t.Helper()
	var list []Upstream
	for _, h := range hosts {
		u, err := ParseUpstream(h)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, u)
	}
	u, err := NewUpstreams(list, fallback)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSelect(t *testing.T) {
	u := upstreams(t, "docker.io", "docker.io", "ghcr.io", "localhost:5000", "127.0.0.1:5000")
	type in struct{ ns, name string }
	for c, want := range map[in]Repository{
		{"ghcr.io", "a/b"}:              {"ghcr.io", "a/b"},
		{"GHCR.IO", "a/b"}:              {"ghcr.io", "a/b"},
		{"docker.io", "library/x"}:      {"docker.io", "library/x"},
		{"registry-1.docker.io", "x"}:   {"docker.io", "library/x"},
		{"", "x"}:                       {"docker.io", "library/x"},
		{"", "a/x"}:                     {"docker.io", "a/x"},
		{"", "docker.io/x"}:             {"docker.io", "library/x"},
		{"", "ghcr.io/a/b"}:             {"ghcr.io", "a/b"},
		{"", "localhost:5000/x"}:        {"localhost:5000", "x"},
		{"127.0.0.1:5000", "x"}:         {"127.0.0.1:5000", "x"},
		{"ghcr.io", "docker.io/x"}:      {"ghcr.io", "docker.io/x"}, // ns goes first
		{"localhost:5000", "ghcr.io/x"}: {"localhost:5000", "ghcr.io/x"},
	} {
		var ns []string
		if c.ns != "" {
			ns = []string{c.ns}
		}
		if got, err := u.Select(ns, c.name); err != nil || got != want {
			t.Errorf("Select(%q, %q) = %v, %v; want %v", c.ns, c.name, got, err, want)
		}
	}
}

// A host with a port in a path without colons is the same host.
func TestPathPrefix(t *testing.T) {
	u := upstreams(t, "docker.io", "docker.io", "ghcr.io", "localhost:5000", "127.0.0.1:5000", "r.example.com:443", "kind-registry:5000")
	for _, host := range u.Hosts() {
		prefix, err := PathPrefix(host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := reference.ParseNamed("127.0.0.1:4400/" + prefix + "/apps/x"); err != nil {
			t.Errorf("%s as %s: %v", host, prefix, err)
		}
		p, err := ParsePath("/v2/" + prefix + "/apps/x/manifests/v1")
		if err != nil {
			t.Errorf("%s as %s: %v", host, prefix, err)
		}
		if got, err := u.Select(nil, p.Name); err != nil || got != (Repository{host, "apps/x"}) {
			t.Errorf("Select of %s = %v, %v; want apps/x of %s", p.Name, got, err, host)
		}
	}
	if got, err := PathPrefix("[::1]:5000"); err == nil {
		t.Errorf("an IPv6 address becomes %q, which no image name can hold", got)
	}
	// What is no port is part of a repository's name, and so is what could be
	// a host that is not allowed.
	for _, name := range []string{"kind-registry_5001/x", "kind-registry_0500/x", "kind-registry_65536/x", "kind-registry_/x", "my_app/x", "my_app_5000/x", "kind-registry_5000"} {
		want := name
		if !strings.Contains(name, "/") {
			want = "library/" + name
		}
		if got, err := u.Select(nil, name); err != nil || got != (Repository{"docker.io", want}) {
			t.Errorf("Select(%q) = %v, %v; want it at docker.io", name, got, err)
		}
	}
	// With ns the name is the repository's, whatever it looks like.
	if got, err := u.Select([]string{"ghcr.io"}, "kind-registry_5000/x"); err != nil || got != (Repository{"ghcr.io", "kind-registry_5000/x"}) {
		t.Errorf("with ns: %v, %v", got, err)
	}
	for _, name := range []string{"localhost_5001/x", "127.0.0.1_5001/x", "r.example.com_5000/x"} {
		if got, err := u.Select(nil, name); !is4xx(err) {
			t.Errorf("Select(%q) = %v, %v; want that the registry is not allowed", name, got, err)
		}
	}
}

// Whatever is not an allowed host, to the letter, is refused: the allow-list
// is the first wall against requests to other places.
func TestSelectRefuses(t *testing.T) {
	u := upstreams(t, "docker.io", "docker.io", "localhost:5000")
	for _, ns := range []string{
		"", "169.254.169.254", "evil.io", "localhost", "localhost:5001", "[::1]:5000", "127.0.0.1:5000",
		"http://docker.io", "docker.io/", "docker.io/x", "user@docker.io", "user:pw@docker.io", "docker.io:443",
		"2130706433:5000", "0x7f.1:5000", "127.1:5000", "0177.0.0.1:5000", "docker.io.", "docker.io\x00", " docker.io",
		"docker.io?x", "docker.io#x", "dOcker.io\n", "[::ffff:127.0.0.1]:5000", strings.Repeat("a", 4096),
	} {
		if got, err := u.Select([]string{ns}, "x"); !is4xx(err) {
			t.Errorf("Select(ns %.40q) = %v, %v; want a 4xx", ns, got, err)
		}
	}
	for _, name := range []string{"169.254.169.254/x", "evil.io/x", "localhost/x", "localhost:5001/x"} {
		if got, err := u.Select(nil, name); !is4xx(err) {
			t.Errorf("Select(%q) = %v, %v; want a 4xx", name, got, err)
		}
	}
	if got, err := u.Select([]string{"docker.io", "docker.io"}, "x"); !is4xx(err) {
		t.Errorf("ns given twice: %v, %v; want a 4xx", got, err)
	}
	if got, err := upstreams(t, "", "docker.io").Select(nil, "x"); !is4xx(err) {
		t.Errorf("no upstream at all: %v, %v; want a 4xx", got, err)
	}
	if got, err := upstreams(t, "docker.io", "ghcr.io").Select(nil, "x"); !is4xx(err) {
		t.Errorf("default not allowed: %v, %v; want a 4xx", got, err)
	}
}

func TestUpstreamGivenTwice(t *testing.T) {
	up, _ := ParseUpstream("a.b")
	if _, err := NewUpstreams([]Upstream{up, up}, ""); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("got %v", err)
	}
}

func is4xx(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status >= 400 && e.Status <= 499
}

func FuzzSelect(f *testing.F) {
	f.Add("docker.io", "library/x")
	f.Add("", "ghcr.io/x")
	up, _ := ParseUpstream("docker.io")
	u, _ := NewUpstreams([]Upstream{up}, "docker.io")
	f.Fuzz(func(t *testing.T, ns, name string) {
		for _, list := range [][]string{nil, {ns}, {ns, ns}} {
			r, err := u.Select(list, name)
			if err != nil && !is4xx(err) {
				t.Fatalf("error is not a 4xx: %v", err)
			}
			if err == nil && r.Host != "docker.io" {
				t.Fatalf("Select(%q, %q) leads to %v", list, name, r)
			}
		}
	})
}

// A name with capitals is no name: not that of another image either.
func TestCapitalsAreNoName(t *testing.T) {
	u := upstreams(t, "docker.io", "docker.io")
	for _, c := range [][2]string{{"docker.io", "UPPER.x/app"}, {"docker.io", "UPPER/app"}, {"docker.io", "app/UPPER"}} {
		_, err := u.Select([]string{c[0]}, c[1])
		if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 400 || e.Code != CodeNameInvalid {
			t.Errorf("Select(%q): %v", c, err)
		}
	}
	for _, path := range []string{"/v2/UPPER/app/manifests/v1", "/v2/docker.io/UPPER/manifests/v1", "/v2/Library/blobs/" + someSHA256} {
		_, err := ParsePath(path)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Status != 400 || e.Code != CodeNameInvalid {
			t.Errorf("ParsePath(%q): %v", path, err)
		}
	}
}
