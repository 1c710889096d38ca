package deploy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	prometheus "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/releaseutil"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write deploy/kubernetes/shoal.yaml again")

const chartDir = "../../deploy/helm/shoal"

// valueSets are ways to use the chart; each must render to what a cluster takes.
// The first is what nobody changed.
var valueSets = []string{
	"default", "single", "cert-manager", "issuer", "existing", "plaintext", "monitored",
	"k3s", "private", "ipv6", "external", "tuned",
}

func loadChart(t testing.TB) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func readValues(t testing.TB, file string) map[string]any {
	t.Helper()
	values, err := chartutil.ReadValuesFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// render returns the chart's manifests, in the order in which Helm installs them.
func render(t testing.TB, values map[string]any) []releaseutil.Manifest {
	t.Helper()
	manifests, err := tryRender(loadChart(t), values)
	if err != nil {
		t.Fatal(err)
	}
	return manifests
}

// kubernetes is a cluster of a version.
func kubernetes(version string) *chartutil.Capabilities {
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: version, Major: "1", Minor: strings.Split(version, ".")[1]}
	return caps
}

func tryRender(c *chart.Chart, values map[string]any) ([]releaseutil.Manifest, error) {
	release := chartutil.ReleaseOptions{Name: "shoal", Namespace: "shoal", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, values, release, kubernetes("v1.34.0")) // checks the schema
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	for name, content := range files {
		if strings.Contains(content, "<no value>") {
			return nil, fmt.Errorf("%s: a value is missing", name)
		}
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	_, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	return manifests, err
}

// decode returns the object of a manifest. A field that its type does not have, or
// that is there twice, is an error.
func decode(manifest string) (runtime.Object, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), certmanager.AddToScheme(types), prometheus.AddToScheme(types)); err != nil {
		return nil, err
	}
	object, _, err := serializer.NewCodecFactory(types, serializer.EnableStrict).UniversalDeserializer().Decode([]byte(manifest), nil, nil)
	return object, err
}

func TestLint(t *testing.T) {
	for _, set := range valueSets {
		result := lint.AllWithKubeVersionAndSchemaValidation(chartDir, readValues(t, "testdata/"+set+".yaml"), "shoal", nil, false)
		for _, m := range result.Messages {
			// Worth no icon.
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %s", set, m)
			}
		}
	}
}

// TestRender renders each set of values, decodes all of it strictly, and looks at
// what must hold of every pod.
func TestRender(t *testing.T) {
	for _, set := range valueSets {
		t.Run(set, func(t *testing.T) {
			var kinds []string
			for _, m := range render(t, readValues(t, "testdata/"+set+".yaml")) {
				object, err := decode(m.Content)
				if err != nil {
					t.Errorf("%s: %v\n%s", m.Name, err, m.Content)
					continue
				}
				kinds = append(kinds, m.Head.Kind)
				checkObject(t, object)
			}
			slices.Sort(kinds)
			if got, want := strings.Join(kinds, " "), wantKinds[set]; got != want {
				t.Errorf("it makes %s, want %s", got, want)
			}
		})
	}
}

var wantKinds = map[string]string{
	"default":      "ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PodDisruptionBudget Secret Service ServiceAccount ServiceAccount",
	"single":       "DaemonSet ServiceAccount",
	"cert-manager": "Certificate Certificate DaemonSet Deployment Issuer Issuer NetworkPolicy PodDisruptionBudget Service ServiceAccount ServiceAccount",
	"issuer":       "Certificate DaemonSet Deployment NetworkPolicy PodDisruptionBudget Service ServiceAccount ServiceAccount",
	"existing":     "DaemonSet Deployment NetworkPolicy PodDisruptionBudget Service ServiceAccount ServiceAccount",
	"plaintext":    "DaemonSet Deployment Service ServiceAccount ServiceAccount",
	"monitored":    "ClusterRole ClusterRoleBinding ConfigMap ConfigMap DaemonSet Deployment NetworkPolicy PodDisruptionBudget PodMonitor Secret Service ServiceAccount ServiceAccount ServiceMonitor",
	"k3s":          "ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PodDisruptionBudget Secret Service ServiceAccount ServiceAccount",
	"private":      "ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PodDisruptionBudget Secret Service ServiceAccount ServiceAccount",
	"ipv6":         "ClusterRole ClusterRoleBinding ConfigMap DaemonSet Deployment NetworkPolicy PodDisruptionBudget Secret Service ServiceAccount ServiceAccount",
	"external":     "DaemonSet ServiceAccount",
	"tuned":        "ClusterRole ClusterRoleBinding DaemonSet Deployment NetworkPolicy PodDisruptionBudget ResourceQuota Service ServiceAccount ServiceAccount",
}

