package test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/swarmtest"
)

// liar is a node that lies.
type liar struct {
	*swarmtest.Liar
	logs *lockedBuffer
}

// startLiar starts a liar and waits until the scheduler counts on it.
func startLiar(t *testing.T, s *sched, cfg swarmtest.Config) *liar {
	t.Helper()
	l := &liar{logs: &lockedBuffer{}}
	cfg.Schedulers, cfg.Listen = []string{s.addr}, "127.0.0.1:0"
	cfg.Logger = slog.New(slog.NewTextHandler(l.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if l.Liar, err = swarmtest.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("liar: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the liar:\n%s", l.logs)
		}
	})
	<-l.Ready()
	return l
}

// banned reports whether the scheduler has told the liar that it is.
func (l *liar) banned() bool { return strings.Contains(l.logs.String(), "banned") }

// pullsRight has all nodes get a blob at once and insists on what a lie must
// not change: no wrong byte is delivered as complete, and each pull succeeds
// within so many attempts. It returns the nodes that took more than one.
func pullsRight(t *testing.T, nodes []*node, d digest.Digest, attempts int) (cut []int) {
	t.Helper()
	tries := make([]int, len(nodes))
	each(nodes, func(i int, n *node) {
		var a answer
		began := time.Now()
		for ; tries[i] < attempts; tries[i]++ {
			a = n.get(blobPath(d))
			if a.err != nil || a.StatusCode != http.StatusOK {
				t.Logf("node %d: status %d, %v after %d bytes, %v", i, a.StatusCode, a.err, len(a.body), time.Since(began).Round(time.Millisecond))
				continue
			}
			if got := digest.FromBytes(a.body); got != d {
				t.Errorf("node %d: wrong bytes delivered as complete: %s", i, got)
			}
			return
		}
		t.Errorf("node %d: no pull succeeds: status %d, %v after %d bytes", i, a.StatusCode, a.err, len(a.body))
	})
	if t.Failed() {
		t.FailNow()
	}
	for i, n := range tries {
		if n > 0 {
			cut = append(cut, i)
		}
	}
	return cut
}

// accusers returns the nodes that count a lie and name the liar in their logs.
func accusers(t *testing.T, nodes []*node, name string) (list []int) {
	t.Helper()
	for i, n := range nodes {
		lies, err := strconv.Atoi(n.metric("shoal_peer_lies_total"))
		if err != nil {
			t.Fatal(err)
		}
		named := false
		for line := range strings.Lines(n.logs.String()) {
			fields := fieldsOf(line)
			lied := strings.Contains(line, "peer lied")
			published := strings.Contains(line, "peer sent a wrong piece") && fields["publisher"] == fields["id"]
			if lied || published {
				named = named || fields["id"] == name
				if fields["id"] != name {
					t.Errorf("node %d blames another: %s", i, line)
				}
			}
		}
		if named != (lies > 0) {
			t.Errorf("node %d counts %d lies, names the liar: %v", i, lies, named)
		}
		if named {
			list = append(list, i)
		}
	}
	return list
}

// fieldsOf returns the fields of a line of a log that have no blanks.
func fieldsOf(line string) map[string]string {
	fields := map[string]string{}
	for _, f := range strings.Fields(line) {
		if key, value, ok := strings.Cut(f, "="); ok {
			fields[key] = value
		}
	}
	return fields
}

// Those that say they hold the blob: what they do not send right comes from
// elsewhere, and from the origin not by each on its own, where nobody else has it.
func TestLiarsAmongSeeds(t *testing.T) {
	const size = 6<<20 + 17
	for _, kind := range []swarmtest.Kind{swarmtest.WrongBytes, swarmtest.Silent, swarmtest.Trickle} {
		for _, honest := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("%s beside %d", kind, honest), func(t *testing.T) {
				o := registrytest.New(t)
				s := startScheduler(t)
				data := noise(300, size)
				d := o.AddBlob("app", data)
				nodes := startCluster(t, o, honest+6, []*sched{s})
				seeds, nodes := nodes[:honest], nodes[honest:]
				pullAll(t, seeds, d)
				for _, n := range seeds {
					n.settled()
				}
				l := startLiar(t, s, swarmtest.Config{Kind: kind, Name: "liar", Blobs: []swarmtest.Blob{{Digest: d, Size: size, Content: bytes.NewReader(data)}}})
				pullsRight(t, nodes, d, 1)
				if l.Lies() == 0 {
					t.Error("nobody asked the liar")
				}
				// An honest seed that is slow for a moment counts as none, too.
				mostCopies(t, o, size, 2)
				count := len(accusers(t, nodes, "liar"))
				if (count > 0) != (kind == swarmtest.WrongBytes) {
					t.Errorf("%d nodes say that the liar lied", count)
				}
				// Its name is not proved: it may not have been its own.
				if l.banned() {
					t.Error("a node was banned for all by a name that nothing proves")
				}
				t.Logf("%d lies, %d accusers", l.Lies(), count)
			})
		}
	}
}

// One that publishes wrong sums is found out by the digest of the whole: the
// first pull is cut short, the next one succeeds.
func TestLiarPublishes(t *testing.T) {
	const size = 16<<20 + 17
	for _, n := range []int{1, 6} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			o := registrytest.New(t)
			s := startScheduler(t)
			d := o.AddBlob("app", noise(301, size))
			nodes := startCluster(t, o, n, []*sched{s})
			l := startLiar(t, s, swarmtest.Config{Kind: swarmtest.WrongSums, Name: "liar", Blobs: []swarmtest.Blob{{Digest: d, Size: size}}})
			cut := pullsRight(t, nodes, d, 2)
			if l.Lies() == 0 || len(cut) == 0 {
				t.Errorf("%d lies, and %d pulls cut short: nobody was lied to", l.Lies(), len(cut))
			}
			// One node fetches the blob afresh for all.
			if c := copies(o, size); c > 3 {
				t.Errorf("origin sent %.3f copies", c)
			}
			for _, n := range nodes {
				n.settled() // and has compared the pieces
			}
			named := accusers(t, nodes, "liar")
			for _, i := range cut {
				passedOn := strings.Contains(nodes[i].logs.String(), "publisher=liar")
				if !slices.Contains(named, i) && !passedOn {
					t.Errorf("node %d was lied to and does not say by whom", i)
				}
			}
			if l.banned() {
				t.Error("a node was banned for all by a name that nothing proves")
			}
			t.Logf("%d lies, %d accusers, %.3f copies", l.Lies(), len(named), copies(o, size))
		})
	}
}

// Several that lie together, each in its own way.
func TestLiarsTogether(t *testing.T) {
	const size = 6<<20 + 17
	o := registrytest.New(t)
	s := startScheduler(t)
	data := noise(302, size)
	d := o.AddBlob("app", data)
	nodes := startCluster(t, o, 6, []*sched{s})
	blob := swarmtest.Blob{Digest: d, Size: size, Content: bytes.NewReader(data)}
	for _, kind := range swarmtest.Kinds {
		startLiar(t, s, swarmtest.Config{Kind: kind, Name: string(kind), Blobs: []swarmtest.Blob{blob}})
	}
	pullsRight(t, nodes, d, 2)
	// Each node fetches the blob afresh, after some was fetched in vain.
	mostCopies(t, o, size, float64(len(nodes)+2))
}
