package wire

import (
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

var (
	digests = rapid.Custom(func(t *rapid.T) scheduler.Digest {
		algorithm := rapid.SampledFrom([]string{"sha256", "sha384", "sha512"}).Draw(t, "algorithm")
		n := hexDigits[algorithm] / 2
		return scheduler.Digest(algorithm + ":" + hex.EncodeToString(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "sum")))
	})
	peerNames = rapid.StringMatching(`[!-~]{1,253}`)
	ids       = rapid.Map(peerNames, func(s string) scheduler.PeerID { return scheduler.PeerID(s) })
	addrs     = rapid.SampledFrom([]string{"10.0.0.1:4401", "[fd00::1]:1", "node-7.example:65535"})
	zones     = rapid.StringMatching(`[!-~]{0,253}`)
	sizes     = rapid.Int64Range(1, MaxSize)
	waits     = rapid.Map(rapid.IntRange(0, int(maxDuration/time.Millisecond)), func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond })
	reasons   = rapid.Custom(func(t *rapid.T) scheduler.Reason { return scheduler.Reason(rapid.IntRange(0, 10).Draw(t, "reason")) })
	oneRun    = rapid.Custom(func(t *rapid.T) scheduler.Run {
		first := rapid.IntRange(0, MaxPieces-1).Draw(t, "first")
		return scheduler.Run{First: first, Count: rapid.IntRange(1, MaxPieces-first).Draw(t, "count")}
	})
	neighbours = rapid.Custom(func(t *rapid.T) scheduler.Neighbour {
		return scheduler.Neighbour{Peer: ids.Draw(t, "peer"), Addr: addrs.Draw(t, "addr"), Zone: zones.Draw(t, "zone"), Reserved: rapid.Bool().Draw(t, "reserved")}
	})
)

// some draws now and then more than goes into one message.
func some[T any](t *rapid.T, gen *rapid.Generator[T], most int, label string) []T {
	n := rapid.SampledFrom([]int{0, 0, 1, 2, 3, most, most + 1, 2*most + 3}).Draw(t, label+" n")
	if n <= 3 {
		return nilIfNone(rapid.SliceOfN(gen, n, n).Draw(t, label))
	}
	return slices.Repeat([]T{gen.Draw(t, label)}, n)
}

func nilIfNone[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}

func drawIn(t *rapid.T) scheduler.In {
	blob := digests.Draw(t, "blob")
	switch rapid.IntRange(0, 8).Draw(t, "kind") {
	case 0:
		holding := rapid.Custom(func(t *rapid.T) scheduler.Holding {
			return scheduler.Holding{Blob: digests.Draw(t, "held"), Size: sizes.Draw(t, "size")}
		})
		return scheduler.Hello{Addr: addrs.Draw(t, "addr"), Zone: zones.Draw(t, "zone"), Inventory: some(t, holding, maxHoldings, "inventory")}
	case 1:
		return scheduler.Join{
			Blob: blob, Size: rapid.Int64Range(0, MaxSize).Draw(t, "size"), Have: nilIfNone(rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "have")),
			Origin: rapid.Bool().Draw(t, "origin"), Source: rapid.StringMatching(`[!-~]{0,512}`).Draw(t, "source"),
			Again: rapid.Bool().Draw(t, "again"), Bringing: nilIfNone(rapid.SliceOfN(oneRun, 0, 8).Draw(t, "bringing")),
		}
	case 2:
		return scheduler.Have{Blob: blob, Runs: some(t, oneRun, maxRuns, "runs")}
	case 3:
		return scheduler.Complete{Blob: blob, Size: sizes.Draw(t, "size")}
	case 4:
		return scheduler.Sized{Blob: blob, Size: sizes.Draw(t, "size")}
	case 5:
		run := rapid.OneOf(oneRun, rapid.Just(scheduler.Run{})).Draw(t, "run")
		return scheduler.GiveBack{Blob: blob, Run: run, Reason: reasons.Draw(t, "reason"), RetryAfter: waits.Draw(t, "after")}
	case 6:
		return scheduler.Leave{Blob: blob}
	case 7:
		return scheduler.Report{Blob: blob, Peer: ids.Draw(t, "peer"), Reason: reasons.Draw(t, "reason")}
	default:
		return scheduler.Missing{Blob: blob, Runs: nilIfNone(rapid.SliceOfN(oneRun, 0, 64).Draw(t, "runs"))}
	}
}

