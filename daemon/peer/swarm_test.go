package peer

import (
	"errors"
	"io"
	"sync"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/daemon/store/storetest"
	"github.com/shoalproject/shoal/piece"
)

// shelf is a Finder of one blob.
type shelf struct {
	blob Blob
}

func (s shelf) Find(h InfoHash) (Blob, error) {
	if InfoHashOf(s.blob.Digest) != h {
		return Blob{}, errors.New("not on the shelf")
	}
	return s.blob, nil
}

// A blob that no swarm is open for is found and served; its swarm ends with
// its last connection.
func TestFinder(t *testing.T) {
	src := newContent(2 * piece.MinLength)
	seed := newEndpoint(t, Config{Finder: shelf{src.blob(nil, src.all()...)}})
	addr := serve(t, seed, "127.0.0.1")
	leech := open(t, newEndpoint(t, Config{}), src.blob(nil))
	for range 3 {
		c := dial(t, leech, addr, "")
		mustGet(t, c, src, 0)
		c.Close(nil)
		await(t, "the end", c.Done())
		waitFor(t, "the swarm to end", func() bool { return seed.Stats().Swarms == 0 })
	}
	other := newContent(10)
	if _, err := open(t, leech.e, other.blob(nil)).Dial(t.Context(), addr, ""); err == nil {
		t.Error("connected for a blob that is not there")
	}
	// What was found makes way for what is opened.
	c := dial(t, leech, addr, "")
	s := open(t, seed, src.blob(nil))
	await(t, "the connection to end", c.Done())
	if _, err := seed.Open(src.blob(nil)); !errors.Is(err, ErrOpen) {
		t.Errorf("opened twice: %v", err)
	}
	s.Close()
}

// Many leechers of a found blob come and go at once.
func TestFinderMany(t *testing.T) {
	src := newContent(1000)
	seed := newEndpoint(t, Config{Finder: shelf{src.blob(nil, src.all()...)}, Slots: 100})
	addr := serve(t, seed, "127.0.0.1")
	var wg sync.WaitGroup
	for range 16 {
		leech := open(t, newEndpoint(t, Config{}), src.blob(nil))
		wg.Go(func() {
			for range 5 {
				c, err := leech.Dial(t.Context(), addr, "")
				if err != nil {
					t.Error(err)
					return
				}
				if b, err := get(c, 0); err != nil || string(b) != string(src.b) {
					t.Errorf("piece: %v", err)
				}
				c.Close(nil)
				<-c.Done()
			}
		})
	}
	wg.Wait()
	waitFor(t, "the swarm to end", func() bool { return seed.Stats().Swarms == 0 && seed.Stats().Conns == 0 })
}

// Of two connections of one peer one stays, and both sides agree which.
func TestDuplicates(t *testing.T) {
	src := newContent(1000)
	low, high := ID{1}, ID{2}
	evLow, evHigh := newEvents(), newEvents()
	a, b := newEndpoint(t, Config{ID: low}), newEndpoint(t, Config{ID: high})
	addrA, addrB := serve(t, a, "127.0.0.1"), serve(t, b, "127.0.0.1")
	sa, sb := open(t, a, src.blob(evLow, src.all()...)), open(t, b, src.blob(evHigh))
	ca := dial(t, sa, addrB, "") // the lower ID dials: this one stays
	if _, err := sb.Dial(t.Context(), addrA, ""); err == nil {
		t.Error("a second connection of the higher ID is let in")
	}
	if _, err := sa.Dial(t.Context(), addrB, ""); err == nil {
		t.Error("a second connection the same way is let in")
	}
	ca.Close(nil)
	await(t, "the end", ca.Done())
	waitFor(t, "the end there", func() bool { return len(sb.Conns()) == 0 })

	cb := dial(t, sb, addrA, "")
	dial(t, sa, addrB, "") // takes the place of the other
	await(t, "the other to end", cb.Done())
	if got := sb.Conns(); len(got) != 1 || !got[0].Incoming() {
		t.Errorf("connections that stay: %v", got)
	}
	in := sb.Conns()[0]
	waitFor(t, "what the other has", func() bool { return in.Has(0) && !in.Choked() })
	mustGet(t, in, src, 0)

	// Both at once, again and again: never none, never two.
	for range 20 {
		for _, c := range append(sa.Conns(), sb.Conns()...) {
			c.Close(nil)
			<-c.Done()
		}
		waitFor(t, "the end", func() bool { return len(sa.Conns())+len(sb.Conns()) == 0 })
		var wg sync.WaitGroup
		wg.Go(func() { sa.Dial(t.Context(), addrB, "") })
		wg.Go(func() { sb.Dial(t.Context(), addrA, "") })
		wg.Wait()
		waitFor(t, "one to stay", func() bool { return len(sa.Conns()) == 1 && len(sb.Conns()) == 1 })
	}
}

