package runtimes

import (
	"slices"
	"strings"
	"testing"
)

// traps returns the texts of the traps that an inspection found.
func (in *Inspection) traps() []string {
	var texts []string
	for _, f := range in.Findings {
		if f.Trap {
			texts = append(texts, f.Check+": "+f.Text)
		}
	}
	return texts
}

// Every runtime is found wanting before an install and in order after it,
// whatever it was.
func TestInspectAfterInstall(t *testing.T) {
	for runtime, files := range map[string]map[string]string{
		Containerd: {"etc/containerd/config.toml": plainConfig},
		K3s:        {"etc/rancher/k3s/registries.yaml": "mirrors:\n  docker.io:\n    endpoint: [\"https://a\"]\n"},
		CRIO:       {"etc/crio/crio.conf": "", "etc/containers/registries.conf": "[[registry]]\nlocation = \"docker.io\"\n"},
		Docker:     {"etc/docker/daemon.json": "{\"registry-mirrors\": [\"https://a\"]}"},
		BuildKit:   {"etc/buildkit/buildkitd.toml": "[registry.\"docker.io\"]\n  mirrors = [\"a\"]\n"},
	} {
		t.Run(runtime, func(t *testing.T) {
			d := lay(t, t.TempDir(), files)
			o := Options{Mirror: mirror}
			if got := Inspect(d, runtime, o).traps(); len(got) != 1 {
				t.Errorf("before an install the traps are %q, want one", got)
			}
			install(t, d, runtime, options("docker.io"))
			in := Inspect(d, runtime, o)
			if got := in.traps(); len(got) > 0 {
				t.Errorf("after an install there are still traps: %q", got)
			}
			if !slices.Contains(in.Registries, "docker.io") {
				t.Errorf("it asks the mirror for %q, want docker.io among them", in.Registries)
			}
			if o.Registries = []string{"r.example.com"}; runtime != Docker {
				if got := Inspect(d, runtime, o).traps(); len(got) != 1 {
					t.Errorf("for a registry that was not installed the traps are %q, want one", got)
				}
			}
		})
	}
}

// Without a registry to look for, those count for which the mirror was
// installed, whichever they are.
func TestInspectOtherRegistries(t *testing.T) {
	for runtime, files := range map[string]map[string]string{
		Containerd: {"etc/containerd/config.toml": plainConfig},
		K3s:        {"etc/rancher/k3s/registries.yaml": "mirrors:\n  docker.io:\n    endpoint: [\"https://a\"]\n"},
		CRIO:       {"etc/crio/crio.conf": "", "etc/containers/registries.conf": ""},
		BuildKit:   {"etc/buildkit/buildkitd.toml": "[registry.\"docker.io\"]\n  mirrors = [\"a\"]\n"},
	} {
		d := lay(t, t.TempDir(), files)
		install(t, d, runtime, options("ghcr.io", "quay.io"))
		in := Inspect(d, runtime, Options{Mirror: mirror})
		if got := in.traps(); len(got) > 0 || !slices.Equal(in.Registries, []string{"ghcr.io", "quay.io"}) {
			t.Errorf("%s: of %q the traps are %q", runtime, in.Registries, got)
		}
	}
	d := lay(t, t.TempDir(), map[string]string{"etc/rancher/rke2/registries.yaml": ""})
	install(t, d, RKE2, options(Everything))
	in := Inspect(d, RKE2, Options{Mirror: mirror})
	if got := in.traps(); len(got) > 0 || !slices.Equal(in.Registries, []string{Everything}) {
		t.Errorf("rke2: of %q the traps are %q", in.Registries, got)
	}
}

// k3s that has not been restarted since shows in what it made of its file.
func TestInspectGenerated(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{
		"etc/rancher/k3s/registries.yaml": "mirrors:\n  docker.io:\n    endpoint:\n    - " + mirror + "\n",
		"var/lib/rancher/k3s/agent/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n" +
			"config_path = \"/var/lib/rancher/k3s/agent/etc/containerd/certs.d\"\n",
	})
	got := Inspect(d, K3s, Options{Mirror: mirror}).traps()
	if len(got) != 1 || !strings.Contains(got[0], "no hosts.toml below /var/lib/rancher/k3s") {
		t.Errorf("the traps are %q, want that k3s has written no hosts.toml", got)
	}
}

// What containerd would reject depends on its release.
func TestHostsProblems(t *testing.T) {
	for _, c := range []struct {
		release Release
		text    string
		want    string // nothing: there is no problem
	}{
		{Release{1, 6, true}, "server = \"https://a\"\n", "no [host.\"…\"] table"},
		{Release{2, 0, true}, "server = \"https://a\"\n", ""},
		{Release{1, 7, true}, "[host]\n\"https://a\" = {}\n", ""},
		{Release{2, 1, true}, "[host]\n\"https://a\" = {}\n", "inline table"},
		{Release{2, 1, true}, "[host.\"https://a\"]\ncapabilities = [\"referrers\"]\n", "referrers"},
		{Release{2, 2, true}, "[host.\"https://a\"]\ncapabilities = [\"referrers\"]\n", ""},
		{Release{2, 2, true}, "[host.\"https://a\"]\ncapabilities = [\"fetch\"]\n", "fetch"},
		{Release{2, 2, true}, "[host.\"https://a\"]\nca = 1\n", "neither a string nor a list"},
		{Release{2, 2, true}, "[host.\"https://a\"]\nheader = \"x\"\n", "header that is no table"},
		{Release{1, 6, true}, "[host.\"https://a\"]\ncapabilities = [\"pull\", \"Resolve\", \"push\"]\nca = [\"a\"]\n", ""},
	} {
		f, err := parseHosts([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(f.problems(c.release), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s with %q: %q, want %q", c.release, c.text, got, c.want)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for text, want := range map[string]string{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3": "1.6",
		"containerd github.com/containerd/containerd/v2 v2.2.1 0123abcd":              "2.2",
		"containerd github.com/k3s-io/containerd v1.7.11-k3s2":                        "1.7",
		"(devel)": "unknown",
	} {
		if r, _ := ParseRelease(text); r.String() != want {
			t.Errorf("ParseRelease(%q) = %s, want %s", text, r, want)
		}
	}
}

// A location that cannot be part of an image name fails every pull of the
// registry, so it is found whoever wrote it, and an install writes none.
func TestLocationsOfRegistriesConf(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{
		"etc/containers/registries.conf": "[[registry]]\nlocation = \"localhost:5000\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:4400/localhost:5000\"\n" +
			"[[registry]]\nprefix = \"*.example.com\"\n[[registry]]\nlocation = \"10.0.0.1:5000/team\"\n[[registry]]\nlocation = \"[::1]:5000\"\n",
	})
	got := Inspect(d, CRIO, Options{Mirror: mirror}).traps()
	if len(got) != 2 || !strings.Contains(got[0], `every pull of localhost:5000 fails: location "127.0.0.1:4400/localhost:5000"`) {
		t.Errorf("the traps are %q", got)
	}
	install(t, d, CRIO, options("localhost:5000", "10.0.0.1:5000/team"))
	in := Inspect(d, CRIO, Options{Mirror: mirror})
	if !slices.Equal(in.Registries, []string{"10.0.0.1:5000/team", "localhost:5000"}) {
		t.Errorf("after an install it asks the mirror for %q; traps: %q", in.Registries, in.traps())
	}
	if _, err := NewPlan(lay(t, t.TempDir(), nil), CRIO, options("[::1]:5000")); err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("an install for an IPv6 address: %v", err)
	}
}
