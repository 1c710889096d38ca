package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aymanbagabas/go-udiff"
	"github.com/google/go-containerregistry/pkg/registry"
)

// command is one command line of a client that can name a registry only in
// front of the image.
type command struct {
	// line holds, besides the arguments, {repo}, the repository with its
	// registry, {tag}, {digest}, {platform}, {layer} and {config}, digests of
	// the image, {chart}, the repository of the chart, {dir}, an empty
	// directory, and {registry}, the registry alone.
	line string
	// differs is what the mirror does otherwise, as test/e2e/README.md words
	// it. Empty: nothing.
	differs string
	// fails says that the origin refuses it.
	fails bool
}

const (
	noCatalog = "`/v2/_catalog` is not served: a mirror of many registries has no list of repositories"
	// regctl prints all headers.
	otherHeaders = "answers bear `OCI-Namespace` and `X-Content-Type-Options`, and of the origin's headers only those that mean something to a pull"
	noTokens     = "asks `/v2/` alone whether tokens are wanted, and a mirror of many registries has no answer to that"
)

// commands are what is done through the mirror and straight to the origin.
var commands = []command{
	{line: "crane digest {repo}:{tag}"},
	{line: "crane digest {repo}@{digest}"},
	{line: "crane digest --platform linux/amd64 {repo}:{tag}"},
	{line: "crane digest {repo}:missing", fails: true},
	{line: "crane manifest {repo}:{tag}"},
	{line: "crane manifest {repo}@{platform}"},
	{line: "crane config {repo}:{tag}"},
	{line: "crane ls {repo}"},
	{line: "crane ls {repo}-missing", fails: true},
	{line: "crane blob {repo}@{layer}"},
	{line: "crane pull --format oci {repo}:{tag} {dir}"},
	{line: "crane pull --format oci {repo}@{digest} {dir}"},
	{line: "crane validate --remote {repo}:{tag}"},
	{line: "crane catalog {registry}", differs: noCatalog},

	{line: "oras resolve {repo}:{tag}"},
	{line: "oras manifest fetch {repo}:{tag}"},
	{line: "oras manifest fetch --descriptor {repo}@{digest}"},
	{line: "oras manifest fetch {repo}:missing", fails: true},
	{line: "oras manifest fetch-config --platform linux/amd64 {repo}:{tag}"},
	{line: "oras blob fetch --output {dir}/blob {repo}@{layer}"},
	{line: "oras blob fetch --descriptor {repo}@{layer}"},
	{line: "oras repo tags {repo}"},
	{line: "oras discover --format json {repo}:{tag}"},
	{line: "oras discover --format json {repo}@{platform}"},
	{line: "oras discover --format json --artifact-type application/vnd.e2e.signature {repo}:{tag}"},
	{line: "oras pull --output {dir} {repo}:artifact"},
	{line: "oras copy --to-oci-layout {repo}:{tag} {dir}:{tag}"},
	{line: "oras copy -r --to-oci-layout {repo}:{tag} {dir}:{tag}"},
	{line: "oras backup --output {dir} {repo}:{tag}"},

	{line: "regctl image digest {repo}:{tag}"},
	{line: "regctl image digest {repo}:missing", fails: true},
	{line: "regctl image inspect {repo}:{tag}"},
	{line: "regctl manifest get --format raw-body {repo}:{tag}"},
	{line: "regctl manifest head {repo}@{digest}"},
	{line: "regctl blob get {repo} {layer}"},
	{line: "regctl blob head {repo} {layer}", differs: otherHeaders},
	{line: "regctl tag ls {repo}"},
	{line: "regctl tag ls --limit 1 {repo}"},
	{line: "regctl artifact list {repo}:{tag}"},
	{line: "regctl artifact tree {repo}:{tag}"},
	{line: "regctl artifact get {repo}:artifact"},
	{line: "regctl image copy {repo}:{tag} ocidir://{dir}:{tag}"},
	{line: "regctl image copy --referrers --digest-tags {repo}:{tag} ocidir://{dir}:{tag}"},
	{line: "regctl repo ls {registry}", differs: noCatalog},

	{line: "skopeo inspect --raw docker://{repo}:{tag}"},
	{line: "skopeo inspect --format {{.Digest}}{{.RepoTags}}{{.Layers}} docker://{repo}:{tag}"},
	{line: "skopeo inspect docker://{repo}:missing", fails: true},
	{line: "skopeo list-tags docker://{repo}"},
	{line: "skopeo copy --all docker://{repo}:{tag} dir:{dir}"},
	{line: "skopeo copy docker://{repo}@{platform} oci:{dir}:{tag}"},

	{line: "helm pull --destination {dir} oci://{chart} --version 0.1.0"},
	{line: "helm pull --destination {dir} oci://{chart} --version >0.0.1"},
	{line: "helm pull --destination {dir} oci://{chart} --version 9.9.9", fails: true},
	{line: "helm show all oci://{chart} --version 0.1.0"},
	{line: "helm template oci://{chart} --version 0.1.0"},

	{line: "podman pull --quiet {repo}:{tag}"},
	{line: "podman pull --quiet {repo}@{digest}"},
}

