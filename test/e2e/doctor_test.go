package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// diagnosis is what "shoal containerd doctor --output json" prints.
type diagnosis struct {
	OK     bool
	Checks []struct{ Name, Status, Text, Remedy string }
}

// doctor runs it on the node's files, and fails unless its exit code is that of
// its result.
func (n *fsNode) doctor(t *testing.T, d *Daemon, args ...string) diagnosis {
	t.Helper()
	binary, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"containerd", "doctor", "--root", n.root, "--admin", d.Admin, "--image", byTag(), "--output", "json"}, args...)
	out, failed := n.Run(binary, args...)
	var found diagnosis
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v: %v\n%s", failed, err, out)
	}
	if found.OK != (failed == nil) {
		t.Errorf("ok is %t, and the command ends with %v", found.OK, failed)
	}
	return found
}

// trap is what the doctor must name: the check, and words of its text.
type trap struct{ check, text string }

// names fails unless exactly these traps were found, each with a remedy.
func (found diagnosis) names(t *testing.T, want ...trap) {
	t.Helper()
	var traps []trap
	for _, c := range found.Checks {
		if len(want) == 0 && c.Status == "skipped" {
			t.Errorf("%s was not looked at: %s", c.Name, c.Text)
		}
		if c.Status != "trap" {
			continue
		}
		t.Logf("%s: %s → %s", c.Name, c.Text, c.Remedy)
		traps = append(traps, trap{c.Name, c.Text})
		if c.Remedy == "" {
			t.Errorf("%s: there is no remedy", c.Name)
		}
	}
	if found.OK != (len(want) == 0) {
		t.Errorf("ok is %t", found.OK)
	}
	if !slices.EqualFunc(traps, want, func(got, want trap) bool {
		return got.check == want.check && strings.Contains(got.text, want.text)
	}) {
		t.Errorf("the doctor names %v, want %v", traps, want)
	}
}

// TestDoctorConfiguration plants each trap of the configuration before a daemon
// that is well. Without one the doctor is silent.
func TestDoctorConfiguration(t *testing.T) {
	b := newBed(t, SinglePlatform)
	installed := func(t *testing.T, n *fsNode) {
		n.shoal(t, "install", "--registry", upstream, "--mirror", b.daemon.URL())
	}
	hosts := func(text string) func(*testing.T, *fsNode) {
		return func(t *testing.T, n *fsNode) {
			n.Write(t, strings.ReplaceAll(text, "MIRROR", b.daemon.URL()), "fs/etc/containerd/certs.d", upstream, "hosts.toml")
		}
	}
	const usual = "[host.\"MIRROR\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	for _, c := range []struct {
		name    string
		fixture string
		release Release
		plant   func(t *testing.T, n *fsNode)
		want    []trap
	}{
		{"none, 1.6", "containerd-1.6-default", Containerd16, installed, nil},
		{"none, 2", "containerd-2.2-default", Containerd2, installed, nil},
		{"none, registry.mirrors", "gke-mirrors", Release{}, installed, nil},
		{"none, a list that counts", "eks-al2023", Release{}, installed, nil},
		{"config_path empty", "containerd-1.6-default", Release{}, nil,
			[]trap{{"config_path", "config_path is empty"}}},
		{"config_path built in", "containerd-2.2-default", Containerd2, hosts(usual),
			[]trap{{"config_path", "is a list, /etc/containerd/certs.d:/etc/docker/certs.d"}}},
		{"config_path a list", "containerd-list", Release{}, hosts(usual),
			[]trap{{"config_path", "is a list"}}},
		{"config_path elsewhere", "gke-hosts", Release{}, hosts(usual),
			[]trap{{"config_path", "elsewhere, below /etc/containerd/certs.d"}}},
		{"registry.mirrors in the way", "gke-mirrors", Release{}, hosts(usual),
			[]trap{{"config_path", "registry.mirrors is in the way"}}},
		{"both", "aks", Release{}, func(t *testing.T, n *fsNode) {
			n.append(t, n.main, "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://mirror.gcr.io\"]\n")
		}, []trap{{"config_path", "does not load its CRI plugin"}}},
		{"no TOML", "aks", Release{}, func(t *testing.T, n *fsNode) { n.append(t, n.main, "[plugins\n") },
			[]trap{{"configuration", "config.toml: line"}}},
		{"nothing installed", "aks", Release{}, nil,
			[]trap{{"hosts.toml", "no hosts.toml below /etc/containerd/certs.d names the mirror"}}},
		{"hosts.toml no TOML", "aks", Release{}, hosts(usual + "capabilities = [\n"),
			[]trap{{"hosts.toml", "cannot be read"}}},
		{"a capability that 1.6 does not know", "aks", Containerd16, hosts("[host.\"MIRROR\"]\n  capabilities = [\"pull\", \"resolve\", \"referrers\"]\n"),
			[]trap{{"hosts.toml", `capability "referrers", which containerd 1.x does not know`}}},
		{"HTTPS first", "aks", Release{}, hosts(usual + "  skip_verify = true\n"),
			[]trap{{"hosts.toml", "HTTPS first"}}},
		{"no way back", "aks", Release{}, hosts("server = \"MIRROR\"\n" + usual),
			[]trap{{"hosts.toml", "server is the mirror"}}},
		{"wrong port", "aks", Release{}, hosts("[host.\"http://127.0.0.1:4\"]\n"),
			[]trap{{"hosts.toml", "a wrong port"}}},
		{"upstream not allowed", "aks", Release{}, func(t *testing.T, n *fsNode) {
			n.shoal(t, "install", "--registry", upstream, "--registry", "other.e2e.test", "--mirror", b.daemon.URL())
		}, []trap{{"registries", "the runtime asks for other.e2e.test"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := layNode(t, c.fixture, c.release)
			if c.plant != nil {
				c.plant(t, n)
			}
			n.doctor(t, b.daemon).names(t, c.want...)
		})
	}
}

