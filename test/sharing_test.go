package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// dockerConfig returns docker's config.json with a user's password.
func dockerConfig(t *testing.T, user string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	content := fmt.Appendf(nil, `{"auths":{%q:{"username":%q,"password":"%s-password"}}}`, upstream, user, user)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// nobodyHas is the Finder of a node that has nothing.
type nobodyHas struct{}

func (nobodyHas) Find(peer.InfoHash) (peer.Blob, error) { return peer.Blob{}, os.ErrNotExist }

// deaf handles peers that do not matter.
type deaf struct{}

func (deaf) Opened(*peer.Conn)            {}
func (deaf) Have(*peer.Conn, []peer.Have) {}
func (deaf) Changed(*peer.Conn)           {}
func (deaf) Closed(*peer.Conn, error)     {}

// nothing is the content of a node that has nothing.
type nothing struct{}

func (nothing) Reader() (peer.Reader, error) { return nil, os.ErrNotExist }

// knows reports whether a node lets a stranger into the swarm of a blob, who
// knows its digest and size and has no credential.
func (n *node) knows(b v1.Descriptor) bool {
	n.t.Helper()
	e, err := peer.New(peer.Config{Logger: debugLog(n.logs), ID: peer.IDOf("stranger"), Finder: nobodyHas{}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer e.Close()
	swarm, err := e.Open(peer.Blob{Digest: b.Digest, Size: b.Size, Content: nothing{}, Handler: deaf{}})
	if err != nil {
		n.t.Fatal(err)
	}
	defer swarm.Close()
	conn, err := swarm.Dial(n.t.Context(), n.peer, "")
	if err == nil {
		conn.Close(os.ErrClosed)
	}
	return err == nil
}

// A token of somebody is no reason not to share what everyone may read: images
// of registries that want a token for everything are shared in the first pull,
// by nodes whose peers prove nothing, and after a restart. It costs the
// registry one question for each image and node.
func TestPublicByTokenIsShared(t *testing.T) {
	const size = 4 << 20
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{
		Users: map[string]string{"alice": "alice-password"}, Allow: func(string, string) bool { return true },
	}))
	image := o.AddImage("app", "", noise(1, size), noise(2, 300_000), noise(3, 100))
	index := o.AddIndex("app", "v1", image.Manifest)
	s := startScheduler(t)
	nodes := startCluster(t, o, 4, []*sched{s}, relayed)
	each(nodes, func(_ int, n *node) { newPuller(t, n.url, "alice").pull(index, image) })
	if c := copies(o, size); c > 1.3 {
		t.Errorf("the origin sent %.2f copies", c)
	}
	anonymous := 0
	for _, r := range o.Requests(registrytest.Token) {
		if r.Authorization == "" {
			anonymous++
		}
	}
	if anonymous > len(nodes) {
		t.Errorf("%d anonymous tokens for %d nodes", anonymous, len(nodes))
	}
	for _, n := range nodes {
		n.settled()
	}
	again := nodes[0].restart()
	again.connected()
	for _, n := range nodes[1:] {
		n.stop()
	}
	o.ResetCounters()
	late := startMember(t, o, 9, []*sched{s}, relayed)
	late.connected()
	newPuller(t, late.url, "alice").pull(index, image)
	mostCopies(t, o, size, 0)
}

// What nobody gets without a credential stays on the node that fetched it,
// while it comes and afterwards, in whatever mode, and over a restart.
func TestPrivateStaysOnTheNode(t *testing.T) {
	for _, mode := range []string{"relay", "node", "open", "relay, shared on purpose"} {
		t.Run(mode, func(t *testing.T) {
			mode, _, shared := strings.Cut(mode, ",")
			o := owners(t, map[string]string{"alice": "app"})
			image := o.AddImage("app", "v1", noise(1, 1<<20), noise(2, 100))
			d := image.Layers[0].Digest
			s := startScheduler(t)
			alice := []string{"Authorization", "Bearer " + o.IssueToken("alice", "app")}
			change := func(c *daemon.Config) { c.Auth = mode }
			if mode == "node" {
				alice, change = nil, func(c *daemon.Config) { c.Auth, c.DockerConfig = mode, dockerConfig(t, "alice") }
			}
			n := startCluster(t, o, 1, []*sched{s}, change, func(c *daemon.Config) { c.PeerPlaintextPrivate = shared })[0]
			halfway, goOn := make(chan struct{}), make(chan struct{})
			o.Inject(registrytest.Order{Kind: registrytest.Blob, Method: http.MethodGet, Digest: d, Times: 1}, registrytest.After(300<<10, func() {
				close(halfway)
				<-goOn
			}))
			n.right(n.get(manifestPath("v1"), alice...), image.Manifest.Digest)
			got := make(chan answer, 1)
			go func() { got <- n.get(blobPath(d), alice...) }()
			<-halfway
			all := []v1.Descriptor{image.Layers[0], image.Layers[1], image.Manifest}
			check := func(n *node, when string, blobs ...v1.Descriptor) {
				t.Helper()
				for _, b := range blobs {
					if n.knows(b) != shared {
						t.Errorf("%s a stranger is let into the swarm of %s: %v, want %v", when, b.Digest, !shared, shared)
					}
				}
			}
			check(n, "while it comes", all[0])
			close(goOn)
			n.right(<-got, d)
			n.right(n.get(blobPath(image.Layers[1].Digest), alice...), image.Layers[1].Digest)
			n.settled()
			check(n, "afterwards", all...)
			again := n.restart()
			again.connected()
			check(again, "after a restart", all...)
			if !shared && !strings.Contains(again.logs.String(), "not known to be public stay on this node") {
				t.Error("it is not said")
			}
		})
	}
}

// What turns out to be public after it came is shared then: the origin did not
// answer when it was asked.
func TestPublicTurnsOutLate(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{
		Users: map[string]string{"alice": "alice-password"}, Allow: func(string, string) bool { return true },
	}))
	image := o.AddImage("app", "v1", noise(1, 1<<20))
	n := startCluster(t, o, 1, []*sched{startScheduler(t)}, relayed)[0]
	alice := []string{"Authorization", "Bearer " + o.IssueToken("alice", "app")}
	answer := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Token}, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-answer
			next.ServeHTTP(w, r)
		})
	})
	began := time.Now()
	n.right(n.get(manifestPath("v1"), alice...), image.Manifest.Digest)
	n.right(n.get(blobPath(image.Layers[0].Digest), alice...), image.Layers[0].Digest)
	n.settled()
	if n.knows(image.Layers[0]) {
		t.Error("shared before anybody said that it is public")
	}
	t.Logf("the pull took %v", time.Since(began))
	close(answer)
	eventually(t, "what is public is shared", func() bool { return n.knows(image.Layers[0]) })
}

// A node that is alone listens for no peer and runs nothing of a swarm.
func TestAloneListensForNobody(t *testing.T) {
	o := registrytest.New(t)
	addr := freeAddress(t)
	n := startNode(t, o, func(c *daemon.Config) { c.PeerListen = addr })
	n.blob(o.AddBlob("app", noise(1, 1000)))
	if n.peer != "" {
		t.Errorf("it listens at %s", n.peer)
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("somebody answers at --peer-listen")
	}
}
