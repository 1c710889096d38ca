package attack

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/mtls"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/swarmtest"
	"github.com/shoalproject/shoal/test/rig"
)

// Nothing wrong and nothing unauthorised is delivered, whatever fails or lies.
//
// SHOAL_CHURN_PULLS is the number of pulls, SHOAL_CHURN_SEED the seed of all
// choices: who pulls what, and which fault comes next.
func TestNothingWrongUnderChurn(t *testing.T) {
	pulls, seed := 400, uint64(1)
	if s := os.Getenv("SHOAL_CHURN_PULLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("SHOAL_CHURN_PULLS: %v", err)
		}
		pulls = n
	}
	if s := os.Getenv("SHOAL_CHURN_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SHOAL_CHURN_SEED: %v", err)
		}
		seed = n
	}
	c := newChurn(t, seed)
	c.run(pulls)
	c.settle()
	c.report()
}

const (
	churnNodes   = 4
	churnWorkers = 4
	// churnRecent is how many images are pulled at a time; older ones are left.
	churnRecent = 6
	// A fault comes every so many pulls, and a new image.
	churnFaultEvery, churnImageEvery = 20, 25
)

// item is one thing to pull, and its bytes.
type item struct {
	repo, path string // path follows the repository: blobs/…, manifests/…
	content    []byte
}

// churn is a swarm in which things go wrong.
type churn struct {
	t    *testing.T
	o    *registrytest.Origin
	ca   *rig.CA
	seed uint64
	draw *rand.Rand // of faults and images; used by one worker at a time
	busy sync.Mutex // held while a fault is done or an image is made

	mu sync.Mutex
	// Guarded by mu:
	sched  *rig.Scheduler
	nodes  []*rig.Daemon
	away   map[int]bool // nodes that cannot be asked
	items  []item
	layers [][]byte
	heal   []func()
	faults map[string]int
	answer map[int]int

	done, complete, wrong, unauthorised atomic.Int64
	// Complete pulls of those that may read, and of those that may not.
	served, refused atomic.Int64
}

const (
	publicRepo, privateRepo = "public/app", "private/app"
)

func newChurn(t *testing.T, seed uint64) *churn {
	c := &churn{
		t: t, seed: seed, ca: rig.NewCA(t), draw: rand.New(rand.NewPCG(seed, 0)),
		away: map[int]bool{}, faults: map[string]int{}, answer: map[int]int{},
	}
	c.o = registrytest.New(t, registrytest.WithAuth(registrytest.Auth{
		Users: map[string]string{"alice": "a", "bob": "b"},
		Allow: func(user, repo string) bool { return repo == publicRepo || user == "alice" },
	}))
	c.sched = rig.StartScheduler(t, rig.SchedulerConfig{TLS: c.ca.Issue(t, "127.0.0.1")})
	for i := range churnNodes {
		name := fmt.Sprintf("node-%d", i+1)
		c.nodes = append(c.nodes, rig.StartDaemon(t, rig.DaemonConfig{
			Name: name, Schedulers: []*rig.Scheduler{c.sched}, TLS: c.ca.Issue(t, name),
			Registries: []string{at(c.o)},
			// Small enough that blobs are evicted.
			Args: []string{"--cache-size", "48MiB", "--permission-ttl", "2s", "--tag-ttl", "1s"},
		}))
	}
	for range churnRecent {
		c.newImage()
	}
	return c
}

// newImage adds an image of one to four layers to both repositories.
func (c *churn) newImage() {
	for _, repo := range []string{publicRepo, privateRepo} {
		var layers [][]byte
		for range 1 + c.draw.IntN(4) {
			size := []int{1, 100, 64 << 10, 256<<10 + 1, 1 << 20, 3<<20 + 17}[c.draw.IntN(6)]
			layers = append(layers, noise(c.draw.Uint64(), size))
		}
		tag := fmt.Sprintf("v%d", c.draw.Uint64())
		img := c.o.AddImage(repo, tag, layers...)
		body := c.o.ManifestBody(repo, img.Manifest.Digest)
		fresh := []item{
			{repo, "manifests/" + tag, body},
			{repo, "manifests/" + img.Manifest.Digest.String(), body},
		}
		for _, l := range layers {
			fresh = append(fresh, item{repo, "blobs/" + digest.FromBytes(l).String(), l})
		}
		c.mu.Lock()
		c.items = append(c.items, fresh...)
		if most := churnRecent * 8; len(c.items) > most {
			c.items = slices.Clone(c.items[len(c.items)-most:])
		}
		if repo == publicRepo {
			c.layers = layers
		}
		c.mu.Unlock()
	}
}

