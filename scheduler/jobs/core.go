package jobs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Config bounds a Core. DefaultConfig says what each is by default.
type Config struct {
	// Grace is how long a node may be away, or credentials be missing,
	// before the job goes on without.
	Grace time.Duration
	// Silence is how long a node with work may say nothing before it is
	// asked; Mute how long before it counts as lost.
	Silence, Mute time.Duration
	// Attempts is how many nodes are asked to resolve an image.
	Attempts int
	// Agree is how many nodes must say the same of an image before it counts,
	// if so many are there.
	Agree int
	// MaxActive bounds the jobs that have not ended.
	MaxActive int
	// Credentials says that nodes prove their names, so that jobs may bring
	// credentials.
	Credentials bool
}

// DefaultConfig returns what suits a cluster.
func DefaultConfig() Config {
	return Config{Grace: 30 * time.Second, Silence: 15 * time.Second, Mute: time.Minute, Attempts: 3, Agree: 2, MaxActive: 64}
}

// Errors of Create, Cancel and Renew.
var (
	ErrFull      = errors.New("too many jobs are running")
	ErrNoNodes   = errors.New("no node of the cluster is selected")
	ErrUnknown   = errors.New("there is no such job")
	ErrDuplicate = errors.New("there is such a job already")
	// ErrCredentials: in clear text anybody may take the name of a node.
	ErrCredentials = errors.New("the job brings credentials and the scheduler has no TLS, so that no node can prove its name: whoever joins would get them. Give scheduler and nodes --tls-cert, --tls-key and --tls-ca, or have nodes use credentials of their own (--preheat-node-credentials)")
)

// Credentials are Authorization headers by repository (host/name), or by host
// for all of its repositories.
type Credentials map[string]string

func (c Credentials) of(repository string) string {
	if auth, ok := c[repository]; ok {
		return auth
	}
	host, _, _ := strings.Cut(repository, "/")
	return c[host]
}

// Out is a message to the daemon behind a connection.
type Out struct {
	To  string
	Msg any // *Order or *Stop
}

// Core is the jobs of one scheduler and the nodes that it has. It is pure and
// not safe for concurrent use. What it wants sent, Tick and the others
// collect for Take.
type Core struct {
	cfg   Config
	conns map[string]*conn // by connection
	names map[string]*conn // by name of the node
	jobs  map[string]*job
	list  []*job // in order of creation
	outs  []Out
}

// conn is one daemon that is connected. The name in its facts is its own
// alone; claimed is the one that it gave.
type conn struct {
	id      string
	claimed string
	facts   Facts
	since   time.Time
	vitals  Vitals
}

// job is a Job with what only its scheduler knows.
type job struct {
	Job
	creds Credentials
	// adopted: it was another scheduler's, whose last orders and reports are
	// in no record.
	adopted bool
	refs    []Ref
	images  []resolving
	work    []work         // of each node
	index   map[string]int // of nodes, by name
	needs   time.Time      // since when credentials are missing
	stir    bool           // something may have to be done
	saved   int64          // the revision that a record has
	ended   time.Time
}

// resolving is how far the resolution of an image is.
type resolving struct {
	node  string                 // who was asked
	said  map[string]*Resolution // by node
	asked time.Time
	tries int
	// parts are the indexes of the contents that a platform needs.
	parts map[string][]int
}

// work is how far one node is.
type work struct {
	conn    string    // that it was last asked by
	heard   time.Time // or asked first
	asked   time.Time
	lost    time.Time // since when it is away
	ordered bool      // it has, or may have, an order
	over    bool      // nothing more will be done for it
}

// NewCore returns a core that knows nobody.
func NewCore(cfg Config) *Core {
	return &Core{cfg: cfg, conns: map[string]*conn{}, names: map[string]*conn{}, jobs: map[string]*job{}}
}

// Take returns what is to be sent, in order, and forgets it.
func (c *Core) Take() []Out {
	outs := c.outs
	c.outs = nil
	return outs
}

// Connected takes in a daemon and returns the name by which it is known. The
// id is that of its connection. Of two with the same name the older one has it;
// the other one is known by its connection meanwhile.
func (c *Core) Connected(now time.Time, id string, facts Facts) string {
	c.Gone(now, id) // if it was there, this is its next life
	if facts.Name == "" {
		facts.Name = id
	}
	n := &conn{id: id, claimed: facts.Name, facts: facts, since: now}
	if c.names[n.facts.Name] != nil {
		n.facts.Name = id
	}
	for c.names[n.facts.Name] != nil {
		n.facts.Name += "+"
	}
	c.conns[id] = n
	c.enter(now, n)
	return n.facts.Name
}

