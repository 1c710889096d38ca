package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"sigs.k8s.io/yaml"
)

const (
	shoalImage = upstream + "/shoal:v1"
	pauseImage = upstream + "/pause:v1"
)

// TestPods runs the pods of deploy/kubernetes as containers, with their arguments,
// mounts, users and restrictions. A pull by the same containerd then goes through
// them, and when they end it is as before.
func TestPods(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		registry := NewNode(t, "origin").StartRegistry(t)
		node := NewNode(t, "node")
		for path, content := range map[string]string{"shoal": readShoal(t), "pause": buildPause(t)} {
			registry.Push(t, newImage(t, func() (*Image, error) { return programImage("/usr/bin/"+path, content) }), path, "v1")
		}
		ports, err := freePorts(6)
		if err != nil {
			t.Fatal(err)
		}
		daemons, schedulers := manifests(t, ports, registry.Origin.URL())
		c := node.StartContainerd(t, release, "containerd", ContainerdOptions{Sandbox: pauseImage})
		c.Mirror(t, upstream, registry.Direct.URL(), registry.Direct.URL()) // there is no mirror yet
		if err := c.PullCRI(t.Context(), shoalImage); err != nil {
			t.Fatal(err)
		}

		ca := NewCA(t, "shoal CA")
		key, err := x509.MarshalPKCS8PrivateKey(ca.key)
		if err != nil {
			t.Fatal(err)
		}
		// A stand-in for the API server knows the token of the daemon's pod.
		api := NewAPIServer(t, "token-of-the-scheduler", "token-of-the-daemon", "node-1")
		cluster := Cluster{
			Secrets: map[string]map[string]string{"shoal-ca": {
				"ca.crt": ca.pem, "ca.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
			}},
			ConfigMaps: map[string]map[string]string{"shoal-ca": {"ca.crt": ca.pem}, "kube-root-ca.crt": {"ca.crt": api.CA}},
			Tokens:     map[string]string{"shoal-issuer": "token-of-the-daemon", "": "token-of-the-scheduler"},
			Env:        api.Env,
		}
		cluster.Fields = map[string]string{"spec.nodeName": "node-1", "status.hostIP": node.Addr, "status.podIP": node.Addr,
			"metadata.labels['topology.kubernetes.io/zone']": "zone-a"}
		hosts := node.Path("host/etc/containerd/certs.d", upstream, "hosts.toml")
		node.Write(t, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n", "host/etc/containerd/config.toml")

		daemon := c.RunPod(t, "daemon", daemons, cluster)
		mirror, admin := "http://"+net.JoinHostPort("127.0.0.1", ports[0]), "http://"+net.JoinHostPort("127.0.0.1", ports[2])
		Eventually(t, "the daemon is ready", time.Minute, func() error { return getOK(admin + "/readyz") })
		// The scheduler comes later, as it may.
		scheduler := c.RunPod(t, "scheduler", schedulers, cluster)
		metrics := program{Admin: net.JoinHostPort("127.0.0.1", ports[2])}
		Eventually(t, "the daemon is known to the scheduler", time.Minute, func() error {
			n, err := metrics.Metric("shoal_scheduler_connected")
			if err == nil && n != 1 {
				err = errors.New("it is not")
			}
			return err
		})
		confined(t, daemon.Pid(t, "daemon"), "0")
		confined(t, scheduler.Pid(t, "scheduler"), "65532")
		if limit, err := metrics.Metric("go_gc_gomemlimit_bytes"); err != nil || limit != 966367641 {
			t.Errorf("Go's memory limit is %v, %v", limit, err)
		}

		img := newImage(t, SinglePlatform)
		registry.Push(t, img, repository, tag)
		Eventually(t, "hosts.toml is written", time.Minute, func() error {
			b, err := os.ReadFile(hosts)
			if err == nil && !strings.Contains(string(b), mirror) {
				err = fmt.Errorf("it says\n%s", b)
			}
			return err
		})
		confined(t, daemon.Pid(t, "attach"), "0")
		c.Mirror(t, upstream, registry.Direct.URL(), mirror)
		registry.Direct.Reset(t)
		if err := c.PullCRI(t.Context(), byTag()); err != nil {
			t.Fatal(err)
		}
		if err := c.CheckContent(CRINamespace, img.Blobs...); err != nil {
			t.Error(err)
		}
		if past := registry.Direct.Requests(t); len(past) > 0 {
			t.Errorf("%d requests went past the pod, the first: %s", len(past), past[0])
		}

		if code := daemon.Stop(t, "attach"); code != 0 {
			t.Errorf("attach ended with %d", code)
		}
		if b, err := os.ReadFile(hosts); err == nil {
			t.Errorf("hosts.toml is still there:\n%s", b)
		}
		for name, pod := range map[string]*Pod{"daemon": daemon, "scheduler": scheduler} {
			if code := pod.Stop(t, name); code != 0 {
				t.Errorf("%s ended with %d", name, code)
			}
		}
		if _, err := os.Stat(node.Path("host/var/lib/shoal/data")); err != nil {
			t.Errorf("the cache went with the pod: %v", err)
		}
	})
}

