package runtimes

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const mirror = "http://127.0.0.1:4400"

// node lays out files, named by their path, and returns the root.
func lay(t testing.TB, root string, files map[string]string) Disk {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Disk{root}
}

const (
	plainConfig = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"
	houseHosts  = "server = \"https://registry-1.docker.io\"\n\n[host.\"https://cache.example.com\"]\n"
)

func options(registries ...string) Options {
	return Options{Mirror: mirror, Registries: registries}
}

// What people changed after an install stays through an uninstall, and only
// what was put in goes.
func TestUninstallKeepsLaterEdits(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{
		"etc/containerd/config.toml":                  plainConfig,
		"etc/containerd/certs.d/docker.io/hosts.toml": houseHosts,
		"etc/containerd/certs.d/quay.io/hosts.toml":   houseHosts,
	})
	install(t, d, Containerd, options("docker.io", "ghcr.io", "quay.io"))
	const more = "\n[host.\"https://new.example.com\"]\n"
	for _, registry := range []string{"docker.io", "ghcr.io"} {
		appendTo(t, d, "/etc/containerd/certs.d/"+registry+"/hosts.toml", more)
	}
	if err := os.Remove(filepath.Join(d.Root, "etc/containerd/certs.d/quay.io/hosts.toml")); err != nil {
		t.Fatal(err)
	}
	uninstall(t, d, Containerd)
	for registry, want := range map[string]string{"docker.io": houseHosts + more, "ghcr.io": more, "quay.io": ""} {
		got, err := read(d, "/etc/containerd/certs.d/"+registry+"/hosts.toml")
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", registry, got, err, want)
		}
	}
}

