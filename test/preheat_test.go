package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/layout"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/standalone"
)

// private is an origin that gives nothing without the password.
func private(t *testing.T, opts ...registrytest.Option) *registrytest.Origin {
	return registrytest.New(t, append(opts, registrytest.WithAuth(registrytest.Auth{Users: map[string]string{"puller": "geheim-und-lang"}}))...)
}

// token is what a job brings along for the repository app.
func token(o *registrytest.Origin) jobs.Credentials {
	return jobs.Credentials{upstream + "/app": "Bearer " + o.IssueToken("puller", "app")}
}

func (s *sched) client(t *testing.T, others ...*sched) *api.Client {
	t.Helper()
	addrs := []string{s.admin}
	for _, o := range others {
		addrs = append(addrs, o.admin)
	}
	c, err := api.NewClient(addrs, s.cfg.APITokenFile, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return c
}

// create begins a job once the scheduler knows all nodes.
func create(t *testing.T, c *api.Client, nodes int, req api.Request) jobs.Job {
	t.Helper()
	eventually(t, "the scheduler knows all nodes", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && len(st.Nodes) == nodes
	})
	job, err := c.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// ended waits for the end of a job.
func ended(t *testing.T, c *api.Client, id string) jobs.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for job := (jobs.Job{Revision: -1}); ; {
		next, err := c.Wait(ctx, id, job.Revision)
		if err != nil {
			t.Fatalf("%v; the job was %s, %+v, %+v", err, job.State, job.Counts, job.Nodes)
		}
		if job = next; job.Ended() {
			return job
		}
	}
}

// atWork waits until all nodes have their orders, which is more than that those
// are sent: each has reported something to be there.
func atWork(t *testing.T, c *api.Client, id string) {
	t.Helper()
	eventually(t, "all nodes are at it", func() bool {
		job, err := c.Wait(t.Context(), id, -1)
		return err == nil && !slices.ContainsFunc(job.Nodes, func(n jobs.Node) bool { return n.State != jobs.Running || n.Bytes == 0 })
	})
}

func wantState(t *testing.T, job jobs.Job, s jobs.State) {
	t.Helper()
	if job.State != s {
		t.Fatalf("job is %s: %s; %+v", job.State, job.Reason, job.Nodes)
	}
}

// noSecret insists that no credential is to be read anywhere.
func noSecret(t *testing.T, nodes []*node, s *sched, creds jobs.Credentials, more ...string) {
	t.Helper()
	for _, auth := range creds {
		_, secret, _ := strings.Cut(auth, " ")
		for i, n := range nodes {
			if strings.Contains(n.logs.String(), secret) {
				t.Errorf("the log of node %d has the credential", i)
			}
		}
		for _, text := range append(more, s.logs.String()) {
			if strings.Contains(text, secret) {
				t.Errorf("the credential is to be read: %.2000s", text)
			}
		}
	}
}

// A private image is brought onto all of 8 nodes, which the origin sends once.
// Then it is there when the origin is not.
func TestPreheat(t *testing.T) {
	o := private(t)
	img := o.AddImage("app", "v1", noise(1, 8<<20), noise(2, 300<<10), noise(3, 1000))
	tls, identity := secured(t)
	s := startScheduler(t, tls)
	nodes := startCluster(t, o, 8, []*sched{s}, identity)
	c, creds := s.client(t), token(o)
	job := create(t, c, 8, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}, Pin: 3600}, Credentials: creds})
	job = ended(t, c, job.ID)
	wantState(t, job, jobs.Done)
	if job.Counts.Done != 8 || job.Counts.Bytes != job.Counts.Size || job.Images[0].Digest != img.Manifest.Digest.String() {
		t.Errorf("%+v %+v", job.Counts, job.Images)
	}
	if sent, size := o.SentTotal(), job.Counts.Size/8; float64(sent) > 1.05*float64(size) {
		t.Errorf("origin sent %d bytes of %d", sent, size)
	}
	noSecret(t, nodes, s, creds, fmt.Sprintf("%+v", job))

	o.Down()
	o.ResetCounters()
	for _, n := range nodes {
		a := n.get(manifestPath("v1"))
		n.right(a, img.Manifest.Digest)
		for _, b := range append([]v1.Descriptor{img.Config}, img.Layers...) {
			n.blob(b.Digest)
		}
	}
	if len(o.Requests()) > 0 && o.SentTotal() > 0 {
		t.Errorf("the origin was asked: %v", o.Requests())
	}
}

