package attack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire"
	"github.com/shoalproject/shoal/test/rig"
)

// falseNode is a node that takes orders of preheats and does nothing but lie.
type falseNode struct {
	mu sync.Mutex
	// Guarded by mu:
	credentials []string
	resolved    int
}

// joinFalsely has a false node join a scheduler in clear text until the test
// ends. Of every image it says what says has.
func joinFalsely(t *testing.T, s *rig.Scheduler, id, name, zone string, says *jobs.Resolution) *falseNode {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	d := wire.Dialer{Log: slog.New(slog.DiscardHandler)}
	stream, err := d.Open(ctx, s.Addr, "127.0.0.1", scheduler.PeerID(id), scheduler.Hello{
		Addr: "127.0.0.1:9", Zone: zone, Node: scheduler.Node{Name: name, Platform: "linux/amd64", Preheats: true},
	})
	if err != nil {
		t.Fatalf("%s is not let in: %v", id, err)
	}
	t.Cleanup(func() { stream.Close() })
	f := &falseNode{}
	go func() {
		for {
			msgs, err := stream.Recv()
			if err != nil {
				return
			}
			for _, msg := range msgs {
				if o, ok := msg.(*jobs.Order); ok {
					_ = stream.Send([]scheduler.In{f.answer(o, says)})
				}
			}
		}
	}()
	return f
}

func (f *falseNode) answer(o *jobs.Order, says *jobs.Resolution) jobs.Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.Authorization != "" {
		f.credentials = append(f.credentials, o.Authorization)
	}
	r := jobs.Report{Job: o.Job, Image: o.Image, Resolve: o.Resolve, State: jobs.Done}
	if o.Resolve {
		f.resolved++
		r.Resolved = says
	}
	for range o.Contents {
		r.Layers = append(r.Layers, jobs.Layer{State: jobs.Done})
	}
	return r
}

// resolution is what a node says of an image.
func resolution(img registrytest.Image) *jobs.Resolution {
	res := &jobs.Resolution{Digest: img.Manifest.Digest.String(), MediaType: img.Manifest.MediaType, Contents: []jobs.Content{
		{Digest: img.Manifest.Digest.String(), Size: img.Manifest.Size, Manifest: true}, {Digest: img.Config.Digest.String(), Size: img.Config.Size},
	}}
	for _, l := range img.Layers {
		res.Contents = append(res.Contents, jobs.Content{Digest: l.Digest.String(), Size: l.Size})
	}
	return res
}

// runJob begins a job by the API and returns it once it has ended.
func runJob(t *testing.T, s *rig.Scheduler, spec jobs.Spec) jobs.Job {
	t.Helper()
	body, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	job := jobOf(t, http.MethodPost, "http://"+s.Admin+"/api/v1/jobs", string(body))
	rig.Eventually(t, "the job ends", 40*time.Second, func() error {
		job = jobOf(t, http.MethodGet, "http://"+s.Admin+"/api/v1/jobs/"+job.ID, "")
		if !job.Ended() {
			return fmt.Errorf("it is %s", job.State)
		}
		return nil
	})
	return job
}

func jobOf(t *testing.T, method, url, body string) (job jobs.Job) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 || json.Unmarshal(raw, &job) != nil {
		t.Fatalf("%s %s: %s %s %v", method, url, resp.Status, raw, err)
	}
	return job
}

// Whoever resolves a job for the others may name another image that the
// repository has, an old one with a hole. No node serves that by the tag.
func TestPreheatTakesTagsFromTheRegistryAlone(t *testing.T) {
	o := registrytest.New(t)
	old := o.AddImage("app", "v0", noise(70, 100_000))
	now := o.AddImage("app", "v1", noise(71, 100_000))
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	n := rig.StartDaemon(t, rig.DaemonConfig{Name: "node-1", Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	lie := resolution(old)
	var strangers []*falseNode
	for i := range 12 {
		name := fmt.Sprintf("stranger-%d", i)
		strangers = append(strangers, joinFalsely(t, s, name, name, name, lie))
	}
	// Which node resolves is a matter of the job's number.
	for try := 0; asked(strangers) == 0 && try < 20; try++ {
		runJob(t, s, jobs.Spec{Images: []string{upstream + "/app:v1"}, Timeout: 30})
	}
	if asked(strangers) == 0 {
		t.Fatal("no stranger was asked what the image is")
	}
	o.Down()
	got := n.Manifest(upstream, "app", "v1")
	if got.Complete() && got.Sum != now.Manifest.Digest {
		t.Errorf("with the registry down the node says that v1 is %s, which a stranger said; it is %s", got.Sum, now.Manifest.Digest)
	}
}

func asked(nodes []*falseNode) (sum int) {
	for _, n := range nodes {
		n.mu.Lock()
		sum += n.resolved
		n.mu.Unlock()
	}
	return sum
}

// Where nodes prove nothing, nobody who joins gets the credentials of a job; the
// command says why it refuses.
func TestPreheatCredentialsGoToNobodyWithoutCertificate(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Users: map[string]string{"alice": "secret-of-alice"}}))
	img := o.AddImage("app", "v1", noise(72, 100_000))
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	var strangers []*falseNode
	for i := range 3 {
		name := fmt.Sprintf("stranger-%d", i)
		strangers = append(strangers, joinFalsely(t, s, name, name, name, resolution(img)))
	}
	config := rig.WriteFile(t, "config.json", `{"auths":{"`+o.Host()+`":{"username":"alice","password":"secret-of-alice"}}}`)
	cmd := rig.Command(t, "", "preheat", "--scheduler", s.Admin, "--plain-http", "--docker-config", config, "--timeout", "20s", o.Host()+"/app:v1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--tls-cert") {
		t.Errorf("the command ends with %v and does not say that TLS is needed: %s", err, out)
	}
	for i, n := range strangers {
		n.mu.Lock()
		if len(n.credentials) > 0 {
			t.Errorf("stranger %d was sent the job's credentials %d times", i, len(n.credentials))
		}
		n.mu.Unlock()
	}
}