// obscure edits a hosts.toml so that what was put in cannot be told any more from
// the rest.
func obscure(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(content, []byte("capabilities"), []byte("# capabilities"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A file in which what was put in cannot be told any more from the rest is
// left to people.
func TestUninstallLeavesWhatIsUnclear(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{
		"etc/containerd/config.toml":                  plainConfig,
		"etc/containerd/certs.d/docker.io/hosts.toml": houseHosts,
	})
	install(t, d, Containerd, options("docker.io"))
	obscure(t, filepath.Join(d.Root, "etc/containerd/certs.d/docker.io/hosts.toml"))
	s, err := d.State(Containerd)
	if err != nil {
		t.Fatal(err)
	}
	if _, unsure, err := s.Uninstall(d); err != nil || len(unsure) != 1 {
		t.Errorf("unsure of %v, %v; want the one file", unsure, err)
	}
}

// An install with other flags brings the node to what they say, from whatever
// an earlier one made of it.
func TestInstallAgain(t *testing.T) {
	files := map[string]string{"etc/containerd/config.toml": plainConfig, "etc/containerd/certs.d/docker.io/hosts.toml": houseHosts}
	d := lay(t, t.TempDir(), files)
	before := snapshot(t, d.Root)
	install(t, d, Containerd, options("docker.io", "ghcr.io"))
	other := options("docker.io", "quay.io")
	other.Mirror = "http://127.0.0.1:5500"
	install(t, d, Containerd, other)

	once := lay(t, t.TempDir(), files)
	install(t, once, Containerd, other)
	got, want := snapshot(t, filepath.Join(d.Root, "etc")), snapshot(t, filepath.Join(once.Root, "etc"))
	if got != want {
		t.Errorf("after two installs the node has\n%s\nafter the second alone\n%s", got, want)
	}
	uninstall(t, d, Containerd)
	if after := snapshot(t, d.Root); after != before {
		t.Errorf("after uninstall:\n%s\nbefore:\n%s", after, before)
	}
}

// An install that is cut short, here because a file changes under its hands,
// leaves what an uninstall brings back to the byte and another install completes.
func TestInterruptedInstall(t *testing.T) {
	crio := map[string]string{"etc/containers/registries.conf": "unqualified-search-registries = []\n"}
	containerd := map[string]string{"etc/containerd/config.toml": strings.Replace(plainConfig, "/etc/containerd/certs.d", "", 1), "etc/containerd/certs.d/docker.io/hosts.toml": houseHosts}
	for _, c := range []struct {
		runtime string
		files   map[string]string
	}{{Containerd, containerd}, {CRIO, crio}} {
		other := options("docker.io", "quay.io")
		other.Mirror = "http://127.0.0.1:5500"
		once := lay(t, t.TempDir(), c.files)
		install(t, once, c.runtime, other)
		for _, finish := range []bool{false, true} {
			for cut, more := 0, true; more; cut++ {
				d := lay(t, t.TempDir(), c.files)
				before := snapshot(t, d.Root)
				install(t, d, c.runtime, options("docker.io", "ghcr.io"))
				_, steps, next, err := prepare(d, c.runtime, other)
				if err != nil {
					t.Fatal(err)
				}
				if more = cut < len(steps)-1; len(steps) == 0 {
					t.Fatal("the second install has nothing to do")
				}
				steps[cut].Before = []byte("what was seen")
				if err := d.Apply(steps, next); err == nil || !strings.Contains(err.Error(), steps[cut].Path) {
					t.Fatalf("a file that was changed meanwhile: %v", err)
				}
				if finish {
					install(t, d, c.runtime, other)
					if got, want := snapshot(t, filepath.Join(d.Root, "etc")), snapshot(t, filepath.Join(once.Root, "etc")); got != want {
						t.Errorf("%s, cut before %s: after another install the node has\n%s\nwant\n%s", c.runtime, steps[cut].Path, got, want)
					}
				}
				uninstall(t, d, c.runtime)
				if after := snapshot(t, d.Root); after != before {
					t.Errorf("%s, cut before %s: after uninstall:\n%s\nbefore:\n%s", c.runtime, steps[cut].Path, after, before)
				}
			}
		}
	}
}

// What was edited so that it cannot be told from the rest is neither forgotten
// by an install with other flags nor taken for what was there before.
func TestInstallAgainOverUnclear(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{"etc/containerd/config.toml": plainConfig})
	install(t, d, Containerd, options("docker.io"))
	obscure(t, filepath.Join(d.Root, "etc/containerd/certs.d/docker.io/hosts.toml"))
	p, _ := install(t, d, Containerd, options("docker.io", "quay.io"))
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "docker.io/hosts.toml") {
		t.Errorf("warnings: %v", p.Warnings)
	}
	s, err := d.State(Containerd)
	if err != nil {
		t.Fatal(err)
	}
	if _, unsure, err := s.Uninstall(d); err != nil || len(unsure) != 1 {
		t.Errorf("after another install, uninstall is unsure of %v, %v; want the one file", unsure, err)
	}
	other := options("docker.io", "quay.io")
	other.Mirror = "http://127.0.0.1:5500"
	if _, _, _, err := prepare(d, Containerd, other); err == nil || !strings.Contains(err.Error(), mirror) {
		t.Errorf("an install of another mirror over it: %v", err)
	}
}

// Two runtimes share the place of their backups, which goes with the last.
func TestUninstallOfTwoRuntimes(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{"etc/containerd/config.toml": plainConfig, "etc/docker/daemon.json": "{}"})
	before := snapshot(t, d.Root)
	install(t, d, Containerd, options("docker.io"))
	install(t, d, Docker, options("docker.io"))
	uninstall(t, d, Containerd)
	uninstall(t, d, Docker)
	if after := snapshot(t, d.Root); after != before {
		t.Errorf("after uninstall:\n%s\nbefore:\n%s", after, before)
	}
}

