package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoalproject/shoal/daemon/fetch"
	"github.com/shoalproject/shoal/daemon/peer"
	"github.com/shoalproject/shoal/daemon/store"
	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/client"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire"
)

const (
	// maxInventory is how many blobs are announced: as many as a scheduler
	// takes of one node. Those used last come first.
	maxInventory = 1 << 14
	// maxKnown is how many nodes are remembered for when no scheduler is
	// there, turnTo how many of them are asked for one blob.
	maxKnown = 256
	turnTo   = 8
	// maxRemoved is how many blobs the store may have removed before the
	// scheduler was told. What it is not told it finds out: whoever asks
	// for the blob is turned away.
	maxRemoved = 1024
	// leaveTimeout is how long a farewell may wait for a scheduler.
	leaveTimeout = time.Second
	// uploads is how many peers the node uploads to at once, uploadsFetching
	// the same while it fetches from an origin: what the node sends delays
	// what it acknowledges, so that with eight uploads the origin's link
	// stood half idle, and all waited for it. Time of the last of 16 nodes /
	// ideal, 256 MiB at 100 Mbit/s: always four 1.42, always eight 1.45 to
	// 1.70, four and eight 1.39.
	uploads         = 8
	uploadsFetching = 4
)

// cluster is the other nodes: it joins the client of the schedulers and the
// endpoint of the peer wire to what package fetch wants of them.
type cluster struct {
	id       scheduler.PeerID
	log      *slog.Logger
	store    *store.Store
	fetcher  *fetch.Fetcher
	endpoint *peer.Endpoint
	client   *client.Client
	sharing  *sharing
	preheats *preheater // set before run
	listener net.Listener
	removed  chan digest.Digest

	// ids tells which node is behind an ID on the wire, known where to find
	// those that were neighbours.
	ids   *lru.Cache[peer.ID, scheduler.PeerID]
	known *lru.Cache[scheduler.PeerID, scheduler.Neighbour]

	fetching struct {
		sync.Mutex
		runs int // from origins, for swarms
	}

	mu sync.Mutex
	// Guarded by mu, under which nothing else is locked:
	members   map[digest.Digest]*membership
	hashes    map[peer.InfoHash]digest.Digest // of the complete blobs
	reachable bool
	told      bool // reachable has been said
}

// peerID returns the ID by which a node goes on the peer wire.
func peerID(name scheduler.PeerID) peer.ID { return peer.IDOf(string(name)) }

// newCluster opens the node's place in the cluster, or returns nil where no
// scheduler is named. The store is set later: it tells the cluster what it
// removes.
func newCluster(s *settings, log *slog.Logger) (_ *cluster, err error) {
	if len(s.Schedulers) == 0 {
		return nil, nil
	}
	c := &cluster{
		id: ownName(s), log: log, removed: make(chan digest.Digest, maxRemoved),
		members: map[digest.Digest]*membership{}, hashes: map[peer.InfoHash]digest.Digest{},
	}
	if c.ids, err = lru.New[peer.ID, scheduler.PeerID](16 * maxKnown); err != nil {
		return nil, err
	}
	if c.known, err = lru.New[scheduler.PeerID, scheduler.Neighbour](maxKnown); err != nil {
		return nil, err
	}
	if c.sharing, err = newSharing(s); err != nil {
		return nil, err
	}
	if c.listener, err = s.listen("peer-listen", s.PeerListen); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	pcfg := peer.Config{Logger: log, ID: peerID(c.id), Finder: c, Slots: uploads, Upload: limiter(s.UploadRate), Download: limiter(s.DownloadRate)}
	ccfg := client.Config{
		Schedulers: s.Schedulers, Log: log,
		Hello: scheduler.Hello{Addr: c.advertised(s.PeerAdvertise), Zone: s.Zone, Node: s.node()},
	}
	dialer := &wire.Dialer{Log: log}
	if s.identity != nil {
		tls := s.identity.Config(log)
		pcfg.TLS, dialer.TLS = tls, tls
	}
	ccfg.Open = func(ctx context.Context, to client.Target, hello scheduler.Hello) (client.Stream, error) {
		stream, err := dialer.Open(ctx, to.Addr, to.ServerName, c.id, hello)
		if err != nil {
			return nil, err
		}
		return stream, nil
	}
	if c.endpoint, err = peer.New(pcfg); err != nil {
		return nil, err
	}
	if c.client, err = client.New(ccfg, c); err != nil {
		return nil, err
	}
	return c, nil
}

// ownName returns the name by which schedulers and peers know this process.
// Where no certificate proves it, the name of the host may be another's too,
// and a lot is drawn.
func ownName(s *settings) scheduler.PeerID {
	if s.identity != nil {
		return scheduler.PeerID(s.nodeName)
	}
	var lot [4]byte
	rand.Read(lot[:]) // never fails
	return scheduler.PeerID(s.nodeName + "-" + hex.EncodeToString(lot[:]))
}