func (n *fsNode) append(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.root, file), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// TestDoctorDaemon takes the mirror away, and puts others in its place.
func TestDoctorDaemon(t *testing.T) {
	b := newBed(t, SinglePlatform)
	n := layNode(t, "aks", Release{})
	n.shoal(t, "install", "--registry", upstream, "--mirror", b.daemon.URL())
	t.Run("another port", func(t *testing.T) {
		other := b.registry.Direct.URL()
		n := layNode(t, "aks", Release{})
		n.shoal(t, "install", "--registry", upstream, "--mirror", other)
		n.doctor(t, b.daemon, "--mirror", other).names(t, trap{"mirror", "a wrong port"})
	})
	t.Run("image that does not exist", func(t *testing.T) {
		n.doctor(t, b.daemon, "--image", upstream+"/apps/none:v1").names(t, trap{"pull", "404"})
	})
	t.Run("origin away", func(t *testing.T) {
		lone := NewNode(t, "lone").StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=http://" + deadAddress(t)}})
		n := layNode(t, "aks", Release{})
		n.shoal(t, "install", "--registry", upstream, "--mirror", lone.URL())
		n.doctor(t, lone).names(t, trap{"pull", "the mirror answers 50"})
	})
	t.Run("clock", func(t *testing.T) {
		// Dates have seconds, and the doctor takes a moment.
		slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-10*time.Minute-30*time.Second).UTC().Format(http.TimeFormat))
			http.Redirect(w, r, b.registry.Origin.URL()+r.URL.Path, http.StatusTemporaryRedirect)
		}))
		defer slow.Close()
		origin := strings.TrimPrefix(b.registry.Origin.URL(), "http://")
		late := NewNode(t, "late").StartDaemon(t, DaemonConfig{Registries: []string{fmt.Sprintf("%s=%s,allow=%s", upstream, slow.URL, origin)}})
		n := layNode(t, "aks", Release{})
		n.shoal(t, "install", "--registry", upstream, "--mirror", late.URL())
		n.doctor(t, late).names(t, trap{"clock", "it is 10m3"})
	})
	t.Run("daemon away", func(t *testing.T) {
		b.daemon.Stop(t)
		n.doctor(t, b.daemon).names(t, trap{"daemon", "connection refused"}, trap{"mirror", "nothing answers"})
	})
}

