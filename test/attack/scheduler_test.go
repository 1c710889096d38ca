package attack

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire"
	"github.com/shoalproject/shoal/test/rig"
)

// strangers is the address from which the attacks on the scheduler come. The
// nodes come from addresses of their own.
const strangers = "127.0.7.7"

// from returns a HOST:PORT that leads to another, from where connections come
// from a certain address.
func from(t *testing.T, address, to string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	go func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := dialer.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					out.Close()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return lis.Addr().String()
}

// victim is a swarm under attack.
type victim struct {
	origin *registrytest.Origin
	sched  *rig.Scheduler
	nodes  []*rig.Daemon
	// addr leads to the scheduler from the address of the strangers, tls is
	// what one of them proves; nil: nothing.
	addr string
	tls  *tls.Config
}

const (
	victimNodes = 5
	victimSize  = 24 << 20
	// mebibyte is for figures.
	mebibyte = 1 << 20
)

// newVictim starts a scheduler and nodes, each with an address of its own.
// With TLS the attacker has the certificate of one node.
func newVictim(t *testing.T, nodes int, withTLS bool) *victim {
	t.Helper()
	v := &victim{origin: registrytest.New(t)}
	v.origin.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.Throttle(12<<20))
	issue := func(...string) *rig.Files { return nil }
	if withTLS {
		ca := rig.NewCA(t)
		issue = func(names ...string) *rig.Files { return ca.Issue(t, names...) }
		v.tls = identity(t, issue(evil))
	}
	v.sched = rig.StartScheduler(t, rig.SchedulerConfig{TLS: issue("127.0.0.1")})
	v.addr = from(t, strangers, v.sched.Addr)
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		near := *v.sched
		near.Addr = from(t, fmt.Sprintf("127.0.6.%d", i+1), v.sched.Addr)
		v.nodes = append(v.nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{&near}, Registries: []string{at(v.origin)},
			TLS: issue(name), Args: []string{"--auth", "open"},
		}))
	}
	return v
}

// evil is the only name that the attacker may have where names are proved.
const evil = "node-99"

// pull has all nodes pull a blob that is new to them, and returns how long the
// last one took and how many copies left the origin.
func (v *victim) pull(t *testing.T, seed uint64) (time.Duration, float64) {
	t.Helper()
	return v.fetch(t, v.origin.AddBlob("app", noise(seed, victimSize)))
}

func (v *victim) fetch(t *testing.T, d digest.Digest) (time.Duration, float64) {
	t.Helper()
	before := v.origin.SentTotal()
	results, took := rig.BlobAll(v.nodes, upstream, "app", d)
	rig.AllRight(t, results)
	return took, float64(v.origin.SentTotal()-before) / victimSize
}

// unharmed says what a pull came to beside one without the attack, and fails
// if that is too much.
func unharmed(t *testing.T, honest, took time.Duration, copies float64) {
	t.Helper()
	t.Logf("last node %v, without the attack %v; %.2f copies", took.Round(time.Millisecond), honest.Round(time.Millisecond), copies)
	if took > 2*honest {
		t.Errorf("the last node took %v, should be at most twice the %v without the attack", took, honest)
	}
	if copies > 1.2 {
		t.Errorf("the origin sent %.2f copies, should be at most 1.2", copies)
	}
}

// stranger is one stream to the scheduler.
type stranger struct {
	*wire.Stream
	mu sync.Mutex
	// Guarded by mu:
	neighbours map[scheduler.PeerID]bool
	answers    map[scheduler.Digest]bool // blobs of which the scheduler has said something
	ended      error
}

// enter opens a stream under a name. It ends with the test.
func (v *victim) enter(t *testing.T, name, addr string) *stranger {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d := wire.Dialer{TLS: v.tls, Log: slog.New(slog.DiscardHandler)}
	stream, err := d.Open(ctx, v.addr, "127.0.0.1", scheduler.PeerID(name), scheduler.Hello{Addr: addr})
	if err != nil {
		t.Fatalf("%s is not let in: %v", name, err)
	}
	s := &stranger{Stream: stream, neighbours: map[scheduler.PeerID]bool{}, answers: map[scheduler.Digest]bool{}}
	t.Cleanup(func() { stream.Close() })
	go s.listen()
	return s
}