// Closing a swarm or an endpoint ends what is in flight; what comes after is
// refused.
func TestClose(t *testing.T) {
	src := newContent(piece.MinLength)
	ev := newEvents()
	e := newEndpoint(t, Config{})
	addr := serve(t, e, "127.0.0.1")
	s := open(t, e, src.blob(ev))
	peer := call(t, addr)
	peer.greet(src, pp.HaveAll)
	c := ev.await(t, "opened").conn
	tr := must(c.Request(0, &collector{}))
	s.Close()
	await(t, "the transfer", tr.Done())
	if !errors.Is(tr.Err(), ErrClosed) || !errors.Is(ev.await(t, "closed").err, ErrClosed) {
		t.Errorf("transfer: %v", tr.Err())
	}
	if err := s.Have(src.have(0)); !errors.Is(err, ErrClosed) {
		t.Errorf("Have after Close: %v", err)
	}
	if _, err := c.Request(0, &collector{}); err == nil {
		t.Error("Request after Close")
	}
	tr.Cancel()
	e.Close()
	if _, err := e.Open(src.blob(nil)); !errors.Is(err, ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
	if _, err := s.Dial(t.Context(), addr, ""); err == nil {
		t.Error("Dial after Close")
	}
}

// Content that cannot be opened or read is not claimed any longer.
func TestContentFails(t *testing.T) {
	src := newContent(2 * piece.MinLength)
	for name, content := range map[string]Content{
		"no content": nil,
		"open":       contentFunc(func() (Reader, error) { return nil, errors.New("evicted") }),
		"read":       contentFunc(func() (Reader, error) { return memoryReaderThatFails{}, nil }),
	} {
		t.Run(name, func(t *testing.T) {
			seed := newEndpoint(t, Config{})
			addr := serve(t, seed, "127.0.0.1")
			blob := src.blob(nil, src.all()...)
			blob.Content = content
			s := open(t, seed, blob)
			c := dial(t, open(t, newEndpoint(t, Config{}), src.blob(nil)), addr, "")
			if _, err := get(c, 1); err == nil {
				t.Error("got a piece")
			}
			waitFor(t, "the claim to be taken back", func() bool { return !s.holds(1) })
			if !s.holds(0) {
				t.Error("the other piece is not claimed any longer")
			}
		})
	}
}

type contentFunc func() (Reader, error)

func (f contentFunc) Reader() (Reader, error) { return f() }

type memoryReaderThatFails struct{ memoryReader }

func (memoryReaderThatFails) CopyRange(io.Writer, int64, int64) (int64, error) {
	return 0, errors.New("rotten")
}

// A blob goes from a store through the wire into another, in memory and on
// disk, piece by piece checked by the sums that came with HAVE; what arrives
// is announced onward at once.
func TestStores(t *testing.T) {
	src := newContent(5*piece.MinLength + 77)
	memory := new(storetest.Memory)
	memory.Put(src.b)
	disk := openStore(t)
	fill(t, disk, src)
	for name, pair := range map[string][2]storetest.Store{
		"memory": {memory, new(storetest.Memory)},
		"disk":   {storetest.Wrap(disk), storetest.Wrap(openStore(t))},
	} {
		t.Run(name, func(t *testing.T) {
			seed, middle, last := newEndpoint(t, Config{}), newEndpoint(t, Config{}), newEndpoint(t, Config{})
			blob := src.blob(nil, src.all()...)
			blob.Content = contentFunc(func() (Reader, error) { return pair[0].Blob(src.digest) })
			open(t, seed, blob)
			addrs := []string{serve(t, seed, "127.0.0.1"), serve(t, middle, "127.0.0.1")}
			p := must(pair[1].Partial(src.digest, int64(len(src.b))))
			defer p.Close()
			blob = src.blob(nil)
			blob.Content = contentFunc(func() (Reader, error) { return p.Reader() })
			ev, evLast := newEvents(), newEvents()
			blob.Handler = ev
			sm := open(t, middle, blob)
			cl := dial(t, open(t, last, src.blob(evLast)), addrs[1], "")
			c := dial(t, sm, addrs[0], "")
			sums := ev.await(t, "have").pieces
			for !sums[0].Known {
				sums = ev.await(t, "have").pieces
			}
			for _, h := range sums {
				w := must(p.Piece(h.Index))
				tr := must(c.Request(h.Index, w))
				await(t, "a piece", tr.Done())
				if err := errors.Join(tr.Err(), w.CommitSum(h.Sum), sm.Have(h)); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "the news", func() bool { return cl.Has(h.Index) })
				mustGet(t, cl, src, h.Index)
			}
			if err := errors.Join(p.Verify(t.Context()), p.Commit()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The infohash is a function of the digest, and never changes.
func TestInfoHash(t *testing.T) {
	d := digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	// printf 'shoal:sha256:e3b0…' | sha256sum | cut -c1-40
	if got := InfoHashOf(d).HexString(); got != "cbc77b3615b829700c9a21e90857fec20ea94408" {
		t.Errorf("infohash is %s", got)
	}
}