// enter makes a connection the one of its name.
func (c *Core) enter(now time.Time, n *conn) {
	c.names[n.facts.Name] = n
	for _, j := range c.list {
		if !j.Ended() {
			j.connected(now, n.facts)
		}
	}
}

// connected takes in that a node is there, perhaps again: what it was asked
// before may be lost, and it has as long to answer as if asked first.
func (j *job) connected(now time.Time, facts Facts) {
	j.stir = true
	for k := range j.Images {
		if j.Images[k].State == Running && j.images[k].node == facts.Name {
			j.Images[k].State = Waiting
		}
	}
	i, ok := j.index[facts.Name]
	if !ok {
		return
	}
	j.work[i].conn, j.work[i].heard = "", now
	// One that was named before it was there.
	if n := &j.Nodes[i]; n.Platform == "" {
		n.Zone, n.Platform = facts.Zone, facts.Platform
		for k := range j.Images {
			j.measure(i, k)
		}
	}
}

// Gone takes in that a connection has ended. Its name goes to the oldest of
// those that gave the same.
func (c *Core) Gone(now time.Time, id string) {
	n := c.conns[id]
	if n == nil {
		return
	}
	delete(c.conns, id)
	delete(c.names, n.facts.Name)
	var heir *conn
	for _, o := range c.conns {
		if o.claimed == n.facts.Name && (heir == nil || o.since.Before(heir.since) || o.since.Equal(heir.since) && o.id < heir.id) {
			heir = o
		}
	}
	if heir != nil {
		delete(c.names, heir.facts.Name)
		heir.facts.Name = heir.claimed
		c.enter(now, heir)
	}
	for _, j := range c.list {
		j.stir = true
	}
}

// Vitals takes in what a daemon says of its traffic.
func (c *Core) Vitals(id string, v Vitals) {
	if n := c.conns[id]; n != nil {
		n.vitals = v
	}
}

// NodeInfo is a node that is connected.
type NodeInfo struct {
	Facts
	Since  time.Time `json:"connected_since"`
	Vitals Vitals    `json:"totals"`
}

