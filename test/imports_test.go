package test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/shoalproject/shoal"

// may lists, for each package of the module, which others it may import. A
// package that is not listed fails the test: its place is to be decided on
// purpose.
var may = map[string][]string{
	"piece":    nil,
	"registry": nil,
	"mtls":     nil,
	"nodeinfo": nil,
	"runtimes": {"registry"},
	"doctor":   {"mtls", "nodeinfo", "runtimes"},
	"systemd":  nil,
	"attach":   nil,

	"internal/hostcheck": nil,
	"internal/connlimit": nil,
	"internal/logbound":  nil,

	"mtls/mtlstest": nil,

	"registry/origin":       {"registry"},
	"registry/registrytest": {"registry"},

	"daemon/store":           {"piece"},
	"daemon/store/storetest": {"daemon/store", "piece"},
	"daemon/fetch":           {"piece", "scheduler"},
	"daemon/mirror":          {"registry"},
	"daemon/peer":            {"piece"},

	"scheduler":     {"piece"},
	"scheduler/sim": {"scheduler", "piece"},

	"scheduler/jobs":     nil,
	"scheduler/jobstore": {"scheduler/jobs"},
	"scheduler/api":      {"scheduler/jobs"},
	"scheduler/harbor":   {"scheduler/jobs"},

	// The two ends know nothing of the network, and the network nothing of
	// them: who puts a process together joins them.
	"scheduler/wire":        {"scheduler", "scheduler/jobs", "scheduler/wire/wirepb"},
	"scheduler/wire/wirepb": nil,
	"scheduler/wire/outbox": nil,
	"scheduler/server":      {"scheduler", "scheduler/jobs", "scheduler/wire/outbox"},
	"scheduler/client":      {"scheduler", "scheduler/jobs", "scheduler/wire/outbox"},
	"scheduler/standalone":  {"scheduler", "scheduler/api", "scheduler/harbor", "scheduler/jobs", "scheduler/jobstore", "scheduler/server", "scheduler/wire", "mtls", "systemd", "internal/hostcheck", "internal/connlimit", "scheduler/issuer"},

	// The two ends of issuing know a certificate, and not each other.
	"scheduler/issuer":            {"mtls"},
	"scheduler/issuer/issuertest": nil,
	"daemon/certificate":          {"mtls"},

	"daemon": {"daemon/certificate", "daemon/store", "daemon/fetch", "daemon/mirror", "daemon/peer", "piece", "registry", "registry/origin",
		"scheduler", "scheduler/jobs", "scheduler/server", "scheduler/client", "scheduler/wire", "mtls", "nodeinfo", "systemd", "internal/hostcheck", "internal/connlimit"},
	"swarmtest":      {"daemon/peer", "piece", "scheduler", "scheduler/client", "scheduler/wire"},
	"swarmtest/liar": {"swarmtest"},
	"layout":         {"registry"},
	"demo":           {"registry", "registry/registrytest"},
	"cmd/shoal":      {"internal/logbound", "daemon", "demo", "doctor", "attach", "layout", "mtls", "registry", "registry/origin", "runtimes", "scheduler/api", "scheduler/jobs", "scheduler/standalone", "swarmtest", "systemd"},
	"test":           nil,
	"test/rig":       {"mtls/mtlstest"},
}

func TestImports(t *testing.T) {
	imports := goList(t)
	for pkg, list := range imports {
		allowed, known := may[pkg]
		if !known {
			t.Errorf("package %s has no place in the import rule", pkg)
			continue
		}
		for _, imported := range list {
			if !slices.Contains(allowed, imported) {
				t.Errorf("package %s must not import %s", pkg, imported)
			}
		}
	}
	for pkg := range may {
		if _, ok := imports[pkg]; !ok {
			t.Errorf("the import rule names %s, which does not exist", pkg)
		}
	}
}

// From the command to a leaf it is at most four steps.
func TestDepth(t *testing.T) {
	imports := goList(t)
	var depth func(pkg string) int
	depth = func(pkg string) int {
		deepest := 0
		for _, p := range imports[pkg] {
			deepest = max(deepest, depth(p))
		}
		return deepest + 1
	}
	if d := depth("cmd/shoal") - 1; d > 4 {
		t.Errorf("cmd/shoal is %d steps from a leaf", d)
	}
}

// What tests need stays out of the product.
func TestProductDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"/cmd/shoal").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, forbidden := range []string{"testing", "go.uber.org/goleak", "pgregory.net/rapid", "github.com/rogpeppe/go-internal"} {
			if dep == forbidden || strings.HasPrefix(dep, forbidden+"/") {
				t.Errorf("the product depends on %s", dep)
			}
		}
	}
}

// goList returns what each package of the module imports of the module, both
// without the module's path.
func goList(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		words := strings.Fields(line)
		pkg := strings.TrimPrefix(words[0], module+"/")
		imports[pkg] = nil
		for _, w := range words[1:] {
			if inner, ok := strings.CutPrefix(w, module+"/"); ok {
				imports[pkg] = append(imports[pkg], inner)
			}
		}
	}
	return imports
}