// run has workers pull until the number is reached.
func (c *churn) run(pulls int) {
	var wg sync.WaitGroup
	for w := range churnWorkers {
		wg.Go(func() {
			draw := rand.New(rand.NewPCG(c.seed, uint64(w)+1))
			for {
				n := int(c.done.Add(1))
				if n > pulls {
					return
				}
				if n%churnImageEvery == 0 {
					c.busy.Lock()
					c.newImage()
					c.busy.Unlock()
				}
				if n%churnFaultEvery == 0 {
					c.busy.Lock()
					c.fault()
					c.busy.Unlock()
				}
				c.pull(draw)
			}
		})
	}
	wg.Wait()
}

// caller is who pulls.
type caller struct {
	name   string
	header http.Header
}

// caller draws who pulls from a repository. Bob and the anonymous have tokens
// for what they may read, whatever they ask for.
func (c *churn) caller(draw *rand.Rand, repo string) caller {
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	switch draw.IntN(8) {
	case 0:
		return caller{"nobody", nil}
	case 1:
		return caller{"bob", bearer(c.o.IssueToken("bob", publicRepo))}
	case 2:
		return caller{"forger", bearer("made-up")}
	case 3:
		return caller{"anonymous", bearer(c.o.IssueToken("", publicRepo))}
	default:
		return caller{"alice", bearer(c.o.IssueToken("alice", repo))}
	}
}

// may says whether the origin lets a caller read from a repository.
func (who caller) may(repo string) bool {
	switch who.name {
	case "alice":
		return true
	case "bob", "anonymous":
		return repo == publicRepo
	default: // nobody and the forger have no token, which even public images want
		return false
	}
}