// What the origin's rules are, they are for each caller: who pulls what was
// preheated asks the origin, and fetches nothing.
func TestPreheatThenRelay(t *testing.T) {
	o := private(t)
	img := o.AddImage("app", "v1", noise(1, 2<<20))
	tls, identity := secured(t)
	s := startScheduler(t, tls)
	nodes := startCluster(t, o, 2, []*sched{s}, func(c *daemon.Config) { c.Auth = "relay" }, identity)
	c, creds := s.client(t), token(o)
	job := create(t, c, 2, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}, Credentials: creds})
	wantState(t, ended(t, c, job.ID), jobs.Done)
	o.ResetCounters()
	for _, n := range nodes {
		if a := n.get(blobPath(img.Layers[0].Digest)); a.StatusCode != http.StatusUnauthorized {
			t.Errorf("who proves nothing gets %d", a.StatusCode)
		}
		n.right(n.get(blobPath(img.Layers[0].Digest), "Authorization", "Bearer "+o.IssueToken("puller", "app")), img.Layers[0].Digest)
	}
	if o.SentTotal() != 0 {
		t.Errorf("the origin sent %d bytes again", o.SentTotal())
	}
}

// own is the platform of the nodes.
const own = "linux/" + runtime.GOARCH

// redis runs a redis-server and returns its URL.
func redis(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is missing: apt-get install redis-server")
		}
		t.Skip("redis-server is missing: apt-get install redis-server")
	}
	socket := filepath.Join(t.TempDir(), "redis.sock")
	cmd := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", filepath.Dir(socket))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	eventually(t, "redis listens", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return "unix://" + socket
}

// index puts an image for several platforms into the origin and returns the
// digests of the layers. Other seeds make other layers.
func index(o *registrytest.Origin, tag string, seed int, platforms ...string) map[string]digest.Digest {
	layers := map[string]digest.Digest{}
	var list []v1.Descriptor
	for i, p := range platforms {
		img := o.AddImage("app", "", noise(uint64(seed+i), 1<<20))
		os, arch, _ := strings.Cut(p, "/")
		d := img.Manifest
		d.Platform = &v1.Platform{OS: os, Architecture: arch}
		list = append(list, d)
		layers[p] = img.Layers[0].Digest
	}
	o.AddIndex("app", tag, list...)
	return layers
}

// What a preheat brought is served while the origin is away: to those who bring
// the credential of the job, or, if the job used the node's own credentials, to
// those for whom these speak.
func TestPreheatedImageWhileOriginIsDown(t *testing.T) {
	for _, auth := range []string{"relay", "node"} {
		t.Run(auth, func(t *testing.T) {
			o := private(t)
			img := o.AddImage("app", "v1", noise(1, 100000))
			tls, identity := secured(t)
			s := startScheduler(t, tls)
			n := startCluster(t, o, 1, []*sched{s}, identity, func(c *daemon.Config) {
				c.Auth, c.PermissionTTL = auth, time.Nanosecond
				if auth == "node" {
					c.DockerConfig = filepath.Join(t.TempDir(), "config.json")
					content := fmt.Sprintf(`{"auths":{%q:{"username":"puller","password":"geheim-und-lang"}}}`, upstream)
					if err := os.WriteFile(c.DockerConfig, []byte(content), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			})[0]
			request := api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}}
			permitted, others := []string(nil), []string{"Authorization", "Bearer made-up"}
			if auth == "relay" {
				request.Credentials = token(o)
				permitted = []string{"Authorization", request.Credentials[upstream+"/app"]}
			}
			c := s.client(t)
			wantState(t, ended(t, c, create(t, c, 1, request).ID), jobs.Done)
			n.settled()
			o.Down()
			for _, path := range []string{manifestPath("v1"), manifestPath(img.Manifest.Digest.String()), blobPath(img.Layers[0].Digest)} {
				if a := n.get(path, permitted...); a.StatusCode != http.StatusOK {
					t.Errorf("%s, to whom it was permitted: status %d", path, a.StatusCode)
				}
				if a := n.get(path, others...); a.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s, to others: status %d", path, a.StatusCode)
				}
			}
		})
	}
}