// What makes no sense is refused before it gets to a cluster.
func TestRefused(t *testing.T) {
	c := loadChart(t)
	for values, mention := range map[string]string{
		"daemon: {prot: 1}":                             "prot",
		"daemon: {ports: {peer: 70000}}":                "peer",
		"auth: maybe":                                   "auth",
		"auth: node":                                    "dockerConfigSecret",
		"tls: {mode: existing}":                         "schedulerSecret",
		"tls: {mode: off}":                              "mode",
		"registries: ['https://registry.example.com']":  "registries",
		"daemon: {resources: {limits: {memory: lots}}}": "memory",
		"daemon: {cacheDir: var/lib}":                   "cacheDir",
		"attach: {configPaths: []}":                     "configPaths",
		"image: {digest: latest}":                       "digest",
		"scheduler: {external: [shoal]}":                "external",
		"scheduler: {external: ['a:4402']}":             "issuerURL",
		"scheduler: {external: ['a:4402']}\ntls: {issuerURL: 'https://a:4405'}": "caConfigMap",
		"tls: {lifetime: 1d}":               "lifetime",
		"tls: {issuerURL: 'http://a:4405'}": "issuerURL",
		"tls: {serviceAccounts: [shoal]}":   "serviceAccounts",
	} {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		if _, err := tryRender(c, v); err == nil || !strings.Contains(err.Error(), mention) {
			t.Errorf("%s: error %v does not name %s", values, err, mention)
		}
	}
}

// TestPlainManifests holds deploy/kubernetes to the chart.
func TestPlainManifests(t *testing.T) {
	const dir = "../../deploy/kubernetes"
	head, err := os.ReadFile(filepath.Join(dir, "head.txt"))
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.NewBuffer(head)
	for _, m := range render(t, readValues(t, filepath.Join(dir, "values.yaml"))) {
		if m.Head.Kind == "Secret" {
			t.Error("a secret would be everybody's")
		}
		content := regexp.MustCompile(`(?m)^ *(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n`).ReplaceAllString(m.Content, "")
		fmt.Fprintf(b, "---\n%s\n", strings.TrimSpace(content))
	}
	file := filepath.Join(dir, "shoal.yaml")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Errorf("%s is not what the chart makes: go test -run PlainManifests -update", file)
	}
}

// TestNotes renders what Helm says after an installation.
func TestNotes(t *testing.T) {
	c := loadChart(t)
	for _, set := range valueSets {
		all, err := chartutil.ToRenderValues(c, readValues(t, "testdata/"+set+".yaml"), chartutil.ReleaseOptions{Name: "shoal", Namespace: "ns"}, kubernetes("v1.34.0"))
		if err != nil {
			t.Fatal(err)
		}
		files, err := engine.Render(c, all)
		if err != nil {
			t.Fatal(err)
		}
		notes := files["shoal/templates/NOTES.txt"]
		if !strings.Contains(notes, "kubectl -n ns rollout status daemonset/") || strings.Contains(notes, "<no value>") {
			t.Errorf("%s:\n%s", set, notes)
		}
		if strings.Contains(notes, "WARNING") != (set == "plaintext") {
			t.Errorf("%s is warned about the wrong thing:\n%s", set, notes)
		}
	}
}