// pull asks some node for something in somebody's name, and looks at what
// comes.
func (c *churn) pull(draw *rand.Rand) {
	c.mu.Lock()
	it := c.items[draw.IntN(len(c.items))]
	i := draw.IntN(len(c.nodes))
	for c.away[i] {
		i = (i + 1) % len(c.nodes)
	}
	d := c.nodes[i]
	c.mu.Unlock()

	who := c.caller(draw, it.repo)
	q := rig.Request{Host: upstream, Path: it.repo + "/" + it.path, Header: who.header.Clone()}
	want := it.content
	switch form := draw.IntN(8); {
	case form == 0:
		q.Method, want = http.MethodHead, nil
	case form <= 2 && len(want) > 1 && it.path[0] == 'b':
		from := draw.IntN(len(want))
		to := from + draw.IntN(len(want)-from)
		if q.Header == nil {
			q.Header = http.Header{}
		}
		if draw.IntN(2) == 0 {
			q.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
			want = want[from : to+1]
		} else {
			q.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
			want = want[from:]
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r := d.Do(ctx, q)

	c.mu.Lock()
	c.answer[r.Status]++
	c.mu.Unlock()
	if r.Status == http.StatusOK && q.Header.Get("Range") != "" {
		want = it.content // the whole is an answer, too
	}
	if r.Complete() {
		c.complete.Add(1)
		if q.Method != http.MethodHead && r.Sum != digest.FromBytes(want) {
			c.wrong.Add(1)
			c.t.Errorf("WRONG: %s of %s, range %q, as %s from %s: %v", it.path, it.repo, q.Header.Get("Range"), who.name, d.Name, r)
		}
	}
	switch {
	case r.Status/100 != 2:
		if !who.may(it.repo) {
			c.refused.Add(1)
		}
	case who.may(it.repo):
		c.served.Add(1)
	case it.repo == privateRepo:
		// Of what is public, those without a token get what everybody may have.
		c.unauthorised.Add(1)
		c.t.Errorf("UNAUTHORISED: %s of %s as %s from %s: %v", it.path, it.repo, who.name, d.Name, r)
	}
}

// fault ends the faults before and has the next one happen.
func (c *churn) fault() {
	c.recover()
	blob := registrytest.Order{Kind: registrytest.Blob}
	inject := func(where registrytest.Order, f registrytest.Fault) { c.heal = append(c.heal, c.o.Inject(where, f)) }
	i := c.draw.IntN(len(c.nodes))
	kinds := []struct {
		name string
		do   func()
	}{
		{"origin flips a bit", func() {
			f := registrytest.Flip(int64(c.draw.IntN(1 << 16)))
			where := blob
			where.Times = 1 + c.draw.IntN(3)
			inject(where, f)
		}},
		{"origin cuts bodies", func() { inject(blob, registrytest.Cut(int64(c.draw.IntN(1<<19)))) }},
		{"origin sends too much", func() { inject(blob, registrytest.Extra(1+c.draw.IntN(100))) }},
		{"origin sends pages instead", func() { inject(registrytest.Order{}, registrytest.HTML()) }},
		{"origin answers 429", func() {
			inject(registrytest.Order{Times: 5}, registrytest.Status(http.StatusTooManyRequests, "Retry-After", "1"))
		}},
		{"origin answers 500", func() { inject(registrytest.Order{Times: 10}, registrytest.Status(http.StatusInternalServerError)) }},
		{"origin resets connections", func() { inject(registrytest.Order{Times: 10}, registrytest.Reset()) }},
		{"origin is slow", func() { inject(blob, registrytest.Throttle(1<<20)) }},
		{"origin knows no ranges", func() { inject(blob, registrytest.NoRanges()) }},
		{"origin is down", func() {
			c.o.Down()
			c.heal = append(c.heal, func() {
				if err := c.o.Up(); err != nil {
					c.t.Error(err)
				}
			})
		}},
		{"tokens are revoked", c.o.RevokeTokens},
		{"a daemon is killed", func() { c.replace(i, func(d *rig.Daemon) *rig.Daemon { d.Kill(); return d.Restart() }) }},
		{"a daemon is killed, a file of it altered", func() {
			c.replace(i, func(d *rig.Daemon) *rig.Daemon { d.Kill(); c.alter(d.DataDir); return d.Restart() })
		}},
		{"a daemon is stopped", func() { c.replace(i, (*rig.Daemon).Restart) }},
		{"a daemon is frozen", func() {
			d := c.node(i)
			c.set(i, true)
			d.Freeze()
			c.heal = append(c.heal, func() { d.Thaw(); c.set(i, false) })
		}},
		{"a file of a daemon is altered", func() { c.alter(c.node(i).DataDir) }},
		{"a file of a daemon is removed", func() { c.removeFile(c.node(i).DataDir) }},
		{"the scheduler is killed", func() { c.sched.Kill(); c.sched = c.sched.Restart() }},
		{"the scheduler is frozen", func() { s := c.sched; s.Freeze(); c.heal = append(c.heal, s.Thaw) }},
		{"a node sends wrong bytes", func() { c.lie(swarmtest.WrongBytes) }},
		{"a node publishes wrong sums", func() { c.lie(swarmtest.WrongSums) }},
		{"a node is silent", func() { c.lie(swarmtest.Silent) }},
	}
	k := kinds[c.draw.IntN(len(kinds))]
	c.faults[k.name]++
	k.do()
}

// recover ends the faults that last.
func (c *churn) recover() {
	for _, f := range slices.Backward(c.heal) {
		f()
	}
	c.heal = nil
}

func (c *churn) node(i int) *rig.Daemon {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// set says whether a node is away.
func (c *churn) set(i int, away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if away {
		c.away[i] = true
	} else {
		delete(c.away, i)
	}
}

// replace puts another process in a node's place.
func (c *churn) replace(i int, f func(*rig.Daemon) *rig.Daemon) {
	c.set(i, true)
	d := f(c.node(i))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[i] = d
	delete(c.away, i)
}

// files lists the files of a data directory that hold something.
func (c *churn) files(dir string) (list []string) {
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it has just gone
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			list = append(list, path)
		}
		return nil
	})
	slices.Sort(list)
	return list
}

