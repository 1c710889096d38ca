package e2e

import (
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Registry is Debian's docker-registry with two ways in, each counted by a tap
// of its own: what Shoal fetched and what a runtime fetched past it can then
// never be taken for each other.
type Registry struct {
	// Origin is the endpoint that daemons are told to use.
	Origin *Tap
	// Direct is the endpoint that runtimes fall back to.
	Direct *Tap

	addr string // the registry itself
	proc *Process
}

// registryConfig leaves the access log to the taps. What the log then still calls
// errors is mostly a push asking for what is not there yet.
const registryConfig = `version: 0.1
log:
  accesslog:
    disabled: true
  level: error
storage:
  filesystem:
    rootdirectory: %s
  delete:
    enabled: true
http:
  addr: %q
`

// StartRegistry runs a registry on the node until the end of the test.
func (n *Node) StartRegistry(t testing.TB) *Registry {
	t.Helper()
	program := NeedProgram(t, "docker-registry", "docker-registry")
	r := &Registry{}
	r.proc = startOnPorts(t, 1, func(ports []string) (*Process, error) {
		r.addr = net.JoinHostPort(n.Addr, ports[0])
		config := n.Write(t, fmt.Sprintf(registryConfig, n.Path("registry"), r.addr), "registry.yml")
		proc := n.Start(t, "registry", n.Command(program, "serve", config))
		return proc, proc.waitReady(func() error { return getOK("http://" + r.addr + "/v2/") })
	})
	r.Origin = NewTap(t, n.Addr, "http://"+r.addr)
	r.Direct = NewTap(t, n.Addr, "http://"+r.addr)
	return r
}

// Push uploads an image under repository:tag, past the taps.
func (r *Registry) Push(t testing.TB, img *Image, repository, tag string) {
	t.Helper()
	ref, err := name.NewTag(r.addr+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if img.index != nil {
		err = remote.WriteIndex(ref, img.index, remote.WithTransport(transport))
	} else {
		err = remote.Write(ref, img.image, remote.WithTransport(transport))
	}
	if err != nil {
		t.Fatalf("pushing %s: %v", ref, err)
	}
}

// PushBlob uploads content into a repository, without any manifest, past the
// taps.
func (r *Registry) PushBlob(t testing.TB, content []byte, repository string) Descriptor {
	t.Helper()
	repo, err := name.NewRepository(r.addr+"/"+repository, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	layer := static.NewLayer(content, types.OCIUncompressedLayer)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if err := remote.WriteLayer(repo, layer, remote.WithTransport(transport)); err != nil {
		t.Fatalf("pushing a blob to %s: %v", repo, err)
	}
	return Descriptor{Digest: digestOf(content), MediaType: string(types.OCIUncompressedLayer), Size: int64(len(content))}
}

// Stop takes the origin away, both ways in.
func (r *Registry) Stop(t testing.TB) {
	t.Helper()
	r.Origin.Stop(t)
	r.Direct.Stop(t)
	r.proc.Stop(t)
}
