package deploy

import (
	"crypto/x509"
	"encoding/pem"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

// secrets returns the Secrets that a pod can read, and with it whoever is root on
// its node: all of each, whichever keys are mounted.
func secrets(pod *core.PodSpec) []string {
	var names []string
	for _, v := range pod.Volumes {
		if v.Secret != nil {
			names = append(names, v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				names = append(names, s.Secret.Name)
			}
		}
	}
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil {
				names = append(names, e.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				names = append(names, e.ValueFrom.SecretKeyRef.Name)
			}
		}
	}
	return names
}

// The key of the CA is where schedulers are, and on no other node: a DaemonSet
// names no Secret that has it. Each daemon has a token for the issuer alone, for
// an hour, and knows the CA by a ConfigMap.
func TestKeyOfCAOnNoNode(t *testing.T) {
	for _, set := range valueSets {
		t.Run(set, func(t *testing.T) {
			values := readValues(t, "testdata/"+set+".yaml")
			var (
				keys    []string // Secrets with a key of a CA
				nodes   *core.PodSpec
				brain   *core.PodSpec
				account string
				public  = map[string]string{}
				private = map[string]string{}
			)
			for _, m := range render(t, values) {
				object, err := decode(m.Content)
				if err != nil {
					t.Fatal(err)
				}
				switch o := object.(type) {
				case *core.Secret:
					if _, ok := o.Data["ca.key"]; ok {
						keys = append(keys, o.Name)
						private[o.Name] = string(o.Data["ca.crt"])
					}
				case *core.ConfigMap:
					for name, text := range o.Data {
						if strings.Contains(text, "PRIVATE KEY") {
							t.Errorf("ConfigMap %s has a key: %s", o.Name, name)
						}
					}
					public[o.Name] = o.Data["ca.crt"]
				case *apps.DaemonSet:
					nodes, account = &o.Spec.Template.Spec, o.Namespace+":"+o.Spec.Template.Spec.ServiceAccountName
				case *apps.Deployment:
					brain = &o.Spec.Template.Spec
				}
			}
			tls, _ := values["tls"].(map[string]any)
			if s, ok := tls["caSecret"].(string); ok {
				keys = append(keys, s)
			}
			for _, name := range keys {
				if slices.Contains(secrets(nodes), name) {
					t.Errorf("every node can read the CA's key, in Secret %s", name)
				}
				if brain == nil || !slices.Contains(secrets(brain), name) {
					t.Errorf("no scheduler has Secret %s", name)
				}
				if cert, ok := private[name]; ok && strings.TrimSpace(public[name]) != strings.TrimSpace(cert) {
					t.Errorf("ConfigMap %s has another certificate than the Secret", name)
				}
			}
			daemon := strings.Join(nodes.Containers[0].Args, " ")
			generated := slices.Contains([]string{"default", "monitored", "k3s", "private", "ipv6", "external", "tuned"}, set)
			if strings.Contains(daemon, "--tls-issuer=https://") != generated {
				t.Errorf("daemons ask an issuer: %v, want %v", !generated, generated)
			}
			if !generated {
				return
			}
			checkTLSVolume(t, nodes)
			if len(nodes.InitContainers) > 0 {
				t.Errorf("init containers: %+v", nodes.InitContainers)
			}
			if set == "external" {
				return
			}
			scheduler := brain.Containers[0].Args
			if len(keys) != 1 || !slices.Contains(scheduler, "--issuer-service-account="+account) {
				t.Errorf("schedulers issue by %q for other pods than %s: %q", keys, account, scheduler)
			}
		})
	}
}

// checkTLSVolume looks at what a daemon's pod proves itself with.
func checkTLSVolume(t *testing.T, pod *core.PodSpec) {
	t.Helper()
	for _, v := range pod.Volumes {
		if v.Name != "tls" {
			continue
		}
		if v.Projected == nil || len(v.Projected.Sources) != 2 {
			t.Fatalf("it has %+v", v)
		}
		token, ca := v.Projected.Sources[0].ServiceAccountToken, v.Projected.Sources[1].ConfigMap
		if token == nil || token.Audience != "shoal-issuer" || token.Path != "token" || token.ExpirationSeconds == nil || *token.ExpirationSeconds > 3600 {
			t.Errorf("the token is %+v", token)
		}
		if ca == nil || len(ca.Items) != 1 || ca.Items[0].Key != "ca.crt" {
			t.Errorf("the CA is %+v", ca)
		}
		for _, c := range pod.Containers[1:] {
			if slices.ContainsFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return m.Name == "tls" }) {
				t.Errorf("container %s has the token, too", c.Name)
			}
		}
		return
	}
	t.Error("there is no volume tls")
}

// The CA that Helm makes is valid for three years.
func TestLifeOfCA(t *testing.T) {
	for _, m := range render(t, readValues(t, "testdata/default.yaml")) {
		object, err := decode(m.Content)
		if err != nil {
			t.Fatal(err)
		}
		if o, ok := object.(*core.Secret); ok {
			block, _ := pem.Decode(o.Data["ca.crt"])
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if life := cert.NotAfter.Sub(cert.NotBefore); life > 3*366*24*time.Hour || !cert.IsCA {
				t.Errorf("CA %v, for %v", cert.IsCA, life)
			}
			return
		}
	}
	t.Error("there is no CA")
}

// Before Kubernetes 1.30, tokens do not name the node; the chart says so rather
// than have every node refused.
func TestOldKubernetes(t *testing.T) {
	c := loadChart(t)
	for version, mode := range map[string]string{"v1.29.9": "generated", "v1.27.0": "certManager", "v1.30.0": "generated"} {
		all, err := chartutil.ToRenderValues(c, map[string]any{"tls": map[string]any{"mode": mode}}, chartutil.ReleaseOptions{Name: "shoal", Namespace: "shoal"}, kubernetes(version))
		if err != nil {
			t.Fatal(err)
		}
		_, err = engine.Render(c, all)
		if refused := err != nil && strings.Contains(err.Error(), "1.30"); refused != (version == "v1.29.9") || err != nil && !refused {
			t.Errorf("%s, %s: %v", version, mode, err)
		}
	}
}

// Each flag in a pod is one that the program has.
func TestFlags(t *testing.T) {
	shoal := filepath.Join(t.TempDir(), "shoal")
	run(t, "../..", "go", "build", "-o", shoal, "./cmd/shoal")
	help := map[string]string{}
	for _, set := range valueSets {
		for _, m := range render(t, readValues(t, "testdata/"+set+".yaml")) {
			object, err := decode(m.Content)
			if err != nil {
				t.Fatal(err)
			}
			var containers []core.Container
			switch o := object.(type) {
			case *apps.DaemonSet:
				containers = o.Spec.Template.Spec.Containers
			case *apps.Deployment:
				containers = o.Spec.Template.Spec.Containers
			}
			for _, c := range containers {
				command := c.Args[0]
				if help[command] == "" {
					out, err := exec.Command(shoal, command, "--help").CombinedOutput()
					if err != nil {
						t.Fatalf("shoal %s --help: %v", command, err)
					}
					help[command] = string(out)
				}
				for _, arg := range c.Args[1:] {
					if arg == "--" {
						break // what follows is for another command
					}
					if flag, _, _ := strings.Cut(arg, "="); !strings.Contains(help[command], flag+" ") {
						t.Errorf("%s: shoal %s has no flag %s", set, command, flag)
					}
				}
			}
		}
	}
}
