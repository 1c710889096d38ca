package jobs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a core with a clock of the test's own and daemons that do what the
// test says.
type world struct {
	t    *testing.T
	core *Core
	now  time.Time
}

func newWorld(t *testing.T, nodes ...Facts) *world {
	cfg := DefaultConfig()
	cfg.Credentials, cfg.Agree = true, 1
	return worldOf(t, cfg, nodes...)
}

func worldOf(t *testing.T, cfg Config, nodes ...Facts) *world {
	w := &world{t: t, core: NewCore(cfg), now: time.Unix(1_700_000_000, 0)}
	for _, f := range nodes {
		w.connect(f)
	}
	return w
}

func node(i int, zone string) Facts {
	return Facts{Name: fmt.Sprintf("n%d", i), Zone: zone, Platform: "linux/amd64", Preheats: true, Proven: true}
}

func many(n int) (list []Facts) {
	for i := range n {
		list = append(list, node(i, string(rune('a'+i%2))))
	}
	return list
}

func (w *world) connect(f Facts) { w.core.Connected(w.now, "conn-"+f.Name, f) }

func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.core.Tick(w.now)
}

func (w *world) create(spec Spec, creds Credentials) Job {
	w.t.Helper()
	job, err := w.core.Create(w.now, "1", spec, creds)
	if err != nil {
		w.t.Fatal(err)
	}
	return job
}

func (w *world) job() Job {
	w.t.Helper()
	w.core.Tick(w.now)
	job, ok := w.core.Get("1")
	if !ok {
		w.t.Fatal("the job is gone")
	}
	return job
}

// orders returns the orders that were sent since, by node; those to resolve
// under "resolve".
func (w *world) orders() map[string]*Order {
	out := map[string]*Order{}
	for _, o := range w.core.Take() {
		switch msg := o.Msg.(type) {
		case *Order:
			name := strings.TrimPrefix(o.To, "conn-")
			if msg.Resolve {
				out["resolve"], name = msg, "resolver"
				out[name] = &Order{Repository: o.To}
				continue
			}
			out[name] = msg
		case *Stop:
			out["stop "+strings.TrimPrefix(o.To, "conn-")] = &Order{}
		}
	}
	return out
}

const kib = 1 << 10

// image is for two platforms.
func resolution() *Resolution {
	return &Resolution{Digest: "sha256:i", MediaType: "index", Platforms: []string{"linux/amd64", "linux/arm64"}, Contents: []Content{
		{Digest: "sha256:i", Size: 1, Manifest: true},
		{Digest: "sha256:m", Size: 1, Manifest: true, Platforms: []string{"linux/amd64"}},
		{Digest: "sha256:l", Size: 10 * kib, Platforms: []string{"linux/amd64"}},
		{Digest: "sha256:a", Size: 20 * kib, Platforms: []string{"linux/arm64"}},
	}}
}

// resolve lets whoever was asked answer.
func (w *world) resolve(r Report) {
	w.t.Helper()
	o := w.orders()
	if o["resolve"] == nil {
		w.t.Fatalf("nobody was asked to resolve: %v", o)
	}
	r.Job, r.Resolve = "1", true
	w.core.Report(w.now, o["resolver"].Repository, r)
	w.core.Tick(w.now)
}

func (w *world) report(name string, s State, reason string, layers ...Layer) {
	w.core.Report(w.now, "conn-"+name, Report{Job: "1", State: s, Reason: reason, Layers: layers})
}

func done(n int) []Layer {
	return slices.Repeat([]Layer{{State: Done}}, n)
}

func (w *world) want(s State, c Counts) Job {
	w.t.Helper()
	j := w.job()
	got := j.Counts
	got.Bytes, got.Size = 0, 0
	if j.State != s || got != c {
		w.t.Fatalf("job is %s (%s) with %+v, want %s with %+v", j.State, j.Reason, got, s, c)
	}
	return j
}

