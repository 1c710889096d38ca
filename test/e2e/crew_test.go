package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// crew is what the tests of preheat jobs in trouble lie on: a registry,
// schedulers and daemons, all on loopback.
type crew struct {
	registry   *Registry
	head       *Node // where schedulers and commands run
	schedulers []*Scheduler
	daemons    []*Daemon // of node1, node2, …
	host       string    // of the images
	docker     string    // the configuration that commands use
	commands   int
}

// newCrew starts a scheduler with each of these --job-store, and daemons. With
// private set, the registry wants tokens, commands have the password, and nodes
// have certificates: those without get no credentials of a job.
func newCrew(t *testing.T, daemons int, private bool, stores ...string) *crew {
	t.Helper()
	c := &crew{head: NewNode(t, "head")}
	c.registry = NewNode(t, "origin").StartRegistry(t)
	c.host, c.docker = c.registry.Origin.Addr, c.head.Write(t, "{}", "config.json")
	auth := "open"
	identity := func(*Node) *Identity { return nil }
	if private {
		ca := NewCA(t, "the crew's CA")
		identity = func(n *Node) *Identity { return ca.Issue(t, n, ca) }
		gate, _ := newTokenGate(t, c.head.Addr, c.registry.Origin.URL())
		password := base64.StdEncoding.EncodeToString([]byte(gateUser + ":" + gatePassword))
		c.host, auth = gate.Addr, "relay"
		c.docker = c.head.Write(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, c.host, password), "config.json")
	}
	var addrs []string
	for i, store := range stores {
		n := NewNode(t, fmt.Sprintf("scheduler%d", i+1))
		if store == "file" {
			store = n.Path("jobs.db")
		}
		s := n.StartScheduler(t, SchedulerConfig{Identity: identity(n), Extra: []string{"--job-store", store}})
		c.schedulers, addrs = append(c.schedulers, s), append(addrs, s.Addr)
	}
	for i := range daemons {
		n := NewNode(t, fmt.Sprintf("node%d", i+1))
		c.daemons = append(c.daemons, n.StartDaemon(t, DaemonConfig{
			Registries: []string{c.host + "=http://" + c.host}, Schedulers: addrs, Auth: auth,
			Identity: identity(n),
		}))
	}
	for _, s := range c.schedulers {
		Eventually(t, "all daemons are connected", time.Minute, func() error {
			n, err := s.Metric(metricPeers)
			if err == nil && int(n) != daemons {
				err = fmt.Errorf("%v are", n)
			}
			return err
		})
	}
	return c
}

// image pushes an image whose layer the origin stops to send in its middle.
// Another seed makes another image.
func (c *crew) image(t *testing.T, seed byte) (ref string, layer Descriptor, gate *Gate) {
	t.Helper()
	img := newImage(t, func() (*Image, error) { return NoiseImage(seed, 8<<20) })
	tag := fmt.Sprintf("v%d", seed)
	c.registry.Push(t, img, repository, tag)
	layer = img.Large()
	gate = NewGate(layer.Size / 2)
	c.registry.Origin.Order(ForBlob(layer.Digest), &Fault{Gate: gate})
	return c.host + "/" + repository + ":" + tag, layer, gate
}

// shoal is a command line for the schedulers.
func (c *crew) shoal(t *testing.T, command string, args ...string) *exec.Cmd {
	t.Helper()
	binary, err := shoalBinary()
	if err != nil {
		t.Fatal(err)
	}
	line := []string{command}
	for _, s := range c.schedulers {
		line = append(line, "--scheduler", s.Admin)
	}
	if command == "preheat" {
		line = append(line, "--plain-http", "--docker-config", c.docker)
	}
	return c.head.Command(binary, append(line, args...)...)
}

// preheat starts `shoal preheat`, which writes to its log.
func (c *crew) preheat(t *testing.T, args ...string) *Process {
	t.Helper()
	c.commands++
	log := c.head.Path(fmt.Sprintf("preheat%d.log", c.commands))
	p, err := launch("preheat", log, c.shoal(t, "preheat", args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		t.Logf("shoal preheat %s:\n%s", strings.Join(args, " "), p.tail())
	})
	return p
}

// says fails the test unless a command ends with that code, having said all of
// the texts.
func (p *Process) says(t *testing.T, code int, texts ...string) {
	t.Helper()
	if got := p.Code(t); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for _, text := range texts {
		if !strings.Contains(p.Log(t), text) {
			t.Errorf("it does not say %q", text)
		}
	}
}

// preheatJob is what the tests read of a job.
type preheatJob struct {
	ID     string
	State  string
	Reason string
	Counts struct{ Nodes, Running, Done, Unknown int }
	Nodes  []struct{ Node, State, Reason string }
}

// fates are the states of the nodes, by name.
func (j preheatJob) fates() map[string]string {
	m := map[string]string{}
	for _, n := range j.Nodes {
		m[n.Node] = n.State
	}
	return m
}

// get asks the API of a scheduler.
func (s *Scheduler) get(path string, into any) error {
	resp, err := probeClient.Get("http://" + s.Admin + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// job returns a job as a scheduler tells of it.
func (s *Scheduler) job(t *testing.T, id string) (job preheatJob) {
	t.Helper()
	if err := s.get("jobs/"+id, &job); err != nil {
		t.Fatal(err)
	}
	return job
}

// jobIs waits until a job is in a state.
func (s *Scheduler) jobIs(t *testing.T, id, state string) {
	t.Helper()
	Eventually(t, "the job is "+state, time.Minute, func() error {
		if job := s.job(t, id); job.State != state {
			return fmt.Errorf("it is %s", job.State)
		}
		return nil
	})
}

// underWay waits until so many jobs run whose nodes are all at work, the daemons
// have a part of the layer and the origin holds the rest. It returns their IDs,
// the newest first.
func (c *crew) underWay(t *testing.T, jobs int, gate *Gate, daemons ...*Daemon) (ids []string) {
	t.Helper()
	Eventually(t, "the layer is on its way to all nodes", time.Minute, func() error {
		var list struct{ Jobs []preheatJob }
		if err := c.schedulers[0].get("jobs", &list); err != nil {
			return err
		}
		ids = ids[:0]
		for _, job := range list.Jobs {
			if job.Counts.Running > 0 && job.Counts.Running == job.Counts.Nodes {
				ids = append(ids, job.ID)
			}
		}
		if len(ids) != jobs || !gate.Held() {
			return fmt.Errorf("%d jobs are under way; held: %v", len(ids), gate.Held())
		}
		for _, d := range daemons {
			if got := fetched(t, d); got < 256<<10 {
				return fmt.Errorf("%s has %v bytes", d.node.Name, got)
			}
		}
		return nil
	})
	return slices.Clone(ids)
}

// holds fails the test unless the daemons serve a layer while there is no
// origin.
func (c *crew) holds(t *testing.T, layer Descriptor, daemons ...*Daemon) {
	t.Helper()
	c.registry.Stop(t)
	for _, d := range daemons {
		client := Client{Base: d.URL(), Namespace: c.host, Repository: repository}
		if err := client.CheckBlobs(t.Context(), layer); err != nil {
			t.Errorf("%s: %v", d.node.Name, err)
		}
	}
}