// advertised returns where peers reach this node, as far as it is known here:
// without a host it is the address from which a scheduler sees the node.
func (c *cluster) advertised(setting string) string {
	if setting != "" {
		return setting
	}
	tcp, ok := c.listener.Addr().(*net.TCPAddr)
	switch {
	case !ok:
		return c.listener.Addr().String()
	case tcp.IP.IsUnspecified():
		return net.JoinHostPort("", strconv.Itoa(tcp.Port))
	default:
		return tcp.String()
	}
}

// take sets what the cluster serves from.
func (c *cluster) take(s *store.Store, f *fetch.Fetcher) {
	c.store, c.fetcher, c.sharing.store = s, f, s
	for _, h := range s.Inventory(maxInventory) {
		if c.sharing.all || h.Marked {
			c.hashes[peer.InfoHashOf(h.Digest)] = h.Digest
		}
	}
}

// run keeps in touch with schedulers and peers until ctx ends.
func (c *cluster) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.client.Run(ctx) })
	group.Go(func() error { return c.endpoint.Serve(ctx, c.listener) })
	group.Go(func() error {
		c.tellChanges(ctx)
		return nil
	})
	group.Go(func() error {
		c.preheats.run(ctx)
		return nil
	})
	return group.Wait()
}

func (c *cluster) close() {
	if c.listener != nil {
		c.listener.Close()
	}
	if c.endpoint != nil {
		c.endpoint.Close()
	}
}

// blobRemoved hears of the store, which is locked, that a blob is gone. Of one
// that was not shared nobody is told.
func (c *cluster) blobRemoved(d digest.Digest) {
	h := peer.InfoHashOf(d)
	c.mu.Lock()
	_, shared := c.hashes[h]
	delete(c.hashes, h)
	c.mu.Unlock()
	if !shared {
		return
	}
	select {
	case c.removed <- d:
	default:
	}
}

// tellChanges tells the scheduler what the node does not serve any more, and
// what it serves now that it is known to be public.
func (c *cluster) tellChanges(ctx context.Context) {
	for {
		select {
		case d := <-c.sharing.published:
			if size, here := c.store.Stat(d); here {
				c.Complete(d, size, true)
			}
		case d := <-c.removed:
			c.mu.Lock()
			_, again := c.members[d]
			c.mu.Unlock()
			if !again {
				c.send(ctx, scheduler.Leave{Blob: scheduler.Digest(d)})
			}
		case <-ctx.Done():
			return
		}
	}
}

// send hands a message to a scheduler. What finds none is not needed then,
// but for a Join, which the client remembers.
func (c *cluster) send(ctx context.Context, msg scheduler.In) {
	if err := c.client.Send(ctx, msg); err != nil && ctx.Err() == nil && !errors.Is(err, client.ErrUnreachable) {
		c.log.Debug("message to the scheduler is lost", "message", msg, "err", err)
	}
}

// Complete announces a blob that has come, if it may be shared.
func (c *cluster) Complete(d digest.Digest, size int64, public bool) {
	share, err := c.sharing.complete(d, public)
	if err != nil {
		c.log.Warn("blob counts as private after a restart", "digest", d, "err", err)
	}
	if !share || size <= 0 {
		return
	}
	c.mu.Lock()
	c.hashes[peer.InfoHashOf(d)] = d
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	c.send(ctx, scheduler.Complete{Blob: scheduler.Digest(d), Size: size})
}

// Fetching tells that a run from an origin begins, or ends.
func (c *cluster) Fetching(begins bool) {
	c.fetching.Lock()
	defer c.fetching.Unlock()
	if begins {
		c.fetching.runs++
	} else {
		c.fetching.runs--
	}
	slots := uploads
	if c.fetching.runs > 0 {
		slots = uploadsFetching
	}
	c.endpoint.SetSlots(slots)
}

// Accuse tells the scheduler of a blob that a node lied about it.
func (c *cluster) Accuse(d digest.Digest, id scheduler.PeerID) {
	// From a goroutine of its own: the flight is locked.
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		defer cancel()
		c.send(ctx, scheduler.Report{Blob: scheduler.Digest(d), Peer: id, Reason: scheduler.ReasonLiar})
	}()
}

// Known returns the nodes that those who want d turn to where there is no
// scheduler: of those that are known, the ones whose names hash highest
// together with the blob's.
func (c *cluster) Known(d digest.Digest) []scheduler.Neighbour {
	list := c.known.Values()
	rank := make(map[scheduler.PeerID]uint64, len(list))
	for _, n := range list {
		h := fnv.New64a()
		h.Write([]byte(d))
		h.Write([]byte(n.Peer))
		rank[n.Peer] = h.Sum64()
	}
	slices.SortFunc(list, func(a, b scheduler.Neighbour) int {
		if rank[a.Peer] > rank[b.Peer] {
			return -1
		}
		return 1
	})
	return list[:min(len(list), turnTo)]
}

// Inventory lists what the store holds.
func (c *cluster) Inventory() []scheduler.Holding {
	held := c.store.Inventory(maxInventory)
	list := make([]scheduler.Holding, 0, len(held))
	for _, h := range held {
		if h.Size > 0 && c.sharing.may(h.Digest) {
			list = append(list, scheduler.Holding{Blob: scheduler.Digest(h.Digest), Size: h.Size})
		}
	}
	return list
}