// insecure is how each client is told that a registry speaks plain HTTP: where
// the words go is what its command line wants.
func (c *clientBed) args(registry string, words []string) []string {
	switch words[0] {
	case "crane":
		return slices.Concat([]string{filepath.Join(c.bin, "crane"), "--insecure"}, words[1:])
	case "oras":
		flag := "--plain-http"
		if slices.Contains(words, "copy") {
			flag = "--from-plain-http"
		}
		return slices.Concat([]string{filepath.Join(c.bin, "oras")}, words[1:], []string{flag})
	case "regctl":
		return slices.Concat([]string{filepath.Join(c.bin, "regctl"), "--host", "reg=" + registry + ",tls=disabled"}, words[1:])
	case "helm":
		args := slices.Concat([]string{filepath.Join(c.bin, "helm")}, words[1:])
		return append(args, "--plain-http")
	case "skopeo":
		flag := "--tls-verify=false"
		if words[1] == "copy" {
			flag = "--src-tls-verify=false"
		}
		return slices.Concat([]string{c.skopeo, "--insecure-policy", words[1], flag}, words[2:])
	case "podman":
		return slices.Concat([]string{c.podman, "--root", "{home}/root", "--runroot", "{home}/run", "--tmpdir", "{home}/tmp",
			"--network-config-dir", "{home}/net", "--storage-driver", "vfs", "--runtime", "runc",
			"--cgroup-manager", "cgroupfs", "--events-backend", "none",
			words[1], "--tls-verify=false", "--signature-policy", c.policy}, words[2:])
	}
	panic("no such client: " + words[0])
}

// clientBed is an origin with all that the commands ask for, a mirror before
// it, and the clients.
type clientBed struct {
	node                *Node
	image               *Image
	bin, skopeo, podman string
	policy              string
	// auth is a docker config.json for a registry, or nil.
	auth func(registry string) string
}

// outcome is what a command did.
type outcome struct {
	code   int
	stdout string
	stderr string
	files  string
}