func drawOut(t *rapid.T) any {
	blob := digests.Draw(t, "blob")
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0:
		return &scheduler.Swarm{
			Blob: blob, Size: rapid.Int64Range(0, MaxSize).Draw(t, "size"),
			Add: some(t, neighbours, maxNeighbours, "add"), Remove: some(t, ids, maxNeighbours, "remove"),
		}
	case 1:
		a := &scheduler.Assign{Blob: blob, Run: oneRun.Draw(t, "run")}
		if rapid.Bool().Draw(t, "peer") {
			a.From = neighbours.Draw(t, "from")
		}
		return a
	case 2:
		return &scheduler.Revoke{Blob: blob, Run: oneRun.Draw(t, "run")}
	case 3:
		return &scheduler.Ask{Blob: blob, Runs: some(t, oneRun, maxRuns, "runs")}
	case 4:
		return &scheduler.Probe{Blob: blob}
	case 5:
		return &scheduler.Hold{Source: rapid.StringMatching(`[!-~]{0,512}`).Draw(t, "source"), For: waits.Draw(t, "for")}
	case 6:
		return &scheduler.Ban{Peer: ids.Draw(t, "peer"), For: waits.Draw(t, "for")}
	default:
		return &scheduler.Refused{Blob: blob, Reason: reasons.Draw(t, "reason")}
	}
}

// over sends a message through its bytes, within the bound of a batch.
func over[M proto.Message](t *rapid.T, from, to M) {
	b, err := proto.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > MaxMessage/2 {
		t.Fatalf("one message is %d bytes", len(b))
	}
	if err := proto.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}

func TestInRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := drawIn(t)
		list, err := appendIn(nil, "peer", sent)
		if err != nil {
			t.Fatal(err)
		}
		var got scheduler.In
		for i, in := range list {
			var copied wirepb.In
			over(t, in, &copied)
			part, err := decodeIn(&copied)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				got = part
				continue
			}
			// Put together what was cut.
			switch whole := got.(type) {
			case scheduler.Hello:
				whole.Inventory = append(whole.Inventory, scheduler.Holding(part.(scheduler.Complete)))
				got = whole
			case scheduler.Have:
				whole.Runs = append(whole.Runs, part.(scheduler.Have).Runs...)
				got = whole
			default:
				t.Fatalf("%T was cut", got)
			}
		}
		if !reflect.DeepEqual(got, sent) {
			t.Fatalf("sent %+v\n got %+v", sent, got)
		}
	})
}

func TestOutRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := drawOut(t)
		list, err := appendOut(nil, sent)
		if err != nil {
			t.Fatal(err)
		}
		var got any
		for i, out := range list {
			var copied wirepb.Out
			over(t, out, &copied)
			part, err := decodeOut(&copied)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				got = part
				continue
			}
			switch whole := got.(type) {
			case *scheduler.Swarm:
				more := part.(*scheduler.Swarm)
				if len(whole.Add) > 0 && len(more.Remove) > 0 {
					t.Fatal("a neighbour is removed after others were added")
				}
				whole.Add = append(whole.Add, more.Add...)
				whole.Remove = append(whole.Remove, more.Remove...)
			case *scheduler.Ask:
				whole.Runs = append(whole.Runs, part.(*scheduler.Ask).Runs...)
			default:
				t.Fatalf("%T was cut", got)
			}
		}
		if !reflect.DeepEqual(got, sent) {
			t.Fatalf("sent %+v\n got %+v", sent, got)
		}
	})
}

// What is out of bounds is refused by the name of its field.
func TestClaims(t *testing.T) {
	blob := "sha256:" + strings.Repeat("0", 64)
	join := func(change func(*wirepb.Join)) *wirepb.In {
		j := &wirepb.Join{Blob: blob, Size: 1}
		change(j)
		return &wirepb.In{Msg: &wirepb.In_Join{Join: j}}
	}
	hello := func(change func(*wirepb.Hello)) *wirepb.In {
		h := &wirepb.Hello{Version: Version, Peer: "n", Addr: "10.0.0.1:1"}
		change(h)
		return &wirepb.In{Msg: &wirepb.In_Hello{Hello: h}}
	}
	for want, in := range map[string]*wirepb.In{
		"join.blob":       join(func(j *wirepb.Join) { j.Blob = "sha256:" + strings.Repeat("A", 64) }),
		"join.size":       join(func(j *wirepb.Join) { j.Size = -1 }),
		"join.have":       join(func(j *wirepb.Join) { j.Have = make([]byte, MaxPieces/8+1) }),
		"join.source":     join(func(j *wirepb.Join) { j.Source = "a\nb" }),
		"join.bringing":   join(func(j *wirepb.Join) { j.Bringing = []*wirepb.Run{{First: 1 << 31, Count: 1 << 31}} }),
		"hello.version":   hello(func(h *wirepb.Hello) { h.Version = 0 }),
		"hello.peer":      hello(func(h *wirepb.Hello) { h.Peer = "" }),
		"hello.addr":      hello(func(h *wirepb.Hello) { h.Addr = "10.0.0.1:0" }),
		"hello.zone":      hello(func(h *wirepb.Hello) { h.Zone = strings.Repeat("z", 254) }),
		"hello.inventory": hello(func(h *wirepb.Hello) { h.Inventory = make([]*wirepb.Holding, maxHoldings+1) }),
		"hello.blob":      hello(func(h *wirepb.Hello) { h.Inventory = []*wirepb.Holding{nil} }),
		"have.runs":       {Msg: &wirepb.In_Have{Have: &wirepb.Have{Blob: blob, Runs: make([]*wirepb.Run, maxRuns+1)}}},
		"complete.size":   {Msg: &wirepb.In_Complete{Complete: &wirepb.Complete{Blob: blob}}},
		"give_back.retry_after_ms": {Msg: &wirepb.In_GiveBack{GiveBack: &wirepb.GiveBack{
			Blob: blob, RetryAfterMs: 1 << 63,
		}}},
		"leave.blob": {Msg: &wirepb.In_Leave{}},
	} {
		msg, err := decodeIn(in)
		var field *FieldError
		if !errors.As(err, &field) || field.Field != want || msg != nil {
			t.Errorf("%s: message %v, error %v", want, msg, err)
		}
	}
}