func TestPreheatTargets(t *testing.T) {
	o := registrytest.New(t)
	s := startScheduler(t)
	var nodes []*node
	for i := range 8 {
		nodes = append(nodes, startMember(t, o, i, []*sched{s}, func(c *daemon.Config) {
			c.Zone = string(rune('a' + i%2))
			c.Labels = []string{fmt.Sprintf("n=%d", i)}
		}))
	}
	c := s.client(t)
	for k, row := range []struct {
		nodes     []string
		platforms []string
		want      func(i int) bool // which nodes
		count     int
		has       []string // of the layers
	}{
		{[]string{"3"}, nil, nil, 3, []string{own}},
		{[]string{"25%"}, nil, nil, 2, []string{own}},
		{[]string{"zone=b"}, []string{"linux/arm64"}, func(i int) bool { return i%2 == 1 }, 4, []string{"linux/arm64"}},
		{[]string{"label:n=5"}, []string{"all"}, func(i int) bool { return i == 5 }, 1, []string{"linux/amd64", "linux/arm64"}},
		{[]string{"node1,node2"}, []string{"linux/arm64"}, func(i int) bool { return i == 1 || i == 2 }, 2, []string{"linux/arm64"}},
	} {
		t.Run(fmt.Sprint(row.nodes, row.platforms), func(t *testing.T) {
			tag := fmt.Sprint("v", k)
			layers := index(o, tag, 100*k, "linux/amd64", "linux/arm64")
			job := create(t, c, 8, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:" + tag}, Nodes: row.nodes, Platforms: row.platforms}})
			job = ended(t, c, job.ID)
			wantState(t, job, jobs.Done)
			chosen := map[string]bool{}
			for _, n := range job.Nodes {
				chosen[n.Name] = true
			}
			if len(chosen) != row.count {
				t.Errorf("%d nodes", len(chosen))
			}
			for i, n := range nodes {
				is := chosen[n.cfg.NodeName]
				if row.want != nil && is != row.want(i) {
					t.Errorf("node %d is chosen: %v", i, is)
				}
				for p, d := range layers {
					n.stored(d, is && slices.Contains(row.has, p))
				}
			}
		})
	}
}

// One node goes away midway: the job says which, and why, and that the others
// have it.
func TestPreheatLosesNode(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "v1", noise(1, 4<<20))
	s := startScheduler(t, func(c *standalone.Config) { c.JobGrace = time.Second })
	nodes := startCluster(t, o, 4, []*sched{s})
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: img.Layers[0].Digest}, registrytest.HangAfter(100<<10, release))
	c := s.client(t)
	job := create(t, c, 4, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}})
	eventually(t, "all nodes are at it", func() bool {
		got, err := c.Wait(t.Context(), job.ID, -1)
		return err == nil && got.Counts.Running == 4
	})
	nodes[2].stop()
	o.Heal()
	close(release)
	job = ended(t, c, job.ID)
	wantState(t, job, jobs.Failed)
	if job.Counts.Done != 3 || job.Counts.Unknown != 1 {
		t.Errorf("%+v", job.Counts)
	}
	for _, n := range job.Nodes {
		if lost := n.Name == "node2"; lost != (n.State == jobs.Unknown) || lost && !strings.Contains(n.Reason, "connection with the node was lost") {
			t.Errorf("%+v", n)
		}
	}
}