// A stranger takes the name of a node. A job is done only if the node itself
// holds the image.
func TestPreheatIsDoneByTheNodeItself(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("app", "v1", noise(73, 100_000))
	s := rig.StartScheduler(t, rig.SchedulerConfig{})
	n := rig.StartDaemon(t, rig.DaemonConfig{Name: "node-10", Schedulers: []*rig.Scheduler{s}, Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	joinFalsely(t, s, "somebody", "node-10", "", resolution(img))
	job := runJob(t, s, jobs.Spec{Images: []string{upstream + "/app:v1"}, Nodes: []string{"node-10"}, Timeout: 30})
	if job.State != jobs.Done {
		t.Errorf("the job is %s: %s", job.State, job.Reason)
	}
	o.Down()
	if got := n.Blob(upstream, "app", img.Layers[0].Digest); job.State == jobs.Done && !got.Right {
		t.Errorf("the job is done, and node-10 does not hold the layer: %v", got)
	}
}

// A scheduler that was taken over orders a node to fetch what only the node's
// own credentials may read.
func TestSchedulerHasNoUseOfTheNodesCredentials(t *testing.T) {
	o := registrytest.New(t, registrytest.WithAuth(registrytest.Auth{Users: map[string]string{"robot": "secret-of-robot"}}))
	img := o.AddImage("secret/app", "v1", noise(74, 100_000))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	reports := make(chan jobs.Report, 64)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = wire.Serve(ctx, lis, wire.ServeConfig{Grace: 100 * time.Millisecond}, func(ctx context.Context, c *wire.Conn) error {
			return commandNode(ctx, c, resolution(img), reports)
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	home := filepath.Dir(filepath.Dir(rig.WriteFile(t, ".docker/config.json", `{"auths":{"`+upstream+`":{"username":"robot","password":"secret-of-robot"}}}`)))
	rig.StartDaemon(t, rig.DaemonConfig{
		Name: "node-1", Home: home, Schedulers: []*rig.Scheduler{{Addr: lis.Addr().String()}}, Registries: []string{at(o)}, Args: []string{"--auth", "relay"},
	})
	for over := map[bool]bool{}; len(over) < 2; {
		select {
		case r := <-reports:
			if r.State == jobs.Done {
				t.Errorf("the node did what the scheduler ordered, resolving %v, in the name of its own credentials", r.Resolve)
			}
			if r.State.Final() {
				over[r.Resolve] = true
			}
		case <-time.After(40 * time.Second):
			t.Fatal("the node does not answer")
		}
	}
	if sent := o.Sent(img.Layers[0].Digest); sent != 0 {
		t.Errorf("the registry sent %d bytes of the private layer", sent)
	}
}

// commandNode orders whoever connects to resolve an image and to fetch it.
func commandNode(ctx context.Context, c *wire.Conn, res *jobs.Resolution, reports chan<- jobs.Report) error {
	if _, err := c.Recv(); err != nil {
		return err
	}
	if err := c.Accept("127.0.0.1:9"); err != nil {
		return err
	}
	order := jobs.Order{Job: "1", Repository: upstream + "/secret/app", Reference: "v1", Deadline: 30 * time.Second}
	resolve, fetch := order, order
	resolve.Resolve, resolve.Platforms = true, []string{"linux/amd64"}
	fetch.MediaType, fetch.Contents = res.MediaType, res.Contents
	if err := c.Send([]any{&resolve, &fetch}); err != nil {
		return err
	}
	for {
		msgs, err := c.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		for _, msg := range msgs {
			if r, ok := msg.(jobs.Report); ok {
				select {
				case reports <- r:
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
}
