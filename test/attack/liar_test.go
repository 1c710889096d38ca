package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/piece"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// rangeLiar dials the peer ports of daemons and never speaks to a scheduler. It
// says that it has all of a blob, with sums that fit its noise, from no publisher.
type rangeLiar struct {
	endpoint *peer.Endpoint
	swarm    *peer.Swarm
	noise    []byte
}

func (l *rangeLiar) Find(peer.InfoHash) (peer.Blob, error) { return peer.Blob{}, peer.ErrClosed }

// Reader opens what the liar sends.
func (l *rangeLiar) Reader() (peer.Reader, error) { return lies{bytes.NewReader(l.noise)}, nil }

type lies struct{ *bytes.Reader }

func (lies) Close() error { return nil }

func (r lies) CopyRange(w io.Writer, off, n int64) (int64, error) {
	b := make([]byte, n)
	if _, err := r.ReadAt(b, off); err != nil {
		return 0, err
	}
	m, err := w.Write(b)
	return int64(m), err
}

// startRangeLiar lies to the daemons about a blob until the test ends.
func startRangeLiar(t *testing.T, nodes []*rig.Daemon, d digest.Digest, size int, id peer.ID, cfg *tls.Config) *rangeLiar {
	t.Helper()
	l := &rangeLiar{noise: bytes.Repeat([]byte("bytes of the attacker's choice. "), size/32+1)[:size]}
	var err error
	if l.endpoint, err = peer.New(peer.Config{ID: id, Finder: l, Slots: 1024, TLS: cfg}); err != nil {
		t.Fatal(err)
	}
	layout := piece.NewLayout(int64(size))
	blob := peer.Blob{Digest: d, Size: int64(size), Content: l}
	for i := range layout.Count() {
		off, n := layout.Span(i)
		h := piece.NewHash()
		h.Write(l.noise[off : off+n])
		blob.Pieces = append(blob.Pieces, peer.Have{Index: i, Sum: piece.Sum(h.Sum(nil)), Known: true})
	}
	if l.swarm, err = l.endpoint.Open(blob); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			for ctx.Err() == nil {
				if conn, err := l.swarm.Dial(ctx, n.Peer, n.Config.Name); err == nil {
					select {
					case <-conn.Done():
					case <-ctx.Done():
					}
				}
				select {
				case <-time.After(2 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		l.endpoint.Close()
		wg.Wait()
	})
	return l
}

// identity loads a certificate for both ends of TLS.
func identity(t *testing.T, f *rig.Files) *tls.Config {
	t.Helper()
	id, err := mtls.Load(f.Cert, f.Key, f.CA)
	if err != nil {
		t.Fatal(err)
	}
	return id.Config(slog.New(slog.DiscardHandler))
}

// Nothing that an attacker chose is delivered, and nobody else is blamed for it,
// while one that no scheduler named says to all nodes that it has the blob: a
// stranger where there is no TLS, a node with its certificate where there is.
func TestNobodyGetsBytesOfAStranger(t *testing.T) {
	for _, c := range []struct {
		name string
		tls  bool
		id   peer.ID
	}{
		{"a stranger without TLS", false, peer.NewID()},
		{"a node under no name", true, peer.NewID()},
		{"a node under another's name", true, peer.IDOf("node-1")},
		{"a node under its own name", true, peer.IDOf("node-99")},
	} {
		t.Run(c.name, func(t *testing.T) {
			const size, count = 16 << 20, 5
			o := registrytest.New(t)
			o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Throttle(12<<20))
			blob := noise(7, size)
			d := o.AddBlob("app", blob)
			next := o.AddBlob("app", noise(8, size))
			var ca *rig.CA
			issue := func(names ...string) *rig.Files {
				if !c.tls {
					return nil
				}
				if ca == nil {
					ca = rig.NewCA(t)
				}
				return ca.Issue(t, names...)
			}
			s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: issue("127.0.0.1")})
			var nodes []*rig.Daemon
			for i := range count {
				name := fmt.Sprintf("node-%d", i+1)
				nodes = append(nodes, rig.StartDaemon(t, rig.DaemonConfig{
					Name: name, Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)},
					TLS: issue(name), Args: []string{"--auth", "open"},
				}))
			}
			var cfg *tls.Config
			if c.tls {
				cfg = identity(t, issue("node-99"))
			}
			startRangeLiar(t, nodes, d, size, c.id, cfg)

			done := make(chan struct{})
			var ranges sync.WaitGroup
			const off, n = 3 << 20, 1 << 20
			for _, node := range nodes {
				ranges.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						ctx, cancel := context.WithTimeout(context.Background(), rig.Limit)
						r := node.Do(ctx, rig.Request{
							Host: upstream, Path: "app/blobs/" + d.String(),
							Header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}},
							Digest: digest.FromBytes(blob[off : off+n]),
						})
						cancel()
						if r.Wrong() {
							t.Errorf("range of %s is complete and wrong: %v, %.40q", node.Config.Name, r, r.Body)
							return
						}
					}
				})
			}
			results, took := rig.BlobAll(nodes, upstream, "app", d)
			close(done)
			ranges.Wait()
			for i, r := range results {
				if r.Wrong() {
					t.Errorf("body of node %d is complete and wrong", i+1)
				}
			}
			rig.AllRight(t, results)
			first := copies(o, size)
			again, tookNext := rig.BlobAll(nodes, upstream, "app", next)
			rig.AllRight(t, again)
			t.Logf("%v, %.2f copies; the next blob %v, %.2f copies", took, first, tookNext, copies(o, size)-first)
			if first > 1.2 || copies(o, size)-first > 1.2 {
				t.Errorf("origin sent %.2f copies, and %.2f of the next blob; honest nodes alone need 1", first, copies(o, size)-first)
			}
			for _, node := range nodes {
				if n := node.Metric("shoal_peer_lies_total"); n > 0 {
					t.Errorf("%s blames its peers %v times", node.Config.Name, n)
				}
			}
		})
	}
}