// What a newer version says beside what is known is passed over.
func TestUnknownIsPassedOver(t *testing.T) {
	unknown := protowire.AppendTag(nil, 99, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, []byte("new"))
	var in wirepb.In
	var out wirepb.Out
	if err := errors.Join(proto.Unmarshal(unknown, &in), proto.Unmarshal(unknown, &out)); err != nil {
		t.Fatal(err)
	}
	if msg, err := decodeIn(&in); msg != nil || err != nil {
		t.Errorf("an unknown message is %v, %v", msg, err)
	}
	if msg, err := decodeOut(&out); msg != nil || err != nil {
		t.Errorf("an unknown message is %v, %v", msg, err)
	}
	report := &wirepb.In{Msg: &wirepb.In_Report{Report: &wirepb.Report{Blob: "sha256:" + strings.Repeat("0", 64), Peer: "n", Reason: 77}}}
	if msg, err := decodeIn(report); err != nil || msg.(scheduler.Report).Reason != 0 {
		t.Errorf("an unknown reason is %v, %v", msg, err)
	}
}

func FuzzDecodeIn(f *testing.F) {
	for seed := range 64 {
		list, _ := appendIn(nil, "peer", rapid.Custom(drawIn).Example(seed))
		if b, err := proto.Marshal(&wirepb.ToScheduler{Messages: list[:1]}); err == nil && len(b) < 4096 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var batch wirepb.ToScheduler
		if len(b) > MaxMessage || proto.Unmarshal(b, &batch) != nil {
			return
		}
		msgs, err := decodeIns(&batch)
		for _, msg := range msgs {
			// What was let in is in bounds: it goes out the same way.
			list, err := appendIn(nil, "peer", msg)
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v: %d messages, %v", msg, len(list), err)
			}
			again, err := decodeIn(list[0])
			if err != nil || !reflect.DeepEqual(again, msg) {
				t.Fatalf("%+v became %+v, %v", msg, again, err)
			}
		}
		var field *FieldError
		if err != nil && !errors.As(err, &field) {
			t.Fatalf("the error %v names no field", err)
		}
	})
}

func FuzzDecodeOut(f *testing.F) {
	for seed := range 64 {
		list, _ := appendOut(nil, rapid.Custom(drawOut).Example(seed))
		if b, err := proto.Marshal(&wirepb.FromScheduler{Messages: list[:1]}); err == nil && len(b) < 4096 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var batch wirepb.FromScheduler
		if len(b) > MaxMessage || proto.Unmarshal(b, &batch) != nil {
			return
		}
		msgs, err := decodeBatch(&batch)
		for _, msg := range msgs {
			list, err := appendOut(nil, msg)
			if err != nil || len(list) != 1 {
				t.Fatalf("%+v: %d messages, %v", msg, len(list), err)
			}
			again, err := decodeOut(list[0])
			if err != nil || !reflect.DeepEqual(again, msg) {
				t.Fatalf("%+v became %+v, %v", msg, again, err)
			}
		}
		var field *FieldError
		var bye *GoodbyeError
		if err != nil && !errors.As(err, &field) && !errors.As(err, &bye) {
			t.Fatalf("the error %v names no field", err)
		}
	})
}

// A detail that is too long is not cut within a rune: it could not be sent.
func TestLongDetail(t *testing.T) {
	_, detail := reason(errors.New("x" + strings.Repeat("é", maxDetail)))
	if !utf8.ValidString(detail) || len(detail) < maxDetail-1 || len(detail) > maxDetail {
		t.Errorf("%d bytes, valid: %v", len(detail), utf8.ValidString(detail))
	}
}
