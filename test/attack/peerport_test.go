package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// twice is the longest that a pull may take under attack which takes base
// without: twice as long, and a second for a machine that does other things.
func twice(base time.Duration) time.Duration { return 2*base + time.Second }

// dialFrom opens a connection from a loopback address.
func dialFrom(ctx context.Context, source, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", addr)
}

// crowd runs one attacker for each of n connections from a source to addr, again
// and again until the test ends. It returns a count of the connections made.
func crowd(t *testing.T, n int, source, addr string, attack func(ctx context.Context, c net.Conn)) *atomic.Int64 {
	t.Helper()
	var made atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if c, err := dialFrom(ctx, source, addr); err == nil {
					made.Add(1)
					closer := context.AfterFunc(ctx, func() { c.Close() })
					attack(ctx, c)
					closer()
					c.Close()
				}
				if time.Since(began) > 100*time.Millisecond {
					continue
				}
				select { // turned away: not at once again
				case <-time.After(250 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return &made
}

// sayNothing holds a connection and says nothing.
func sayNothing(_ context.Context, c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// until waits until a crowd has made so many connections.
func until(t *testing.T, made *atomic.Int64, n int64) {
	t.Helper()
	rig.Eventually(t, fmt.Sprintf("%d connections are made", n), 30*time.Second, func() error {
		if got := made.Load(); got < n {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// Strangers without a certificate, at eight addresses, do not keep a node out of
// its swarm.
func TestStrangersWithoutCertificateKeepNobodyOut(t *testing.T) {
	const size = 8 << 20
	o, ca := registrytest.New(t), rig.NewCA(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: ca.Issue(t, "127.0.0.1")})
	start := func(name string) *rig.Daemon {
		return rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)},
			TLS: ca.Issue(t, name, "127.0.0.1"), Args: []string{"--auth", "open"},
		})
	}
	holder, node := start("node-10"), start("node-11")
	quiet, loud := o.AddBlob("app", noise(1, size)), o.AddBlob("app", noise(2, size))
	rig.AllRight(t, []rig.Result{holder.Blob(upstream, "app", quiet), holder.Blob(upstream, "app", loud)})

	base := node.Blob(upstream, "app", quiet)
	var strangers atomic.Int64
	for i := range 8 {
		made := crowd(t, 160, fmt.Sprintf("127.0.0.%d", 21+i), holder.Peer, sayNothing)
		until(t, made, 160)
		strangers.Add(made.Load())
	}
	o.ResetCounters()
	under := node.Blob(upstream, "app", loud)
	rig.AllRight(t, []rig.Result{base, under})
	t.Logf("%d strangers: %v, without them %v; %.2f copies", strangers.Load(), under.Time, base.Time, copies(o, size))
	if limit := twice(base.Time); under.Time > limit {
		t.Errorf("the pull took %v, should take at most %v", under.Time, limit)
	}
	if c := copies(o, size); c > 0.2 {
		t.Errorf("the origin sent %.2f copies of what another node holds", c)
	}
}

// bare is a peer that speaks as little as it must.
type bare struct {
	net.Conn
	digest digest.Digest
	size   int
}

// greet does all that comes before a peer is known, with a HAVE ALL or HAVE NONE.
func (w bare) greet(statement byte) error {
	hash, id := peer.InfoHashOf(w.digest), peer.NewID()
	b := append([]byte("\x13BitTorrent protocol"), 0, 0, 0, 0, 0, 0x10, 0, 0x04)
	b = append(append(b, hash[:]...), id[:]...)
	intro := fmt.Sprintf("d1:md11:lt_donthavei2e10:shoal_havei1ee5:shoali1e10:shoal_sizei%dee", w.size)
	b = append(b, message(20, append([]byte{0}, intro...)...)...)
	b = append(append(b, message(statement)...), message(1)...)
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(w, make([]byte, 68))
	return err
}

const (
	haveAll  = 14
	haveNone = 15
)

func message(kind byte, body ...byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+1)), kind), body...)
}

// next returns the type of the next message.
func (w bare) next() (byte, error) {
	var head [4]byte
	for {
		if _, err := io.ReadFull(w, head[:]); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 {
			continue
		}
		if n > 1<<20 {
			return 0, errors.New("long message")
		}
		b := make([]byte, n)
		_, err := io.ReadFull(w, b)
		return b[0], err
	}
}