func TestJob(t *testing.T) {
	w := newWorld(t, many(3)...)
	w.create(Spec{Images: []string{"r.test/app:v1"}}, Credentials{"r.test/app": "Bearer secret-token"})
	w.resolve(Report{State: Done, Resolved: resolution()})
	orders := w.orders()
	if len(orders) != 3 {
		t.Fatalf("%d orders", len(orders))
	}
	o := orders["n1"]
	if o.Repository != "r.test/app" || o.Reference != "v1" || o.Authorization != "Bearer secret-token" || len(o.Contents) != 3 {
		t.Errorf("order %+v", o)
	}
	w.report("n0", Done, "", done(3)...)
	w.report("n1", Running, "", Layer{State: Done}, Layer{State: Done}, Layer{State: Running, Bytes: 5 * kib})
	j := w.want(Running, Counts{Nodes: 3, Done: 1, Running: 2})
	if j.Counts.Bytes != 10*kib+2+5*kib+2 || j.Counts.Size != 3*(10*kib+2) {
		t.Errorf("%+v", j.Counts)
	}
	// Who says done without every layer is not believed.
	w.report("n2", Done, "", Layer{State: Done}, Layer{State: Running}, Layer{State: Done})
	w.want(Running, Counts{Nodes: 3, Done: 1, Running: 2})
	w.report("n2", Failed, "the disk is full with secret-token inside")
	w.report("n1", Done, "", done(3)...)
	j = w.want(Failed, Counts{Nodes: 3, Done: 2, Failed: 1})
	if i := slices.IndexFunc(j.Nodes, func(n Node) bool { return n.State == Failed }); j.Nodes[i].Name != "n2" || j.Nodes[i].Reason != "the disk is full with [redacted] inside" {
		t.Errorf("%+v", j.Nodes[i])
	}
	if text := fmt.Sprintf("%+v", j); strings.Contains(text, "secret-token") {
		t.Errorf("the job shows its credential: %s", text)
	}
}

func TestSelectors(t *testing.T) {
	facts := many(8)
	facts[3].Labels = map[string]string{"gpu": "yes"}
	for _, c := range []struct {
		nodes []string
		want  int
		only  string // a zone
	}{
		{[]string{"all"}, 8, ""}, {[]string{"3"}, 3, ""}, {[]string{"25%"}, 2, ""}, {[]string{"1%"}, 1, ""}, {[]string{"100"}, 8, ""},
		{[]string{"zone=b"}, 4, "b"}, {[]string{"zone=b", "50%"}, 2, "b"}, {[]string{"label:gpu=yes"}, 1, "b"}, {[]string{"n1,n2,n77"}, 3, ""},
		{[]string{"zone=c"}, 0, ""}, {[]string{"0"}, -1, ""}, {[]string{"101%"}, -1, ""}, {[]string{"size=3"}, -1, ""}, {[]string{"label:x"}, -1, ""}, {[]string{""}, -1, ""},
	} {
		w := newWorld(t, facts...)
		j, err := w.core.Create(w.now, "1", Spec{Images: []string{"a"}, Nodes: c.nodes}, nil)
		var bad *SpecError
		switch {
		case c.want < 0:
			if !errors.As(err, &bad) || bad.Field != "nodes" {
				t.Errorf("%q: %v", c.nodes, err)
			}
		case c.want == 0:
			if !errors.Is(err, ErrNoNodes) {
				t.Errorf("%q: %v", c.nodes, err)
			}
		case err != nil || len(j.Nodes) != c.want:
			t.Errorf("%q: %d nodes, %v", c.nodes, len(j.Nodes), err)
		}
		for _, n := range j.Nodes {
			if c.only != "" && n.Zone != c.only {
				t.Errorf("%q: node of zone %s", c.nodes, n.Zone)
			}
		}
	}
}

// Of a few nodes that are counted out, each zone has its share.
func TestZonesTakeTurns(t *testing.T) {
	w := newWorld(t, many(8)...)
	zones := map[string]int{}
	for _, n := range w.create(Spec{Images: []string{"a"}, Nodes: []string{"4"}}, nil).Nodes {
		zones[n.Zone]++
	}
	if zones["a"] != 2 || zones["b"] != 2 {
		t.Errorf("%v", zones)
	}
}