func (s *stranger) listen() {
	for {
		msgs, err := s.Recv()
		s.mu.Lock()
		s.ended = err
		for _, msg := range msgs {
			switch m := msg.(type) {
			case *scheduler.Swarm:
				s.answers[m.Blob] = true
				for _, n := range m.Add {
					s.neighbours[n.Peer] = true
				}
			case *scheduler.Refused:
				s.answers[m.Blob] = true
			}
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// say sends messages. An error is the scheduler's to cause: it may cut the
// attacker off.
func (s *stranger) say(msgs ...scheduler.In) error { return s.Send(msgs) }

// answered waits until the scheduler has said something about a blob, or has
// ended the stream.
func (s *stranger) answered(t *testing.T, blob scheduler.Digest) {
	t.Helper()
	rig.Eventually(t, "the scheduler answers", time.Minute, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.answers[blob] && s.ended == nil {
			return fmt.Errorf("nothing about %.20s", blob)
		}
		return nil
	})
}

// known returns the nodes that a stranger was told of, strangers aside.
func (s *stranger) known() (list []scheduler.PeerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.neighbours {
		if !strings.HasPrefix(string(id), "evil") {
			list = append(list, id)
		}
	}
	return list
}

// invented returns the digest of a blob that does not exist.
func invented(i int) scheduler.Digest { return scheduler.Digest(fmt.Sprintf("sha256:%064x", i+1)) }

// silent returns an address that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", strangers+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return lis.Addr().String()
}

// Whoever has two free names bans nobody, and so does not make the nodes leave
// each other.
func TestFreeNamesBanNobody(t *testing.T) {
	v := newVictim(t, victimNodes, false)
	honest, _ := v.pull(t, 1)
	d := v.origin.AddBlob("app", noise(2, victimSize))
	nowhere := silent(t)
	a, b := v.enter(t, "evil-a", nowhere), v.enter(t, "evil-b", nowhere)
	blob := scheduler.Digest(d)
	for _, s := range []*stranger{a, b} {
		if err := s.say(scheduler.Join{Blob: blob, Size: victimSize}); err != nil {
			t.Fatal(err)
		}
		s.answered(t, blob)
	}
	v.fetch(t, d) // so that the nodes become their neighbours
	accused := map[scheduler.PeerID]bool{}
	for _, s := range []*stranger{a, b} {
		for _, id := range s.known() {
			accused[id] = true
		}
	}
	if len(accused) == 0 {
		t.Fatal("the strangers were told of no node")
	}
	for _, s := range []*stranger{a, b} {
		for id := range accused {
			if err := s.say(scheduler.Report{Blob: blob, Peer: id, Reason: scheduler.ReasonLiar}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.say(scheduler.Leave{Blob: blob}, scheduler.Join{Blob: invented(1), Size: 1}); err != nil {
			t.Fatal(err)
		}
		s.answered(t, invented(1)) // and so has heard the reports
	}
	if n := v.sched.Metric("shoal_scheduler_bans"); n != 0 {
		t.Errorf("%v nodes are banned of %d accused", n, len(accused))
	}
	took, copies := v.pull(t, 3)
	unharmed(t, honest, took, copies)
}

// Seeds that send nothing do not keep a swarm from the origin, nor the nodes
// from each other.
func TestFalseSeedsDoNotStopAPull(t *testing.T) {
	v := newVictim(t, victimNodes, false)
	honest, _ := v.pull(t, 1)
	d := v.origin.AddBlob("app", noise(2, victimSize))
	nowhere := silent(t)
	for i := range 64 {
		s := v.enter(t, fmt.Sprintf("evil-%d", i), nowhere)
		if err := s.say(scheduler.Complete{Blob: scheduler.Digest(d), Size: victimSize}, scheduler.Join{Blob: invented(i), Size: 1}); err != nil {
			t.Fatal(err)
		}
		s.answered(t, invented(i))
	}
	took, copies := v.fetch(t, d)
	unharmed(t, honest, took, copies)
}

// Blobs that do not exist leave room for those that do.
func TestInventedBlobsLeaveRoom(t *testing.T) {
	v := newVictim(t, victimNodes, false)
	honest, _ := v.pull(t, 1)
	const each = 1 << 14
	var all sync.WaitGroup
	for i := range 8 {
		s := v.enter(t, fmt.Sprintf("evil-%d", i), "127.0.0.1:1")
		all.Go(func() {
			var batch []scheduler.In
			for j := range each {
				batch = append(batch, scheduler.Join{Blob: invented(i*each + j), Size: 1})
				if len(batch) == 512 {
					if s.say(batch...) != nil {
						return
					}
					batch = nil
				}
			}
			s.answered(t, invented(i*each+each-1))
		})
	}
	all.Wait()
	t.Logf("%v swarms", v.sched.Metric("shoal_scheduler_swarms"))
	took, copies := v.pull(t, 2)
	unharmed(t, honest, took, copies)
}

// Blobs that do not exist do not use up the requests that may go to a source.
func TestInventedBlobsLeaveTheOrigin(t *testing.T) {
	both(t, func(t *testing.T, withTLS bool) {
		v := newVictim(t, victimNodes, withTLS)
		honest, _ := v.pull(t, 1)
		s := v.enter(t, evil, "127.0.0.1:1")
		for i := range 80 {
			if err := s.say(scheduler.Join{Blob: invented(i), Size: 1 << 20, Origin: true, Source: upstream + "/app"}); err != nil {
				t.Fatal(err)
			}
		}
		s.answered(t, invented(79))
		took, copies := v.pull(t, 2)
		unharmed(t, honest, took, copies)
	})
}

// What one node says of a 429 does not stop the others.
func TestOneFalse429StopsNobody(t *testing.T) {
	both(t, func(t *testing.T, withTLS bool) {
		v := newVictim(t, victimNodes, withTLS)
		honest, _ := v.pull(t, 1)
		s := v.enter(t, evil, "127.0.0.1:1")
		if err := s.say(
			scheduler.Join{Blob: invented(1), Size: 1 << 20, Origin: true, Source: upstream + "/app"},
			scheduler.GiveBack{Blob: invented(1), Run: scheduler.Run{First: 0, Count: 4}, Reason: scheduler.ReasonRateLimited, RetryAfter: 10 * time.Minute},
			scheduler.Join{Blob: invented(2), Size: 1},
		); err != nil {
			t.Fatal(err)
		}
		s.answered(t, invented(2))
		took, copies := v.pull(t, 2)
		unharmed(t, honest, took, copies)
	})
}

// The scheduler's memory is bounded by identity, whatever is said of the size
// of blobs, and it goes on serving the nodes.
func TestHugeBlobsDoNotFillTheScheduler(t *testing.T) {
	both(t, func(t *testing.T, withTLS bool) {
		v := newVictim(t, 3, withTLS)
		honest, _ := v.pull(t, 1)
		idle := v.sched.Memory()
		streams := 22
		if withTLS {
			streams = 1 // as many as it has names
		}
		const most = 256 * mebibyte
		stop := make(chan struct{})
		var all sync.WaitGroup
		for i := range streams {
			name := fmt.Sprintf("evil-%d", i)
			if withTLS {
				name = evil
			}
			s := v.enter(t, name, "127.0.0.1:1")
			all.Go(func() { flood(s, i<<20, stop) })
		}
		until := time.Now().Add(5 * time.Second)
		var peak int64
		for time.Now().Before(until) && peak <= most {
			if v.sched.Exited() {
				t.Fatal("the scheduler is dead")
			}
			peak = max(peak, v.sched.Memory()-idle)
			time.Sleep(50 * time.Millisecond) // between two looks
		}
		t.Logf("%.0f MiB above the %.0f MiB of before", float64(peak)/mebibyte, float64(idle)/mebibyte)
		if peak > most {
			t.Errorf("the scheduler takes %d MiB more than before, should be at most %d", peak/mebibyte, most/mebibyte)
		} else {
			took, copies := v.pull(t, 2)
			unharmed(t, honest, took, copies)
		}
		close(stop)
		all.Wait()
	})
}

// flood joins one blob of 1 TiB after another, each with a bitfield.
func flood(s *stranger, first int, stop chan struct{}) {
	have := make([]byte, 1<<14)
	for i := range have {
		have[i] = 0x55
	}
	for i := first; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		if s.say(scheduler.Join{Blob: invented(i), Size: 1 << 40, Have: have, Again: true, Origin: true, Source: upstream + "/app"}) != nil {
			return
		}
	}
}

// both runs a test with a stranger, and with one that has the certificate of a
// node.
func both(t *testing.T, f func(t *testing.T, withTLS bool)) {
	t.Run("a stranger", func(t *testing.T) { f(t, false) })
	t.Run("one node", func(t *testing.T) { f(t, true) })
}

// Members that want a blob and bring nothing of what they are assigned do not
// hold the others up.
func TestIdleMembersDoNotStopAPull(t *testing.T) {
	v := newVictim(t, victimNodes, false)
	honest, _ := v.pull(t, 1)
	d := v.origin.AddBlob("app", noise(2, victimSize))
	nowhere := silent(t)
	for i := range 64 {
		s := v.enter(t, fmt.Sprintf("evil-%d", i), nowhere)
		if err := s.say(scheduler.Join{Blob: scheduler.Digest(d), Size: victimSize, Origin: true, Source: upstream + "/app"}); err != nil {
			t.Fatal(err)
		}
		s.answered(t, scheduler.Digest(d))
	}
	took, copies := v.fetch(t, d)
	unharmed(t, honest, took, copies)
}
