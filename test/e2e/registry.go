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

	addr   string // the registry itself
	proc   *Process
	node   *Node
	access *Access
}

// Access says whom a registry lets in; nil is everyone.
type Access struct {
	// Config is the section auth of the registry's configuration.
	Config string
	// Push returns the Authorization of who may push to a repository.
	Push func(repository string) string
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

// StartRegistry runs a registry for everyone on the node until the end of the
// test.
func (n *Node) StartRegistry(t testing.TB) *Registry {
	t.Helper()
	return n.StartRegistryFor(t, nil)
}

// StartRegistryFor runs a registry that lets in whom access says.
func (n *Node) StartRegistryFor(t testing.TB, access *Access) *Registry {
	t.Helper()
	r := &Registry{node: n, access: access}
	r.proc = startOnPorts(t, 1, func(ports []string) (*Process, error) {
		r.addr = net.JoinHostPort(n.Addr, ports[0])
		return r.start(t)
	})
	r.Origin = NewTap(t, n.Addr, "http://"+r.addr)
	r.Direct = NewTap(t, n.Addr, "http://"+r.addr)
	return r
}

func (r *Registry) start(t testing.TB) (*Process, error) {
	t.Helper()
	program := NeedProgram(t, "docker-registry", "docker-registry")
	text := fmt.Sprintf(registryConfig, r.node.Path("registry"), r.addr)
	if r.access != nil {
		text += r.access.Config
	}
	config := r.node.Write(t, text, "registry.yml")
	proc := r.node.Start(t, "registry", r.node.Command(program, "serve", config))
	// Any answer will do: one that lets nobody in says 401.
	return proc, proc.waitReady(func() error {
		resp, err := probeClient.Get("http://" + r.addr + "/v2/")
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	})
}

// RestartFor starts the registry again, with the same content, for others.
func (r *Registry) RestartFor(t testing.TB, access *Access) {
	t.Helper()
	r.proc.Stop(t)
	r.access = access
	proc, err := r.start(t)
	if err != nil {
		t.Fatal(err)
	}
	r.proc = proc
}

// pushing makes requests to a repository in the name of who may push there.
func (r *Registry) pushing(repository string) http.RoundTripper {
	transport := &http.Transport{DisableKeepAlives: true}
	if r.access == nil {
		return transport
	}
	return authorized{transport, r.access.Push(repository)}
}

type authorized struct {
	http.RoundTripper
	authorization string
}

// RoundTrip adds the Authorization.
func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", a.authorization)
	return a.RoundTripper.RoundTrip(r)
}

// Push uploads an image under repository:tag, past the taps.
func (r *Registry) Push(t testing.TB, img *Image, repository, tag string) {
	t.Helper()
	ref, err := name.NewTag(r.addr+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	transport := r.pushing(repository)
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
	transport := r.pushing(repository)
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
