package attack

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// inNetwork runs the test again in a network namespace of its own, where
// addresses can be given out that the machine does not have. It reports false
// in the test that did so.
func inNetwork(t *testing.T) bool {
	const inside = "SHOAL_TEST_NETWORK"
	if os.Getenv(inside) != "" {
		for _, args := range [][]string{
			{"link", "set", "lo", "up"}, {"addr", "add", "203.0.113.5/32", "dev", "lo"}, {"addr", "add", "10.99.0.2/32", "dev", "lo"},
		} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
			}
		}
		return true
	}
	rig.Shoal(t) // built where there is a network
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=yes", "SHOAL_BINARY="+rig.Shoal(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// An allowed registry with a public address leads the daemon to a private one,
// by a redirect of a listing or a manifest, or by the realm of a challenge.
// Nothing reaches it, and no caller sees its answer.
func TestRegistryLeadsToNoPrivateAddress(t *testing.T) {
	if !inNetwork(t) {
		return
	}
	const secret = "hunter2"
	var reached atomic.Int64
	l, err := net.Listen("tcp", "10.99.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	inner := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"db_password":"` + secret + `","token":"` + secret + `"}`))
	}), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			reached.Add(1)
		}
	}}
	go func() { _ = inner.Serve(l) }()
	defer inner.Close()

	o := registrytest.New(t, registrytest.WithAddress("203.0.113.5:0"))
	d := o.AddImage("app", "v1", noise(1, 1000)).Manifest.Digest
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	paths := []string{"app/tags/list", "app/referrers/" + d.String(), "app/manifests/v1", "app/manifests/" + digest.FromString("x").String()}
	lead := map[string]registrytest.Fault{
		"redirect": registrytest.Redirect("http://10.99.0.2:8080/v1/secrets"),
		"realm":    registrytest.Status(401, "WWW-Authenticate", `Bearer realm="http://10.99.0.2:8080/token",service="x"`),
	}
	for name, fault := range lead {
		o.Heal()
		o.Inject(registrytest.Order{}, fault)
		for _, path := range paths {
			r := n.Do(t.Context(), rig.Request{Host: upstream, Path: path})
			if r.Status/100 == 2 || strings.Contains(string(r.Body), secret) {
				t.Errorf("%s, %s: the caller gets %d %s", name, path, r.Status, r.Body)
			}
		}
		if got := reached.Swap(0); got > 0 {
			t.Errorf("%s: %d connections reached the private address", name, got)
		}
	}
	o.Heal()
	if r := n.Do(t.Context(), rig.Request{Host: upstream, Path: paths[0]}); r.Status != 200 {
		t.Errorf("without it: %v", r)
	}
}