func (c *cluster) member(blob scheduler.Digest) *fetch.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ms := c.members[digest.Digest(blob)]; ms != nil {
		return ms.member.Load()
	}
	return nil
}

// Rejoin says how things stand with a blob.
func (c *cluster) Rejoin(blob scheduler.Digest) (scheduler.Join, bool) {
	if m := c.member(blob); m != nil {
		return m.Rejoin()
	}
	return scheduler.Join{}, false
}

// Deliver takes a message of a scheduler to whom it concerns.
func (c *cluster) Deliver(msg any) {
	var blob scheduler.Digest
	switch msg := msg.(type) {
	case *scheduler.Swarm:
		blob = msg.Blob
		for _, n := range msg.Add {
			c.meet(n)
		}
	case *scheduler.Assign:
		blob = msg.Blob
		if msg.From.Peer != "" {
			c.meet(msg.From)
		}
	case *scheduler.Revoke:
		blob = msg.Blob
	case *scheduler.Ask:
		blob = msg.Blob
	case *scheduler.Probe:
		blob = msg.Blob
	case *scheduler.Refused:
		if blob = msg.Blob; blob == "" && msg.Reason == scheduler.ReasonUnwanted {
			c.log.Warn("another daemon of this node's name is connected to the scheduler: status and jobs have this one under another name until that is gone; give each daemon a --node-name of its own")
		} else if blob == "" {
			c.log.Warn("scheduler refuses this node", "reason", msg.Reason)
		}
	case *jobs.Order:
		c.preheats.take(msg)
		return
	case *jobs.Stop:
		c.preheats.stop(msg.Job)
		return
	case *scheduler.Hold:
		for _, m := range c.all() {
			m.Tell(msg)
		}
	case *scheduler.Ban:
		if msg.Peer == c.id {
			c.log.Error("this node is banned: others found wrong pieces that it sent or published", "for", msg.For)
			return
		}
		c.log.Warn("peer is banned", "id", msg.Peer, "for", msg.For)
		c.known.Remove(msg.Peer)
		c.fetcher.Ban(msg.Peer, msg.For)
	}
	if m := c.member(blob); m != nil {
		m.Tell(msg)
	}
}

// meet remembers a node.
func (c *cluster) meet(n scheduler.Neighbour) {
	c.ids.Add(peerID(n.Peer), n.Peer)
	n.Reserved = false
	c.known.Add(n.Peer, n)
}

func (c *cluster) all() []*fetch.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*fetch.Member, 0, len(c.members))
	for _, ms := range c.members {
		if m := ms.member.Load(); m != nil {
			list = append(list, m)
		}
	}
	return list
}

// Reachable hears whether any scheduler is there.
func (c *cluster) Reachable(yes bool) {
	c.mu.Lock()
	c.reachable, c.told = yes, true
	c.mu.Unlock()
	c.log.Info("schedulers", "reachable", yes)
	for _, m := range c.all() {
		m.Reachable(yes)
	}
}

// connected reports whether a scheduler is there.
func (c *cluster) connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reachable
}

// Enter makes m the member of a swarm.
func (c *cluster) Enter(d digest.Digest, m *fetch.Member) (fetch.Swarm, error) {
	ms := &membership{c: c, digest: d}
	ms.member.Store(m)
	c.mu.Lock()
	reachable, told := c.reachable, c.told
	c.members[d] = ms
	c.mu.Unlock()
	if told {
		m.Reachable(reachable)
	}
	return ms, nil
}

// Find finds a complete blob for a peer that asks for it.
func (c *cluster) Find(h peer.InfoHash) (peer.Blob, error) {
	c.mu.Lock()
	d, ok := c.hashes[h]
	c.mu.Unlock()
	if !ok {
		return peer.Blob{}, store.ErrNotFound
	}
	b, err := c.store.Blob(d)
	if err != nil {
		return peer.Blob{}, err
	}
	defer b.Close()
	sums := b.Sums()
	pieces := make([]peer.Have, len(sums))
	for i, sum := range sums {
		pieces[i] = peer.Have{Index: i, Sum: sum, Known: true, Publisher: string(c.id)}
	}
	return peer.Blob{Digest: d, Size: b.Size(), Pieces: pieces, Content: complete{c.store, d}, Handler: seeding{}}, nil
}

// complete is a complete blob for upload.
type complete struct {
	store  *store.Store
	digest digest.Digest
}

func (b complete) Reader() (peer.Reader, error) {
	r, err := b.store.Blob(b.digest)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// errComplete ends a connection between two that have all of a blob.
var errComplete = errors.New("both have the whole blob")

// seeding handles peers of a blob that is complete: they are served, and let
// go when they need nothing any more.
type seeding struct{}

func (seeding) Opened(*peer.Conn)        {}
func (seeding) Changed(*peer.Conn)       {}
func (seeding) Closed(*peer.Conn, error) {}
func (seeding) Have(c *peer.Conn, _ []peer.Have) {
	if c.Complete() {
		c.Close(errComplete)
	}
}

// atomicMember is the member while it is one.
type atomicMember = atomic.Pointer[fetch.Member]