// run runs a command at a registry, whose repositories have a prefix, in an
// empty HOME, and returns what it did with the registry's own name taken out.
func (c *clientBed) run(t *testing.T, registry, prefix, line string) outcome {
	t.Helper()
	home, err := os.MkdirTemp(c.node.Dir, "run-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	dir := filepath.Join(home, "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if c.auth != nil {
		for _, name := range []string{".docker/config.json", ".config/helm/registry/config.json", "run/containers/auth.json"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(home, name), []byte(c.auth(registry)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	args := c.args(registry, strings.Fields(line))
	for i := range args {
		args[i] = strings.NewReplacer("{repo}", registry+"/"+prefix+repository, "{chart}", registry+"/"+prefix+"charts/hello",
			"{registry}", registry, "{tag}", tag, "{digest}", c.image.Digest, "{platform}", c.image.Manifests[1].Digest,
			"{layer}", c.image.Blobs[1].Digest, "{config}", c.image.Blobs[0].Digest, "{dir}", dir, "{home}", home).Replace(args[i])
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := c.node.Command(args[0], args[1:]...)
	cmd = exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	cmd.Dir, cmd.Env = home, append(cleanEnviron(), "HOME="+home, "XDG_RUNTIME_DIR="+home+"/run", "XDG_CONFIG_HOME="+home+"/.config")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", line, err)
	}
	// Clients that do several things at once say so in any order.
	lines := strings.SplitAfter(stdout.String(), "\n")
	slices.Sort(lines)
	o := outcome{code: cmd.ProcessState.ExitCode(), stdout: strings.Join(lines, ""), stderr: stderr.String()}
	if o.files, err = listing(dir); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*string{&o.stdout, &o.stderr, &o.files} {
		*s = strings.NewReplacer(registry+"/"+prefix, "REGISTRY/", registry+"/v2/"+prefix, "REGISTRY/v2/", registry, "REGISTRY", home, "HOME").Replace(*s)
		*s = times.ReplaceAllString(*s, "TIME")
	}
	return o
}

// times are what differs from run to run.
var times = regexp.MustCompile(`\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?|\b\d+(\.\d+)?m?s\b`)

// listing is each file below a directory with the digest of its content. Of an
// index of a layout it is the content, since clients write its entries in any
// order.
func listing(dir string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(dir, name)
		var index struct{ Manifests []any }
		if rest == "index.json" && json.Unmarshal(content, &index) == nil {
			var entries []string
			for _, m := range index.Manifests {
				entries = append(entries, fmt.Sprint(m))
			}
			slices.Sort(entries)
			fmt.Fprintf(&b, "%s\n%s\n", rest, strings.Join(entries, "\n"))
			return err
		}
		fmt.Fprintf(&b, "%s %s\n", digestOf(content), rest)
		return err
	})
	return b.String(), err
}

// newClientBed finds the clients.
func newClientBed(t *testing.T, n *Node) *clientBed {
	t.Helper()
	NeedRoot(t)
	c := &clientBed{image: newImage(t, MultiPlatform), node: n}
	c.skopeo, c.podman = NeedProgram(t, "skopeo", "skopeo"), NeedProgram(t, "podman", "podman")
	var err error
	if c.bin, err = clientsBinaries(); err != nil {
		missing(t, "needs crane, oras, regctl and helm: %v", err)
	}
	c.policy = c.node.Write(t, `{"default":[{"type":"insecureAcceptAnything"}]}`, "policy.json")
	return c
}

// fill pushes to a registry what the commands ask for: the image, one more tag,
// an artifact, two signatures of the image, of which one is signed itself, and
// a chart.
func (c *clientBed) fill(t *testing.T, registry string, auth string) {
	t.Helper()
	home := c.node.Path("push-" + filepath.Base(t.Name()))
	c.node.Write(t, "a payload\n", filepath.Base(home), "payload.txt")
	c.node.Write(t, "a signature\n", filepath.Base(home), "signature.txt")
	c.node.Write(t, "apiVersion: v2\nname: hello\nversion: 0.1.0\n", filepath.Base(home), "hello", "Chart.yaml")
	c.node.Write(t, "greeting: hello\n", filepath.Base(home), "hello", "values.yaml")
	c.node.Write(t, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: hello\ndata:\n  greeting: {{ .Values.greeting }}\n",
		filepath.Base(home), "hello", "templates", "map.yaml")
	if auth != "" {
		c.node.Write(t, auth, filepath.Base(home), ".docker", "config.json")
	}
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := c.node.Command(filepath.Join(c.bin, program), args...)
		cmd.Dir = home
		cmd.Env = append(cmd.Env, "HOME="+home, "HELM_REGISTRY_CONFIG="+filepath.Join(home, ".docker", "config.json"))
		out, err := runToEnd(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	repo := registry + "/" + repository
	run("crane", "--insecure", "tag", repo+":"+tag, "v2")
	run("oras", "push", "--plain-http", "--artifact-type", "application/vnd.e2e.artifact", repo+":artifact", "payload.txt:text/plain")
	signature := strings.Fields(run("oras", "attach", "--plain-http", "--artifact-type", "application/vnd.e2e.signature",
		"--format", "go-template={{.digest}}", repo+":"+tag, "signature.txt:text/plain"))
	run("oras", "attach", "--plain-http", "--artifact-type", "application/vnd.e2e.sbom", repo+":"+tag, "payload.txt:text/plain")
	run("oras", "attach", "--plain-http", "--artifact-type", "application/vnd.e2e.signature", repo+"@"+signature[len(signature)-1], "signature.txt:text/plain")
	run("helm", "package", "hello")
	run("helm", "push", "--plain-http", "hello-0.1.0.tgz", "oci://"+registry+"/charts")
}

// compare runs the commands at the origin and at the mirror.
func (c *clientBed) compare(t *testing.T, origin, mirror, prefix string, change func(*command)) {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(mustSource(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range commands {
		t.Run(cmd.line, func(t *testing.T) {
			if change != nil {
				change(&cmd)
			}
			differs := cmd.differs
			if !strings.Contains(string(readme), differs) {
				t.Errorf("README.md does not say that %s", differs)
			}
			want := c.run(t, origin, "", cmd.line)
			got := c.run(t, mirror, prefix, cmd.line)
			if failed := want.code != 0; failed != cmd.fails {
				t.Fatalf("the origin itself answers with code %d: %s", want.code, want.stderr)
			}
			same := got.code == want.code && got.stdout == want.stdout && got.files == want.files
			switch {
			case same && differs != "":
				t.Errorf("it does the same: then README.md must not say that %s", differs)
			case !same && differs == "":
				t.Errorf("straight from the origin: code %d\n%s\nthrough the mirror: code %d\n%s", want.code, want.stderr, got.code, got.stderr)
				if got.code == want.code {
					t.Errorf("what differs: %s", udiff.Unified("origin", "mirror", head(want.stdout)+want.files, head(got.stdout)+got.files))
				}
			case want.code != 0 && got.stderr != want.stderr:
				t.Logf("origin: %s\nmirror: %s", want.stderr, got.stderr)
			}
		})
	}
}

// head is the beginning of what may be a blob.
func head(s string) string { return s[:min(len(s), 2000)] }

func mustSource(t *testing.T) string {
	t.Helper()
	dir, err := sourceDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestClients runs crane, oras, regctl, skopeo, helm and podman through the
// mirror, beside the same commands straight to the origin: a registry without
// the referrers API, for everybody.
func TestClients(t *testing.T) {
	c := newClientBed(t, NewNode(t, "node"))
	r := NewNode(t, "origin").StartRegistry(t)
	r.Push(t, c.image, repository, tag)
	c.fill(t, r.addr, "")
	d := c.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + r.Origin.URL()}, DefaultRegistry: upstream})
	c.compare(t, r.addr, d.Addr, upstream+"/", nil)
}

// TestClientsWithReferrers does that with a registry that has the referrers
// API and goes by a name with a port.
func TestClientsWithReferrers(t *testing.T) {
	c := newClientBed(t, NewNode(t, "node"))
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")
	(&Registry{addr: addr}).Push(t, c.image, repository, tag)
	c.fill(t, addr, "")
	d := c.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + ":5000=" + server.URL}})
	c.compare(t, addr, d.Addr, upstream+"_5000/", nil)
}