func TestPlatforms(t *testing.T) {
	facts := many(3)
	facts[1].Platform, facts[2].Platform = "linux/arm64/v8", "linux/s390x"
	w := newWorld(t, facts...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	orders := w.orders()
	if len(orders["n0"].Contents) != 3 || len(orders["n1"].Contents) != 2 || orders["n2"] != nil {
		t.Errorf("%+v", orders)
	}
	if j := w.job(); j.Nodes[j.find("n2")].Reason != "the image has no manifest for linux/s390x" {
		t.Errorf("%+v", j.Nodes)
	}
}

func (j *Job) find(name string) int {
	return slices.IndexFunc(j.Nodes, func(n Node) bool { return n.Name == name })
}

// A node that is lost is unknown, and one that comes back goes on.
func TestNodesComeAndGo(t *testing.T) {
	w := newWorld(t, many(2)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	w.orders()
	w.core.Gone(w.now, "conn-n1")
	w.want(Running, Counts{Nodes: 2, Running: 1, Unknown: 1})
	w.pass(10 * time.Second)
	w.connect(node(1, "b"))
	w.pass(0)
	if o := w.orders()["n1"]; o == nil || len(o.Contents) != 3 {
		t.Fatal("it was not asked when it was back")
	}
	w.report("n1", Running, "")
	w.want(Running, Counts{Nodes: 2, Running: 2})
	w.core.Gone(w.now, "conn-n1")
	w.report("n0", Done, "", done(3)...)
	w.pass(time.Second)
	w.pass(31 * time.Second)
	j := w.want(Failed, Counts{Nodes: 2, Done: 1, Unknown: 1})
	if n := j.Nodes[j.find("n1")]; !strings.Contains(n.Reason, "connection with the node was lost") {
		t.Errorf("%+v", n)
	}
}

// A node that comes back within the grace is asked before it is given up,
// however long the network kept quiet that its connection was dead.
func TestNodeComesBackAfterSilence(t *testing.T) {
	w := newWorld(t, many(1)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	w.report("n0", Running, "")
	w.pass(45 * time.Second)
	w.core.Gone(w.now, "conn-n0")
	w.pass(25 * time.Second)
	w.orders()
	w.connect(node(0, "a"))
	w.pass(0)
	if w.orders()["n0"] == nil {
		t.Fatal("it was not asked when it was back")
	}
	w.report("n0", Done, "", done(3)...)
	w.want(Done, Counts{Nodes: 1, Done: 1})
}

// A node that was to resolve an image and was restarted is asked again at
// once, and that counts as no failure.
func TestResolverComesBack(t *testing.T) {
	w := newWorld(t, many(1)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	for range 5 {
		if w.orders()["resolve"] == nil {
			t.Fatal("it was not asked")
		}
		w.pass(time.Second)
		w.connect(node(0, "a")) // the old connection is found dead by this
		w.pass(0)
	}
	w.resolve(Report{State: Done, Resolved: resolution()})
	w.report("n0", Done, "", done(3)...)
	w.want(Done, Counts{Nodes: 1, Done: 1})
}

// A node that is named before it is connected gets what is for its platform.
func TestNamedNodeComesLate(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWorld(t, many(1)...)
		w.create(Spec{Images: []string{"a"}, Nodes: []string{"n0,n1"}}, nil)
		if late {
			w.resolve(Report{State: Done, Resolved: resolution()})
		}
		w.connect(node(1, "b"))
		if !late {
			w.resolve(Report{State: Done, Resolved: resolution()})
		}
		w.pass(0)
		if o := w.orders()["n1"]; o == nil || len(o.Contents) != 3 {
			t.Fatalf("resolved before it came %v: the order is %+v", late, o)
		}
		w.report("n0", Done, "", done(3)...)
		w.report("n1", Done, "", done(3)...)
		j := w.want(Done, Counts{Nodes: 2, Done: 2})
		if n := j.Nodes[j.find("n1")]; n.Size != 10*kib+2 || n.Bytes != n.Size || n.Zone != "b" {
			t.Errorf("resolved before it came %v: %+v", late, n)
		}
	}
}

// A report on an image that is not resolved yet means nothing, and does not
// spoil what comes.
func TestReportBeforeResolved(t *testing.T) {
	w := newWorld(t, many(2)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.report("n0", Done, "")
	w.pass(0)
	w.resolve(Report{State: Done, Resolved: resolution()})
	w.pass(0)
	if o := w.orders()["n1"]; o == nil || len(o.Contents) != 3 {
		t.Errorf("the other node was ordered %+v", o)
	}
}

// In a job that has ended nothing is under way: not the resolution of an image,
// either, when the nodes are gone.
func TestEndedWithoutResolution(t *testing.T) {
	w := newWorld(t, many(1)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.core.Gone(w.now, "conn-n0")
	w.pass(0)
	w.pass(31 * time.Second)
	j := w.want(Failed, Counts{Nodes: 1, Failed: 1})
	if img := j.Images[0]; img.State != Failed || !strings.Contains(j.Reason, "no node was left") {
		t.Errorf("%s: the image is %s: %s", j.Reason, img.State, img.Reason)
	}
}

// A node that says nothing is asked, and then unknown.
func TestMute(t *testing.T) {
	w := newWorld(t, many(1)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	w.orders()
	w.pass(16 * time.Second)
	if w.orders()["n0"] == nil {
		t.Error("it was not asked")
	}
	w.pass(45 * time.Second)
	w.want(Failed, Counts{Nodes: 1, Unknown: 1})
}

func TestResolveFails(t *testing.T) {
	w := newWorld(t, many(4)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	asked := map[string]bool{}
	for range 3 {
		o := w.orders()
		asked[o["resolver"].Repository] = true
		w.core.Report(w.now, o["resolver"].Repository, Report{Job: "1", Resolve: true, State: Failed, Again: true, Reason: "no route"})
		w.pass(0)
	}
	j := w.want(Failed, Counts{Nodes: 4, Failed: 4})
	if len(asked) != 3 || j.Reason != "docker.io/library/a:latest: no route" || j.Nodes[0].Reason != "no route" {
		t.Errorf("%v %q %+v", asked, j.Reason, j.Nodes[0])
	}
	w = newWorld(t, many(4)...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Failed, Reason: "404"})
	w.want(Failed, Counts{Nodes: 4, Failed: 4})
}

func TestConcurrency(t *testing.T) {
	w := newWorld(t, many(5)...)
	w.create(Spec{Images: []string{"a"}, Concurrency: 2}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	for got := 0; got < 5; {
		orders := w.orders()
		if want := min(2, 5-got); len(orders) != want {
			t.Fatalf("%d orders after %d, want %d", len(orders), got, want)
		}
		for name := range orders {
			w.report(name, Done, "", done(3)...)
			got++
		}
		w.pass(0)
	}
	w.want(Done, Counts{Nodes: 5, Done: 5})
}

func TestDeadlineAndCancel(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(w *world)
		state  State
		reason string
	}{
		{"deadline", func(w *world) { w.pass(61 * time.Second) }, Failed, "1m0s"},
		{"cancel", func(w *world) {
			if err := w.core.Cancel(w.now, "1"); err != nil {
				t.Error(err)
			}
		}, Canceled, "canceled"},
	} {
		w := newWorld(t, many(2)...)
		w.create(Spec{Images: []string{"a"}, Timeout: 60}, nil)
		w.resolve(Report{State: Done, Resolved: resolution()})
		w.orders()
		w.report("n0", Done, "", done(3)...)
		c.end(w)
		if o := w.orders(); o["stop n1"] == nil || o["stop n0"] != nil {
			t.Errorf("%s: told %v", c.name, o)
		}
		j := w.want(c.state, Counts{Nodes: 2, Done: 1, Failed: 1})
		if n := j.Nodes[j.find("n1")]; !strings.Contains(n.Reason, c.reason) {
			t.Errorf("%s: %+v", c.name, n)
		}
	}
}

// restarted returns a world whose scheduler has only the record of the job.
func restarted(t *testing.T, creds Credentials) (*world, Job) {
	before := newWorld(t, many(3)...)
	before.create(Spec{Images: []string{"a"}, Concurrency: 2}, creds)
	before.resolve(Report{State: Done, Resolved: resolution()})
	before.orders()
	record := before.job()
	w := newWorld(t)
	w.core.Adopt(w.now, record)
	return w, record
}

// After a restart nothing is taken for done that nobody says is done.
func TestAdopt(t *testing.T) {
	w, _ := restarted(t, nil)
	w.want(Running, Counts{Nodes: 3, Unknown: 2, Waiting: 1})
	for _, f := range many(3) {
		w.connect(f)
	}
	w.pass(0)
	orders := w.orders()
	if len(orders) != 2 {
		t.Fatalf("%d orders, want 2 to those that were at work", len(orders))
	}
	for name, o := range orders {
		if o.Known {
			t.Error("a public image may be begun anew")
		}
		w.report(name, Done, "", done(3)...)
	}
	w.pass(0)
	for name := range w.orders() {
		w.report(name, Done, "", done(3)...)
	}
	w.want(Done, Counts{Nodes: 3, Done: 3})
}

// The last orders before a restart may be in no record: of a node that does not
// come back nobody says that it has failed, however it was recorded.
func TestAdoptedAway(t *testing.T) {
	w, _ := restarted(t, nil)
	w.pass(31 * time.Second)
	w.pass(31 * time.Second)
	for _, n := range w.want(Failed, Counts{Nodes: 3, Unknown: 3}).Nodes {
		if n.Reason != notHeardOf {
			t.Errorf("%+v", n)
		}
	}
}

// A record may be older than the answer of what the image consists of. What nodes
// report before there is another one does not keep the job from its end.
func TestAdoptUnresolved(t *testing.T) {
	before := newWorld(t, many(1)...)
	record := before.create(Spec{Images: []string{"a"}}, nil)
	w := newWorld(t)
	w.core.Adopt(w.now, record)
	w.connect(node(0, "a"))
	w.report("n0", Done, "", done(3)...)
	w.pass(0)
	w.want(Running, Counts{Nodes: 1, Waiting: 1})
	w.resolve(Report{State: Done, Resolved: resolution()})
	if w.orders()["n0"] == nil {
		t.Fatal("the node is not asked")
	}
	w.report("n0", Done, "", done(3)...)
	if j := w.want(Done, Counts{Nodes: 1, Done: 1}); j.Counts.Size == 0 {
		t.Error("what is done has no size")
	}
}

// Who reports of an order that no record has is asked again when it falls
// silent.
func TestAdoptReported(t *testing.T) {
	w, record := restarted(t, nil)
	for _, f := range many(3) {
		w.connect(f)
	}
	w.pass(0)
	w.orders()
	late := ""
	for _, n := range record.Nodes {
		if n.State == Waiting {
			late = n.Name
		}
	}
	w.report(late, Running, "", Layer{State: Running}, Layer{}, Layer{})
	w.want(Running, Counts{Nodes: 3, Unknown: 2, Running: 1})
	w.pass(16 * time.Second)
	if w.orders()[late] == nil {
		t.Errorf("%s is not asked", late)
	}
}

// Credentials are in no record. Who has begun goes on; for the rest they may be
// given again, for a while.
func TestAdoptPrivate(t *testing.T) {
	creds := Credentials{"docker.io": "Bearer x-y-z"}
	for _, again := range []bool{true, false} {
		w, record := restarted(t, creds)
		if strings.Contains(fmt.Sprintf("%+v", record), "x-y-z") {
			t.Fatal("the record has the credential")
		}
		for _, f := range many(3) {
			w.connect(f)
		}
		w.pass(0)
		orders := w.orders()
		if len(orders) != 2 || !w.job().Needs {
			t.Fatalf("orders %v", orders)
		}
		var names []string
		for name, o := range orders {
			if !o.Known || o.Authorization != "" {
				t.Errorf("order %+v", o)
			}
			names = append(names, name)
		}
		w.report(names[0], Done, "", done(3)...)
		w.report(names[1], Unknown, "") // was restarted as well
		w.pass(time.Second)
		if o := w.orders(); len(o) != 0 {
			t.Fatalf("orders without credentials: %v", o)
		}
		if !again {
			w.pass(31 * time.Second)
			w.want(Failed, Counts{Nodes: 3, Done: 1, Failed: 2})
			continue
		}
		if err := w.core.Renew(w.now, "1", creds); err != nil {
			t.Fatal(err)
		}
		w.pass(0)
		orders = w.orders()
		if len(orders) != 2 {
			t.Fatalf("%d orders with the credentials back, want 2", len(orders))
		}
		for name, o := range orders {
			if o.Authorization != "Bearer x-y-z" {
				t.Errorf("order %+v", o)
			}
			w.report(name, Done, "", done(3)...)
		}
		w.want(Done, Counts{Nodes: 3, Done: 3})
	}
}

// A daemon that knows of no orders is sent none, and said to be too old.
func TestOldDaemon(t *testing.T) {
	facts := many(2)
	facts[1].Preheats, facts[1].Version = false, "v0.1"
	w := newWorld(t, facts...)
	w.create(Spec{Images: []string{"a"}}, nil)
	w.resolve(Report{State: Done, Resolved: resolution()})
	orders := w.orders()
	if orders["n1"] != nil || orders["n0"] == nil {
		t.Errorf("orders %v", orders)
	}
	w.report("n0", Done, "", done(3)...)
	j := w.want(Failed, Counts{Nodes: 2, Done: 1, Failed: 1})
	if n := j.Nodes[j.find("n1")]; !strings.Contains(n.Reason, "v0.1") {
		t.Errorf("%+v", n)
	}
}

func TestSpecs(t *testing.T) {
	w := newWorld(t, many(1)...)
	for field, s := range map[string]Spec{
		"images":          {},
		"images ":         {Images: []string{"UPPER/Case"}},
		"platforms":       {Images: []string{"a"}, Platforms: []string{"linux"}},
		"concurrency":     {Images: []string{"a"}, Concurrency: -1},
		"timeout_seconds": {Images: []string{"a"}, Timeout: 1 << 40},
		"pin_seconds":     {Images: []string{"a"}, Pin: -1},
	} {
		var bad *SpecError
		if _, err := w.core.Create(w.now, "1", s, nil); !errors.As(err, &bad) || bad.Field != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for i := range DefaultConfig().MaxActive + 1 {
		_, err := w.core.Create(w.now, fmt.Sprint(i), Spec{Images: []string{"a"}}, nil)
		if full := i == DefaultConfig().MaxActive; errors.Is(err, ErrFull) != full {
			t.Fatalf("job %d: %v", i, err)
		}
	}
}