// manifests are the pods of deploy/kubernetes, on other ports (mirror, peer, admin,
// scheduler, its admin, its issuer), with the test's image and registry. There is no DNS.
func manifests(t *testing.T, ports []string, origin string) (daemons, schedulers PodSpec) {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes/shoal.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for i, port := range []string{"4400", "4401", "4403", "4402", "4404", "4405"} {
		pairs = append(pairs, ":"+port, ":"+ports[i])
	}
	pairs = append(pairs,
		"dns:///shoal-scheduler.shoal.svc.cluster.local", "127.0.0.1",
		"https://shoal-scheduler.shoal.svc.cluster.local", "https://127.0.0.1",
		"- --default-registry=docker.io", "- --registry="+upstream+"="+origin,
		"--auth=relay", "--auth=open",
		"            - --\n", "            - --\n            - --mirror=http://127.0.0.1:"+ports[0]+"\n            - --registry="+upstream+"\n")
	text := strings.NewReplacer(pairs...).Replace(string(b))
	text = regexp.MustCompile(`image: .*/shoal:.*`).ReplaceAllString(text, "image: "+shoalImage)
	for _, document := range strings.Split(text, "\n---\n") {
		var object struct {
			Kind string
			Spec struct{ Template struct{ Spec PodSpec } }
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		switch object.Kind {
		case "DaemonSet":
			daemons = object.Spec.Template.Spec
		case "Deployment":
			schedulers = object.Spec.Template.Spec
		}
	}
	if len(daemons.Containers) != 2 || len(schedulers.Containers) != 1 {
		t.Fatalf("the manifests have %d and %d containers", len(daemons.Containers), len(schedulers.Containers))
	}
	return daemons, schedulers
}

// confined fails unless a process is what the manifests say: of this user, without
// a capability, without a way to more, with a filter of system calls, on a root
// that it cannot write.
func confined(t *testing.T, pid, user string) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"Uid": user, "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		_, rest, _ := strings.Cut(string(status), "\n"+field+":")
		if got := strings.Fields(rest); len(got) == 0 || got[0] != want {
			t.Errorf("process %s: %s is %v, want %s", pid, field, got[:min(1, len(got))], want)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == "/" && !strings.HasPrefix(f[5], "ro") {
			t.Errorf("process %s may write its root: %s", pid, line)
		}
	}
}

func readShoal(t *testing.T) string {
	t.Helper()
	path, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func buildPause(t *testing.T) string {
	t.Helper()
	here, err := sourceDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pause")
	if err := goBuild(here, path, "./testdata/pause"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// programImage is an image of one static program, its entry point.
func programImage(path, program string) (*Image, error) {
	img, err := imageOf(runtime.GOARCH, []file{{path, []byte(program)}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Config = v1.Config{Entrypoint: []string{path}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return singlePlatform(img)
}