// A scheduler that is started again in the middle of a job asks the nodes.
func TestPreheatSchedulerRestarted(t *testing.T) {
	o := private(t)
	img := o.AddImage("app", "v1", noise(1, 4<<20))
	file := filepath.Join(t.TempDir(), "jobs.db")
	tls, identity := secured(t)
	s := startScheduler(t, tls, func(c *standalone.Config) { c.JobStore = file })
	nodes := startCluster(t, o, 4, []*sched{s}, identity)
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: img.Layers[0].Digest}, registrytest.HangAfter(100<<10, release))
	c, creds := s.client(t), token(o)
	job := create(t, c, 4, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}, Credentials: creds})
	atWork(t, c, job.ID)
	s.stop()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, auth := range creds {
		if bytes.Contains(raw, []byte(strings.TrimPrefix(auth, "Bearer "))) {
			t.Error("the record has the credential")
		}
	}
	again := startScheduler(t, tls, func(c *standalone.Config) { c.JobStore, c.Listen, c.AdminListen = file, s.addr, s.admin })
	got, err := c.Wait(t.Context(), job.ID, -1)
	if err != nil || got.Ended() || got.Counts.Done > 0 {
		t.Errorf("after the restart: %v, %s, %+v", err, got.State, got.Counts)
	}
	o.Heal()
	close(release)
	job = ended(t, c, job.ID)
	wantState(t, job, jobs.Done)
	noSecret(t, nodes, again, creds)
}

// The tag moves while a scheduler is away whose record is from before its
// orders. It resolves again, and the node has the contents that count then, not
// those of the order that it had.
func TestPreheatResolvedAgain(t *testing.T) {
	o := registrytest.New(t)
	before := o.AddImage("app", "v1", noise(1, 4<<20))
	file := filepath.Join(t.TempDir(), "jobs.db")
	s := startScheduler(t, func(c *standalone.Config) { c.JobStore = file })
	n := startCluster(t, o, 1, []*sched{s})[0]
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: before.Layers[0].Digest}, registrytest.HangAfter(100<<10, release))
	c := s.client(t)
	job := create(t, c, 1, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}})
	record, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	atWork(t, c, job.ID)
	s.stop()
	after := o.AddImage("app", "v1", noise(2, 4<<20))
	if err := os.WriteFile(file, record, 0o600); err != nil {
		t.Fatal(err)
	}
	startScheduler(t, func(c *standalone.Config) { c.JobStore, c.Listen, c.AdminListen = file, s.addr, s.admin })
	o.Heal()
	close(release)
	job = ended(t, c, job.ID)
	wantState(t, job, jobs.Done)
	if got := job.Images[0].Digest; got != after.Manifest.Digest.String() {
		t.Fatalf("the image is %s", got)
	}
	n.stored(after.Layers[0].Digest, true)
}

// Two schedulers share their records: what was begun at one is known at the
// other, and goes on with it.
func TestPreheatSchedulerLost(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "v1", noise(1, 4<<20))
	store := redis(t)
	shared := func(c *standalone.Config) { c.JobStore = store }
	a, b := startScheduler(t, shared), startScheduler(t, shared)
	startCluster(t, o, 4, []*sched{a, b})
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: img.Layers[0].Digest}, registrytest.HangAfter(100<<10, release))
	ca, cb := a.client(t), b.client(t)
	eventually(t, "the other knows all nodes", func() bool {
		st, err := cb.Status(t.Context())
		return err == nil && len(st.Nodes) == 4
	})
	job := create(t, ca, 4, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}})
	eventually(t, "the other says how it stands", func() bool {
		got, err := cb.Wait(t.Context(), job.ID, -1)
		return err == nil && got.Counts.Running == 4
	})
	a.stop()
	o.Heal()
	close(release)
	wantState(t, ended(t, cb, job.ID), jobs.Done)
}

