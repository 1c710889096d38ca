package attack

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// A web page whose name is made to mean 127.0.0.1 reads nothing of a daemon:
// neither images, nor what the admin port tells. Clients of the machine do.
func TestWebPageReadsNothingOfLoopback(t *testing.T) {
	o := registrytest.New(t)
	o.AddImage("app", "v1", noise(1, 1000))
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	get := func(addr, path, host string) (int, string) {
		r, err := http.NewRequest("GET", "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return resp.StatusCode, string(b)
	}
	_, mirrorPort, _ := strings.Cut(n.Mirror, ":")
	for addr, paths := range map[string][]string{
		n.Mirror: {"/v2/", "/v2/app/manifests/v1?ns=" + upstream, "/v2/app/tags/list?ns=" + upstream},
		n.Admin:  {"/metrics", "/node", "/healthz", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=1"},
	} {
		for _, path := range paths {
			for _, host := range []string{"evil.test", "evil.test:" + mirrorPort, "127.0.0.1.evil.test", "10.0.0.1:80"} {
				if status, body := get(addr, path, host); status/100 == 2 {
					t.Errorf("%s of %s as %s: %d %.60q", path, addr, host, status, body)
				}
			}
			for _, host := range []string{"", "localhost", "127.0.0.1", "[::1]:" + mirrorPort} {
				if status, body := get(addr, path, host); status != 200 {
					t.Errorf("%s of %s as %s: %d %s", path, addr, host, status, body)
				}
			}
		}
	}
}