// Links are followed as on the node, never out of it, and stay links.
func TestLinks(t *testing.T) {
	d := lay(t, t.TempDir(), map[string]string{"opt/containerd/config.toml": strings.Replace(plainConfig, "/etc/containerd/certs.d", "", 1)})
	outside := t.TempDir()
	for link, to := range map[string]string{
		"etc/containerd/config.toml": "/opt/containerd/config.toml",
		"etc/containerd/certs.d":     "../../../../../../../.." + outside,
	} {
		link = filepath.Join(d.Root, link)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	install(t, d, Containerd, options("docker.io"))
	if info, err := os.Lstat(filepath.Join(d.Root, "etc/containerd/config.toml")); err != nil || info.Mode().IsRegular() {
		t.Errorf("the link became %v, %v", info.Mode(), err)
	}
	if got, err := os.ReadFile(filepath.Join(d.Root, "opt/containerd/config.toml")); err != nil || string(got) != plainConfig {
		t.Errorf("behind the link stands %q, %v", got, err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside the node are %v, %v", names, err)
	}
}

func appendTo(t *testing.T, d Disk, file, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(d.Root, file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// Whatever tree there is: an install either says why it cannot, and changes
// nothing, or it changes what a second one finds in order; then the mirror is
// the first host of every registry; and an uninstall brings every byte back.
func TestAnyTree(t *testing.T) {
	line := rapid.SampledFrom([]string{
		"", "# a comment", "version = 2", "version = 3", "imports = [\"conf.d/*.toml\"]", "[plugins]", "root = '/x'",
		`[plugins."io.containerd.grpc.v1.cri".registry]`, `  config_path = ""`, `config_path = '/etc/containerd/certs.d'`,
		`config_path = "/a:/b"`, `[plugins.'io.containerd.cri.v1.images']`, `[plugins.'io.containerd.cri.v1.images'.registry]`,
		`registry.config_path = "/c"`, `registry = {}`, `[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]`,
		`endpoint = ["https://m"]`, `endpoint = []`, `disabled_plugins = ["cri"]`, "[broken",
	})
	host := rapid.SampledFrom([]string{
		"", "# a comment", `server = "https://s"`, `[host."https://a"]`, `[host."https://b".header]`, `x-a = "b"`,
		`capabilities = ["pull"]`, `[host."http://127.0.0.1:4400"]`, `[host]`, `"https://c" = {}`, `host = {}`, `ca = "ca.crt"`,
	})
	text := func(lines *rapid.Generator[string]) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			end := rapid.SampledFrom([]string{"\n", "", "\r\n"}).Draw(t, "end")
			return strings.Join(rapid.SliceOfN(lines, 0, 8).Draw(t, "lines"), "\n") + end
		})
	}
	registries := []string{"docker.io", "r.example.com:5000", Everything}
	installed := 0
	rapid.Check(t, func(rt *rapid.T) {
		files := map[string]string{"etc/containerd/.keep": ""}
		for _, name := range []string{"config.toml", "conf.d/a.toml", "conf.d/b.toml"} {
			if rapid.Bool().Draw(rt, name) {
				files["etc/containerd/"+name] = text(line).Draw(rt, "content of "+name)
			}
		}
		for _, name := range []string{"docker.io/hosts.toml", "_default/hosts.toml", "r.example.com_5000_/hosts.toml", "docker.io/ca.crt"} {
			if rapid.Bool().Draw(rt, name) {
				files["etc/containerd/certs.d/"+name] = text(host).Draw(rt, "content of "+name)
			}
		}
		root, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		d := lay(t, root, files)
		before := snapshot(t, root)
		o := options(rapid.SliceOfNDistinct(rapid.SampledFrom(registries), 1, 3, rapid.ID[string]).Draw(rt, "registries")...)
		o.Release = rapid.SampledFrom([]Release{{}, {1, 6, true}, {1, 7, true}, {2, 0, true}, {2, 2, true}}).Draw(rt, "release")
		_, steps, next, err := prepare(d, Containerd, o)
		if err == nil && len(steps) > 0 {
			installed++
			if err := d.Apply(steps, next); err != nil {
				rt.Fatal(err)
			}
			if _, again, _, err := prepare(d, Containerd, o); err != nil || len(again) > 0 {
				rt.Fatalf("a second install: %v, %v", again, err)
			}
			for _, f := range next.Files {
				if !strings.HasSuffix(f.Path, "hosts.toml") {
					continue
				}
				now, err := parseHosts(f.After)
				if err != nil || now.index(mirror) < 0 {
					rt.Fatalf("%s does not name the mirror: %v\n%s", f.Path, err, f.After)
				}
			}
			uninstall(t, d, Containerd)
		}
		if after := snapshot(t, root); after != before {
			rt.Fatalf("the tree has become another one:\n%s\nit was:\n%s", after, before)
		}
	})
	if installed == 0 {
		t.Error("no tree could be installed on: the test shows nothing")
	}
}