// TestDoctorSwarm takes away what a node needs of others.
func TestDoctorSwarm(t *testing.T) {
	b := bedWithout(t, SinglePlatform)
	ca, stranger := NewCA(t, "ours"), NewCA(t, "theirs")
	start := func(t *testing.T, name, scheduler string, id func(n *Node) *Identity) (*Daemon, *fsNode) {
		n := layNode(t, "aks", Release{})
		n.Name = name
		config := DaemonConfig{Registries: []string{upstream + "=" + b.registry.Origin.URL()}, Schedulers: []string{scheduler}}
		if id != nil {
			config.Identity = id(n.Node)
		}
		d := n.StartDaemon(t, config)
		n.shoal(t, "install", "--registry", upstream, "--mirror", d.URL())
		return d, n
	}
	ours := func(n *Node) *Identity { return ca.Issue(t, n, ca) }
	node := NewNode(t, "scheduler")
	secret := node.StartScheduler(t, SchedulerConfig{Identity: ours(node)})
	plain := NewNode(t, "plain").StartScheduler(t, SchedulerConfig{})

	t.Run("none", func(t *testing.T) {
		d, n := start(t, "one", secret.Addr, ours)
		waitConnected(t, d)
		n.doctor(t, d).names(t)
	})
	t.Run("daemon without TLS", func(t *testing.T) {
		d, n := start(t, "two", secret.Addr, nil)
		n.doctor(t, d).names(t, trap{"scheduler", "TLS mismatch: it wants TLS"})
	})
	t.Run("scheduler without TLS", func(t *testing.T) {
		d, n := start(t, "three", plain.Addr, ours)
		n.doctor(t, d).names(t, trap{"scheduler", "TLS mismatch: the daemon wants TLS"})
	})
	t.Run("another CA", func(t *testing.T) {
		d, n := start(t, "four", secret.Addr, func(n *Node) *Identity { return stranger.Issue(t, n, stranger) })
		n.doctor(t, d).names(t, trap{"scheduler", "TLS mismatch: its certificate is of another CA"})
	})
	t.Run("not taken by the scheduler", func(t *testing.T) {
		d, n := start(t, "five", secret.Addr, func(n *Node) *Identity { return stranger.Issue(t, n, ca, stranger) })
		n.doctor(t, d).names(t, trap{"scheduler", "does not take this node's certificate"})
	})
	t.Run("another name", func(t *testing.T) {
		_, port, _ := strings.Cut(secret.Addr, ":")
		d, n := start(t, "six", "localhost:"+port, ours)
		n.doctor(t, d).names(t, trap{"scheduler", "TLS mismatch"})
	})
	t.Run("certificate expired", func(t *testing.T) {
		d, n := start(t, "seven", secret.Addr, ours)
		waitConnected(t, d)
		ca.issueUntil(t, n.Node, time.Now().Add(-time.Second), ca)
		n.doctor(t, d).names(t, trap{"certificate", "has expired"})
	})
	t.Run("certificate about to expire", func(t *testing.T) {
		d, n := start(t, "eight", secret.Addr, func(n *Node) *Identity { return ca.issueUntil(t, n, time.Now().Add(10*time.Minute), ca) })
		waitConnected(t, d)
		n.doctor(t, d).names(t, trap{"certificate", "expires in"})
	})
	t.Run("peers and scheduler away", func(t *testing.T) {
		scheduler := NewNode(t, "third").StartScheduler(t, SchedulerConfig{})
		seed, _ := start(t, "seed", scheduler.Addr, nil)
		d, n := start(t, "nine", scheduler.Addr, nil)
		waitConnected(t, seed)
		waitConnected(t, d)
		for _, d := range []*Daemon{seed, d} {
			c := Client{Base: d.URL(), Namespace: upstream, Repository: repository}
			if err := c.PullImage(t.Context(), b.image, tag); err != nil {
				t.Fatal(err)
			}
		}
		n.doctor(t, d).names(t)
		seed.Stop(t)
		n.doctor(t, d).names(t, trap{"peers", "none is reachable"})
		scheduler.Stop(t)
		n.doctor(t, d).names(t, trap{"scheduler", "it is not reachable"}, trap{"peers", "none is reachable"})
	})
}

// waitConnected returns when the daemon has its scheduler.
func waitConnected(t *testing.T, d *Daemon) {
	t.Helper()
	err := poll(startLimit, func() (bool, error) {
		v, err := d.Metric("shoal_scheduler_connected")
		if err == nil && v != 1 {
			err = fmt.Errorf("shoal_scheduler_connected is %v", v)
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
}