// alter changes a byte of a file while nobody looks.
func (c *churn) alter(dir string) {
	list := c.files(dir)
	if len(list) == 0 {
		return
	}
	f, err := os.OpenFile(list[c.draw.IntN(len(list))], os.O_RDWR, 0)
	if err != nil {
		return // it has just gone
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return
	}
	at := c.draw.Int64N(st.Size())
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return
	}
	b[0] ^= 1 << c.draw.IntN(8)
	if _, err := f.WriteAt(b, at); err != nil {
		c.t.Errorf("altering %s: %v", f.Name(), err)
	}
}

// removeFile removes a file while nobody looks.
func (c *churn) removeFile(dir string) {
	if list := c.files(dir); len(list) > 0 {
		_ = os.Remove(list[c.draw.IntN(len(list))]) // it may have gone by itself
	}
}

// lie has a node with a certificate of its own lie about the newest public
// layers until the next fault.
func (c *churn) lie(kind swarmtest.Kind) {
	name := fmt.Sprintf("liar-%d", c.draw.Uint64())
	f := c.ca.Issue(c.t, name)
	id, err := mtls.Load(f.Cert, f.Key, f.CA)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	layers := c.layers
	c.mu.Unlock()
	cfg := swarmtest.Config{Kind: kind, Name: name, Schedulers: []string{c.sched.Addr}, Listen: "127.0.0.1:0", TLS: id.Config(nil)}
	for _, l := range layers {
		cfg.Blobs = append(cfg.Blobs, swarmtest.Blob{Digest: digest.FromBytes(l), Size: int64(len(l)), Content: bytes.NewReader(l)})
	}
	l, err := swarmtest.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.Run(ctx) // a ban ends it, too
	}()
	c.heal = append(c.heal, func() { cancel(); <-ended })
}

// settle ends all faults. Then every node must have everything for alice.
func (c *churn) settle() {
	c.recover()
	c.o.Heal()
	for _, d := range c.nodes {
		for _, it := range c.items {
			rig.Eventually(c.t, fmt.Sprintf("%s gives %s of %s when all is well", d.Name, it.path, it.repo), rig.Limit, func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				token := c.o.IssueToken("alice", it.repo)
				r := d.Do(ctx, rig.Request{Host: upstream, Path: it.repo + "/" + it.path, Digest: digest.FromBytes(it.content),
					Header: http.Header{"Authorization": {"Bearer " + token}}})
				if r.Wrong() {
					c.wrong.Add(1)
					c.t.Errorf("WRONG: %s of %s: %v", it.path, it.repo, r)
				}
				if !r.Right {
					return fmt.Errorf("%v: %s", r, r.Body)
				}
				return nil
			})
		}
		if peak := d.PeakMemory(); peak > 384<<20 {
			c.t.Errorf("%s took %d MiB", d.Name, peak>>20)
		}
	}
}

func (c *churn) report() {
	c.t.Logf("seed %d: %d answers complete, %d served, %d refused that may not read; wrong %d, unauthorised %d",
		c.seed, c.complete.Load(), c.served.Load(), c.refused.Load(), c.wrong.Load(), c.unauthorised.Load())
	for _, s := range slices.Sorted(maps.Keys(c.answer)) {
		c.t.Logf("status %d: %d", s, c.answer[s])
	}
	for _, f := range slices.Sorted(maps.Keys(c.faults)) {
		c.t.Logf("%s: %d", f, c.faults[f])
	}
	if c.served.Load() == 0 || c.refused.Load() == 0 {
		c.t.Error("nobody was served or nobody was refused: the oracle has seen nothing")
	}
}