// idler keeps upload slots and moves nothing: as late as it may, it asks for one
// byte.
func idler(d digest.Digest, size int) func(context.Context, net.Conn) {
	ask := message(6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	return func(ctx context.Context, c net.Conn) {
		w := bare{c, d, size}
		if w.greet(haveNone) != nil {
			return
		}
		if _, err := w.Write(ask); err != nil {
			return
		}
		for {
			kind, err := w.next()
			if err != nil {
				return
			}
			if kind != 1 && kind != 7 { // UNCHOKE, and the byte
				continue
			}
			time.AfterFunc(900*time.Millisecond, func() {
				if ctx.Err() == nil {
					_, _ = w.Write(ask)
				}
			})
		}
	}
}

// One address that keeps all upload slots by asking for single bytes starves
// nobody.
func TestOneAddressStarvesNobody(t *testing.T) {
	const size = 64 << 20
	o := registrytest.New(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	// At this rate a pull takes long enough for twice its time to mean something.
	start := func(name string) *rig.Daemon {
		return rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open", "--upload-rate", "40MiB"},
		})
	}
	holder, node := start("node-10"), start("node-11")
	quiet, loud := o.AddBlob("app", noise(1, size)), o.AddBlob("app", noise(2, size))
	rig.AllRight(t, []rig.Result{holder.Blob(upstream, "app", quiet), holder.Blob(upstream, "app", loud)})

	base := node.Blob(upstream, "app", quiet)
	until(t, crowd(t, 100, "127.0.0.9", holder.Peer, idler(loud, size)), 100)
	o.ResetCounters()
	under := node.Blob(upstream, "app", loud)
	rig.AllRight(t, []rig.Result{base, under})
	t.Logf("%v, without the attack %v; %.2f copies", under.Time, base.Time, copies(o, size))
	if limit := twice(base.Time); under.Time > limit {
		t.Errorf("the pull took %v, should take at most %v", under.Time, limit)
	}
	if c := copies(o, size); c > 0.2 {
		t.Errorf("the origin sent %.2f copies of what another node holds", c)
	}
}

// One address that takes what places it gets with all nodes, from the moment at
// which the first of them pulls, does not keep them from each other.
func TestOneAddressEclipsesNoDownload(t *testing.T) {
	const size, count = 16 << 20, 4
	o := registrytest.New(t)
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Throttle(6<<20))
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	var nodes []*rig.Daemon
	for i := range count {
		nodes = append(nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: fmt.Sprintf("node-%d", 10+i), Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open"},
		}))
	}
	pull := func(d digest.Digest, begun func()) (time.Duration, float64) {
		o.ResetCounters()
		began := time.Now()
		first := make(chan rig.Result, 1)
		go func() { first <- nodes[0].Blob(upstream, "app", d) }()
		rig.Eventually(t, "the first node pulls", 10*time.Second, func() error {
			if o.Sent(d) == 0 {
				return errors.New("nothing was sent")
			}
			return nil
		})
		begun()
		others, _ := rig.BlobAll(nodes[1:], upstream, "app", d)
		rig.AllRight(t, append(others, <-first))
		return time.Since(began), copies(o, size)
	}
	base, _ := pull(o.AddBlob("app", noise(1, size)), func() {})
	loud := o.AddBlob("app", noise(2, size))
	for _, n := range nodes {
		until(t, crowd(t, 80, "127.0.0.9", n.Peer, func(ctx context.Context, c net.Conn) {
			if w := (bare{c, loud, size}); w.greet(haveAll) == nil {
				sayNothing(ctx, c)
			}
		}), 80)
	}
	took, sent := pull(loud, func() {
		rig.Eventually(t, "the crowd is at the first node", 2*time.Second, func() error {
			if n := nodes[0].Metric("shoal_peer_connections"); n < 16 {
				return fmt.Errorf("%v connections", n)
			}
			return nil
		})
	})
	t.Logf("%v, without the attack %v; %.2f copies", took, base, sent)
	if limit := twice(base); took > limit {
		t.Errorf("the pulls took %v, should take at most %v", took, limit)
	}
	if sent > 1.2 {
		t.Errorf("the origin sent %.2f copies, should be at most 1.2", sent)
	}
}
