package scheduler

import (
	"testing"
	"time"

	"github.com/shoalproject/shoal/piece"
)

// tape reads choices from the fuzzer's bytes; at their end all are 0.
type tape struct{ rest []byte }

func (t *tape) next(n int) int {
	if len(t.rest) == 0 {
		return 0
	}
	b := t.rest[0]
	t.rest = t.rest[1:]
	return int(b) % n
}

func (t *tape) runs() []Run {
	var list []Run
	for range t.next(4) {
		list = append(list, Run{t.next(60) - 2, t.next(64) - 1})
	}
	return list
}

// FuzzCore lets six strangers of three identities say what they like to a core
// with small budgets: the books must agree after each word, and no budget be
// exceeded.
func FuzzCore(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := DefaultConfig()
		cfg.Degree, cfg.MaxDegree, cfg.SmallPieces, cfg.SourceStreams = 3, 4, 4, 4
		cfg.MaxPeers, cfg.MaxSwarms, cfg.MaxBlobs, cfg.AllPieces = 6, 5, 4, 160
		cfg.IdentityPeers, cfg.IdentityWants, cfg.IdentitySeeds, cfg.IdentityPieces = 3, 4, 3, 120
		c := New(cfg)
		peers := []PeerID{"a", "b", "c", "d", "e", "f"}
		blobs := []Digest{"A", "B", "C", "D", "E", "F"}
		sizes := []int64{0, 3 * piece.MinLength, 40 * piece.MinLength, 41*piece.MinLength - 1, -1, 1 << 49}
		identities := []string{"", "x", "y", "z"}
		zones := []string{"", "east", "west"}
		in := &tape{b}
		var now time.Duration
		for i := 0; len(in.rest) > 0 && i < 400; i++ {
			kind, id, blob := in.next(12), peers[in.next(6)], blobs[in.next(6)]
			var msg In
			switch kind {
			case 0:
				who := in.next(8)
				msg = Hello{Addr: "a:1", Zone: zones[in.next(3)], Identity: identities[who%4], Proven: who >= 4, Inventory: []Holding{{blob, sizes[in.next(6)]}}[:in.next(2)]}
			case 1:
				o := in.next(8)
				j := Join{Blob: blob, Size: sizes[in.next(6)], Origin: o&1 != 0, Again: o&2 != 0, Source: string(rune('s' + o>>2))}
				for range in.next(8) {
					j.Have = append(j.Have, byte(in.next(256)))
				}
				j.Bringing = in.runs()
				msg = j
			case 2:
				msg = Have{Blob: blob, Runs: in.runs()}
			case 3:
				msg = Complete{Blob: blob, Size: sizes[in.next(6)]}
			case 4:
				msg = Sized{Blob: blob, Size: sizes[in.next(6)]}
			case 5:
				g := GiveBack{Blob: blob, Reason: Reason(in.next(12)), RetryAfter: time.Duration(in.next(256)) * time.Second}
				if runs := in.runs(); len(runs) > 0 {
					g.Run = runs[0]
				}
				msg = g
			case 6:
				msg = Leave{Blob: blob}
			case 7:
				msg = Report{Blob: blob, Peer: peers[in.next(6)], Reason: Reason(in.next(12))}
			case 8:
				msg = Missing{Blob: blob, Runs: in.runs()}
			case 9:
				msg = Bye{}
			default:
				now += time.Duration(in.next(256)) * 20 * time.Millisecond
				c.Tick(now)
				continue
			}
			c.Step(now, id, msg)
			if err := check(c); err != nil {
				t.Fatalf("after %s says %T%+v: %v", id, msg, msg, err)
			}
		}
	})
}