// Nodes returns the nodes that are connected, by name.
func (c *Core) Nodes() []NodeInfo {
	list := make([]NodeInfo, 0, len(c.names))
	for _, n := range c.names {
		list = append(list, NodeInfo{n.facts, n.since, n.vitals})
	}
	slices.SortFunc(list, func(a, b NodeInfo) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Create begins a job. The error is a *SpecError, ErrFull, ErrNoNodes or
// ErrDuplicate, or ErrCredentials.
func (c *Core) Create(now time.Time, id string, spec Spec, creds Credentials) (Job, error) {
	if err := spec.Check(); err != nil {
		return Job{}, err
	}
	if len(creds) > 0 && !c.cfg.Credentials {
		return Job{}, ErrCredentials
	}
	selectors, err := parseSelectors(spec.Nodes)
	if err != nil {
		return Job{}, err
	}
	active := 0
	for _, j := range c.list {
		if !j.Ended() {
			active++
		}
	}
	if active >= c.cfg.MaxActive {
		return Job{}, ErrFull
	}
	if c.jobs[id] != nil {
		return Job{}, ErrDuplicate
	}
	nodes := make([]Facts, 0, len(c.names))
	for _, n := range c.names {
		nodes = append(nodes, n.facts)
	}
	nodes = arrange(nodes, id)
	for _, sel := range selectors {
		nodes = sel(nodes)
	}
	if len(nodes) == 0 {
		return Job{}, ErrNoNodes
	}
	if len(nodes) > MaxTargets {
		return Job{}, &SpecError{"nodes", fmt.Sprintf("%d are selected, at most %d", len(nodes), MaxTargets)}
	}
	record := Job{ID: id, State: Running, Created: now, Updated: now, Spec: spec, Private: len(creds) > 0}
	for _, name := range spec.Images {
		ref, _ := ParseImage(name) // it was checked
		record.Images = append(record.Images, Image{Name: shown(name, ref), State: Waiting, Digest: ref.Digest})
	}
	for _, f := range nodes {
		n := Node{Name: f.Name, Zone: f.Zone, Platform: f.Platform, State: Waiting, Images: make([]NodeImage, len(spec.Images))}
		for k := range n.Images {
			n.Images[k].State = Waiting
		}
		record.Nodes = append(record.Nodes, n)
	}
	j := c.add(record)
	j.creds = creds
	c.advance(now, j)
	return j.Clone(), nil
}

// shown is the name of an image as its user wrote it, without the digest if it
// has a tag too.
func shown(name string, ref Ref) string {
	if ref.Tag != "" {
		name, _, _ = strings.Cut(name, "@")
	}
	return name
}

// notHeardOf is why it is unknown what became of a node.
const notHeardOf = "the scheduler was restarted; the node has not been heard of since"

// Adopt goes on with a job of another scheduler, or of this one before it was
// restarted. Those of its nodes that were at work are asked how they fare.
func (c *Core) Adopt(now time.Time, record Job) {
	if c.jobs[record.ID] != nil || record.Ended() || record.Spec.Check() != nil || len(record.Images) != len(record.Spec.Images) {
		return
	}
	for i := range record.Images {
		if record.Images[i].State == Running {
			record.Images[i].State = Waiting
		}
	}
	for i := range record.Nodes {
		if len(record.Nodes[i].Images) != len(record.Images) {
			return
		}
		for k := range record.Nodes[i].Images {
			if img := &record.Nodes[i].Images[k]; img.State == Running {
				img.State, img.Reason = Unknown, notHeardOf
			}
		}
	}
	j := c.add(record)
	j.adopted = true
	for i := range j.work {
		j.work[i].heard = now
		for _, img := range j.Nodes[i].Images {
			j.work[i].ordered = j.work[i].ordered || img.State == Unknown
		}
	}
	c.advance(now, j)
}

// add takes a job into the tables.
func (c *Core) add(record Job) *job {
	j := &job{Job: record, stir: true, index: make(map[string]int, len(record.Nodes)), work: make([]work, len(record.Nodes)), images: make([]resolving, len(record.Images))}
	for _, name := range record.Spec.Images {
		ref, _ := ParseImage(name) // it was checked
		j.refs = append(j.refs, ref)
	}
	for i, n := range record.Nodes {
		j.index[n.Name] = i
	}
	c.jobs[j.ID] = j
	c.list = append(c.list, j)
	return j
}

// Drop forgets a job, without a word to its nodes: another scheduler has it,
// or it has ended.
func (c *Core) Drop(id string) {
	delete(c.jobs, id)
	c.list = slices.DeleteFunc(c.list, func(j *job) bool { return j.ID == id })
}

// Cancel ends a job. What has come stays on the nodes.
func (c *Core) Cancel(now time.Time, id string) error {
	j := c.jobs[id]
	if j == nil {
		return ErrUnknown
	}
	if !j.Ended() {
		c.stop(now, j, Canceled, "the job was canceled")
	}
	return nil
}

// Renew replaces the credentials of a job, in its nodes as well.
func (c *Core) Renew(now time.Time, id string, creds Credentials) error {
	j := c.jobs[id]
	if j == nil {
		return ErrUnknown
	}
	if j.Ended() {
		return nil
	}
	if !c.cfg.Credentials {
		return ErrCredentials
	}
	j.creds, j.Private, j.Needs, j.needs = creds, true, false, time.Time{}
	for i := range j.Nodes {
		if n := c.names[j.Nodes[i].Name]; n != nil && !j.work[i].over {
			for k := range j.Images {
				if st := j.Nodes[i].Images[k].State; st == Running || st == Unknown {
					c.order(now, j, i, k, n)
				}
			}
		}
	}
	for k := range j.Images {
		if j.Images[k].State == Running {
			j.images[k].asked = time.Time{} // asked again at once
			j.Images[k].State = Waiting
		}
	}
	j.stir = true
	c.advance(now, j)
	return nil
}

// Get returns a job.
func (c *Core) Get(id string) (Job, bool) {
	j := c.jobs[id]
	if j == nil {
		return Job{}, false
	}
	return j.Clone(), true
}

// IDs returns the jobs, the oldest first.
func (c *Core) IDs() []string {
	ids := make([]string, len(c.list))
	for i, j := range c.list {
		ids[i] = j.ID
	}
	return ids
}

// Tick lets time pass. Call it a few times a second.
func (c *Core) Tick(now time.Time) {
	for _, j := range c.list {
		if !j.Ended() {
			c.advance(now, j)
		}
	}
}
