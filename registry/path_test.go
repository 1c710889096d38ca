package registry

import (
	"errors"
	"strings"
	"testing"
)

const (
	someSHA256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	someSHA512 = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Path
	}{
		{"/v2", Path{Kind: Ping}},
		{"/v2/", Path{Kind: Ping}},
		{"/v2/alpine/manifests/3.20", Path{Kind: Manifests, Name: "alpine", Tag: "3.20"}},
		{"/v2/library/alpine/manifests/" + someSHA256, Path{Kind: Manifests, Name: "library/alpine", Digest: someSHA256}},
		{"/v2/a/b/c/blobs/" + someSHA512, Path{Kind: Blobs, Name: "a/b/c", Digest: someSHA512}},
		{"/v2/blobs/manifests/blobs/" + someSHA256, Path{Kind: Blobs, Name: "blobs/manifests", Digest: someSHA256}},
		{"/v2/localhost:5000/x/tags/list", Path{Kind: Tags, Name: "localhost:5000/x"}},
		{"/v2/[::1]:5000/x/tags/list", Path{Kind: Tags, Name: "[::1]:5000/x"}},
		{"/v2/r.example.com_5000/x/tags/list", Path{Kind: Tags, Name: "r.example.com_5000/x"}},
		{"/v2/ghcr.io/a/b/referrers/" + someSHA256, Path{Kind: Referrers, Name: "ghcr.io/a/b", Digest: someSHA256}},
	} {
		got, err := ParsePath(c.in)
		if err != nil || got != c.want {
			t.Errorf("ParsePath(%q) = %+v, %v; want %+v", c.in, got, err, c.want)
		}
	}
}

func TestParsePathRefuses(t *testing.T) {
	for in, status := range map[string]int{
		"":                                   404,
		"/":                                  404,
		"/v1/":                               404,
		"/v2/x":                              404,
		"/v2/x/uploads/y":                    404,
		"/v2/x/tags/other":                   404,
		"/v2//manifests/latest":              400,
		"/v2/../etc/passwd/manifests/latest": 400,
		"/v2/a/../b/manifests/latest":        400,
		"/v2/a/./b/manifests/latest":         400,
		"/v2/a//b/manifests/latest":          400,
		"/v2/A/manifests/latest":             400,
		"/v2/a\x00b/manifests/latest":        400,
		"/v2/a/manifests/..":                 400,
		"/v2/a/manifests/" + strings.Repeat("t", 129):              400,
		"/v2/a/manifests/\x00":                                     400,
		"/v2/a/manifests/":                                         400,
		"/v2/" + strings.Repeat("a/", 2048) + "a/manifests/latest": 400,
		"/v2/a/blobs/latest":                                       400,
		"/v2/a/blobs/sha256:abc":                                   400,
		"/v2/a/blobs/" + strings.ToUpper(someSHA256):               400,
		"/v2/a/blobs/sha256:" + strings.ToUpper(someSHA256[7:]):    400,
		"/v2/a/blobs/sha384:" + strings.Repeat("a", 96):            400,
		"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e":         400,
		"/v2/a/blobs/" + someSHA256 + "0":                          400,
		"/v2/a@b:5/x/manifests/latest":                             400,
		"/v2/a.b_0/x/manifests/latest":                             400,
		"/v2/a.b_65536/x/manifests/latest":                         400,
		"/v2/a_b.c_5000/x/manifests/latest":                        400,
		"/v2/user@host.io/x/manifests/latest":                      400,
	} {
		_, err := ParsePath(in)
		var e *Error
		if !errors.As(err, &e) || e.Status != status {
			t.Errorf("ParsePath(%.60q) fails with %v, want status %d", in, err, status)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add("/v2/library/alpine/manifests/latest")
	f.Add("/v2/localhost:5000/x/blobs/" + someSHA256)
	f.Add("/v2/a/../b/manifests/x")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Status < 400 || e.Status > 499 {
				t.Fatalf("error is not a 4xx: %v", err)
			}
			return
		}
		for _, part := range strings.Split(p.Name, "/") {
			if part == "." || part == ".." || (part == "" && p.Kind != Ping) {
				t.Fatalf("name %q has the component %q", p.Name, part)
			}
		}
		if strings.ContainsAny(p.Name+p.Tag, "\x00\\%?#@ \r\n") {
			t.Fatalf("name %q or tag %q holds a forbidden character", p.Name, p.Tag)
		}
		if p.Digest != "" {
			if _, err := ParseDigest(string(p.Digest)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
