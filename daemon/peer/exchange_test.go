package peer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/shoalproject/shoal/piece"
)

// One peer has everything, another gets everything, over IPv4 and IPv6.
func TestExchange(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			src := newContent(3*piece.MinLength + 12345)
			seed, leech := newEndpoint(t, Config{}), newEndpoint(t, Config{})
			addr := serve(t, seed, host)
			open(t, seed, src.blob(nil, src.all()...))
			ev := newEvents()
			c := dial(t, open(t, leech, src.blob(ev)), addr, "")
			if c.ID() != seed.ID() || c.Incoming() || c.Name() != "" {
				t.Errorf("connected to %q, incoming %v, name %q", c.ID(), c.Incoming(), c.Name())
			}
			if claims := ev.await(t, "have"); len(claims.pieces) != 4 || claims.pieces[0].Known {
				t.Errorf("the seed claims %v", claims.pieces)
			}
			sums := ev.await(t, "have")
			for i, h := range sums.pieces {
				if h != src.have(i) {
					t.Errorf("the seed publishes %v, should %v", h, src.have(i))
				}
			}
			for i := range src.layout.Count() {
				mustGet(t, c, src, i)
			}
			if n, stalled := c.Progress(); n != int64(len(src.b)) || stalled != 0 {
				t.Errorf("progress is %d bytes, stalled for %v", n, stalled)
			}
			waitFor(t, "the seed's books", func() bool { return seed.Stats().Uploaded == int64(len(src.b)) })
			if up, down := seed.Stats(), leech.Stats(); up.Uploaded != int64(len(src.b)) || down.Downloaded != int64(len(src.b)) || down.Wasted != 0 {
				t.Errorf("counted %+v and %+v", up, down)
			}
		})
	}
}

// Two peers with half of the blob each complete each other over one
// connection, each announcing what it gets.
func TestExchangeBothWays(t *testing.T) {
	src := newContent(8 * piece.MinLength)
	a, b := newEndpoint(t, Config{}), newEndpoint(t, Config{})
	addr := serve(t, a, "127.0.0.1")
	evA, evB := newEvents(), newEvents()
	all := src.all()
	sa := open(t, a, src.blob(evA, all[:4]...))
	sb := open(t, b, src.blob(evB, all[4:]...))
	cb := dial(t, sb, addr, "")
	ca := evA.await(t, "opened").conn
	for i := range 4 {
		mustGet(t, cb, src, i)
		mustGet(t, ca, src, 4+i)
		if err := errors.Join(sb.Have(src.have(i)), sa.Have(src.have(4+i))); err != nil {
			t.Fatal(err)
		}
	}
}

// A piece that is verified later is pushed with its sum and publisher, to
// whom lacks it; a piece that is lost is taken back.
func TestHavePushed(t *testing.T) {
	src := newContent(2 * piece.MinLength)
	a, b := newEndpoint(t, Config{}), newEndpoint(t, Config{})
	addr := serve(t, a, "127.0.0.1")
	sa := open(t, a, src.blob(nil))
	ev := newEvents()
	c := dial(t, open(t, b, src.blob(ev)), addr, "")
	if _, err := c.Request(1, &collector{}); !errors.Is(err, ErrAbsent) {
		t.Errorf("Request of what the peer lacks: %v", err)
	}
	if err := sa.Have(src.have(1)); err != nil {
		t.Fatal(err)
	}
	got := ev.await(t, "have").pieces
	if len(got) == 1 && !got[0].Known { // announced before the sums were sent
		got = ev.await(t, "have").pieces
	}
	if len(got) != 1 || got[0] != src.have(1) {
		t.Fatalf("told of %v", got)
	}
	mustGet(t, c, src, 1)
	sa.Lost(1)
	ev.await(t, "changed")
	if c.Has(1) {
		t.Error("a lost piece is still claimed")
	}
	if err := sa.Have(Have{Index: 2}); err == nil {
		t.Error("a piece out of range can be announced")
	}
}

// What comes in a row of pieces is not mixed up, whatever the block size.
func TestPipeline(t *testing.T) {
	src := newContent(16*piece.MinLength - 1)
	for _, block := range []int{MinBlock, 100_000, piece.MinLength, MaxBlock} {
		seed, leech := newEndpoint(t, Config{}), newEndpoint(t, Config{Block: block})
		addr := serve(t, seed, "127.0.0.1")
		open(t, seed, src.blob(nil, src.all()...))
		c := dial(t, open(t, leech, src.blob(nil)), addr, "")
		var sinks [16]collector
		var transfers [16]*Transfer
		for i := range transfers {
			transfers[i] = must(c.Request(i, &sinks[i]))
		}
		for i, tr := range transfers {
			await(t, "a piece", tr.Done())
			if tr.Err() != nil || !bytes.Equal(sinks[i].bytes(), src.piece(i)) || tr.Received() != int64(len(src.piece(i))) {
				t.Errorf("block %d: piece %d: %v", block, i, tr.Err())
			}
		}
	}
}