// TestClientsWithTokens does that with a registry that wants tokens, by a
// mirror that lets it decide.
func TestClientsWithTokens(t *testing.T) {
	// crane and oras take no realm at a loopback address.
	nw := NewNetwork(t)
	origin := NewNodeAt(t, "origin", nw.Addr, "")
	c := newClientBed(t, nw.NewNode(t, "node"))
	realm := origin.StartRealm(t, map[string]RealmUser{"alice": {Password: alicePassword, Pull: []string{repository, "charts/hello"}},
		"push": {Password: alicePassword, Push: true}})
	r := origin.StartRegistryFor(t, realm.Access(realmIssuer))
	r.Push(t, c.image, repository, tag)
	config := func(user string) func(string) string {
		return func(registry string) string {
			return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry, basicOf(user, alicePassword))
		}
	}
	c.fill(t, r.addr, config("push")(r.addr))
	c.auth = config("alice")
	d := c.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + r.Origin.URL()}, Auth: "relay"})
	c.compare(t, r.addr, d.Addr, upstream+"/", func(cmd *command) {
		switch client, _, _ := strings.Cut(cmd.line, " "); {
		case cmd.differs == noCatalog: // alice may not see it either
			cmd.differs, cmd.fails = "", true
		case !cmd.fails && (client == "crane" || client == "skopeo" || client == "podman"):
			cmd.differs = noTokens
		}
	})
}