func TestPreheatOfNothing(t *testing.T) {
	o := private(t)
	o.AddImage("app", "v1", noise(1, 1000))
	tls, identity := secured(t)
	s := startScheduler(t, tls)
	nodes := startCluster(t, o, 2, []*sched{s}, identity)
	c, creds := s.client(t), token(o)
	for image, want := range map[string]string{
		upstream + "/app:v2":    "404",
		"elsewhere.test/app:v1": "not allowed",
		upstream + "/other:v1":  "401",
	} {
		job := create(t, c, 2, api.Request{Spec: jobs.Spec{Images: []string{image}}, Credentials: creds})
		job = ended(t, c, job.ID)
		if job.State != jobs.Failed || !strings.Contains(job.Reason, want) || job.Counts.Failed != 2 {
			t.Errorf("%s: %s, %q, %+v", image, job.State, job.Reason, job.Counts)
		}
	}
	noSecret(t, nodes, s, creds)
}

// A preheat steps back while somebody waits for another download, and goes on
// with what it had.
func TestPreheatYields(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "v1", noise(1, 16<<20))
	wanted := o.AddBlob("app", noise(9, 2<<20))
	s := startScheduler(t)
	n := startCluster(t, o, 1, []*sched{s})[0]
	layer := img.Layers[0].Digest
	half, hold := make(chan struct{}), make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: layer}, registrytest.HangAfter(8<<20, half))
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: wanted}, registrytest.HangAfter(1<<20, hold))
	c := s.client(t)
	job := create(t, c, 1, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:v1"}}})
	eventually(t, "half of the layer is here", func() bool {
		got, err := c.Wait(t.Context(), job.ID, -1)
		return err == nil && got.Counts.Bytes >= 7<<20
	})
	pulled := make(chan answer)
	go func() { pulled <- n.get(blobPath(wanted)) }()
	eventually(t, "the preheat has left its download to the one that is waited for", func() bool {
		return n.metric("shoal_blobs_in_flight") == "1" && o.Sent(wanted) > 0
	})
	o.Heal()
	close(half)
	close(hold)
	n.right(<-pulled, wanted)
	wantState(t, ended(t, c, job.ID), jobs.Done)
	if sent := o.Sent(layer); sent > 16<<20+2<<20 {
		t.Errorf("the origin sent %d bytes of a layer of %d", sent, 16<<20)
	}
}

// What is left of a download that nobody waited for any more is looked at and
// used when somebody does, in a swarm too.
func TestSwarmResumes(t *testing.T) {
	const size = 16 << 20
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(1, size))
	n := startCluster(t, o, 1, []*sched{startScheduler(t)})[0]
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: d}, registrytest.HangAfter(4<<20, release))
	resp, err := n.http.Get(n.url + blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "much of it has come", func() bool { return n.number("shoal_origin_received_bytes_total") > 4<<20 })
	resp.Body.Close()
	n.settled()
	had := o.Sent(d)
	o.Heal()
	close(release)
	n.blob(d)
	if sent := o.Sent(d); sent > size+4<<20 {
		t.Errorf("the origin sent %d bytes, %d of them before", sent, had)
	}
}

// An image in an index within an index comes whole, on a node and in a layout.
func TestIndexWithinIndex(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "flat", noise(1, 200<<10))
	child := img.Manifest
	child.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	o.AddIndex("app", "nested", o.AddIndex("app", "inner", child))
	s := startScheduler(t)
	nodes := startCluster(t, o, 2, []*sched{s}, func(c *daemon.Config) { c.Auth = "open" })
	c := s.client(t)
	job := create(t, c, 2, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:nested"}}})
	wantState(t, ended(t, c, job.ID), jobs.Done)
	for _, n := range nodes {
		n.stored(img.Layers[0].Digest, true)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	src := layout.Source{Mirror: nodes[0].url, Repository: upstream + "/app", Reference: "nested", Platforms: []string{own}, Matches: jobs.PlatformMatches}
	if _, err := layout.Pull(t.Context(), src, "nested", target(t, "oci:"+dir), noProgress); err != nil {
		t.Fatal(err)
	}
	files := readDir(t, dir)
	if complete(t, files); files["blobs/sha256/"+img.Layers[0].Digest.Encoded()] == nil {
		t.Error("the layout lacks the layer")
	}
}
