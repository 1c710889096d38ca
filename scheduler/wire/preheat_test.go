package wire

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

func drawContents(t *rapid.T) []jobs.Content {
	one := rapid.Custom(func(t *rapid.T) jobs.Content {
		return jobs.Content{
			Digest: string(digests.Draw(t, "digest")), Size: rapid.Int64Range(0, MaxSize).Draw(t, "size"), Manifest: rapid.Bool().Draw(t, "manifest"),
			Platforms: nilIfNone(rapid.SliceOfN(rapid.StringMatching(`[a-z0-9/]{1,20}`), 0, 3).Draw(t, "platforms")),
		}
	})
	return rapid.SliceOfN(one, 1, 20).Draw(t, "contents")
}

var states = rapid.SampledFrom([]jobs.State{jobs.Waiting, jobs.Running, jobs.Done, jobs.Failed, jobs.Canceled, jobs.Unknown})

func TestPreheatRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order := &jobs.Order{
			Job: "17", Image: rapid.IntRange(0, jobs.MaxImages-1).Draw(t, "image"), Repository: "a.b/c", Reference: "v1", Authorization: "Bearer x",
			Resolve: rapid.Bool().Draw(t, "resolve"), Platforms: []string{"linux/amd64"}, Contents: drawContents(t), MediaType: "m/t",
			Pin: time.Duration(rapid.IntRange(0, 1<<30).Draw(t, "pin")) * time.Millisecond, Deadline: waits.Draw(t, "deadline"), Known: rapid.Bool().Draw(t, "known"),
		}
		for _, sent := range []any{order, &jobs.Stop{Job: "17"}} {
			list, err := appendOut(nil, sent)
			if err != nil || len(list) != 1 {
				t.Fatal(err)
			}
			got := &wirepb.Out{}
			over(t, list[0], got)
			if back, err := decodeOut(got); err != nil || !reflect.DeepEqual(back, sent) {
				t.Fatalf("sent %+v, got %+v, %v", sent, back, err)
			}
		}
		layer := rapid.Custom(func(t *rapid.T) jobs.Layer {
			return jobs.Layer{State: states.Draw(t, "state"), Bytes: rapid.Int64Range(0, MaxSize).Draw(t, "bytes")}
		})
		for _, sent := range []scheduler.In{
			jobs.Report{
				Job: "17", Image: 3, Resolve: true, State: states.Draw(t, "state"), Reason: "why not", Again: true,
				Resolved: &jobs.Resolution{Digest: string(digests.Draw(t, "digest")), MediaType: "m/t", Contents: drawContents(t), Platforms: []string{"linux/arm"}},
				Layers:   nilIfNone(rapid.SliceOfN(layer, 0, 20).Draw(t, "layers")),
			},
			jobs.Vitals{FromOrigin: 1 << 60, FromPeers: 2, ToPeers: 3, Served: 4, Used: 5, Limit: 6, Flights: 7},
			scheduler.Hello{Addr: "a:1", Node: scheduler.Node{Name: "n", Platform: "linux/amd64", Version: "v1", Labels: map[string]string{"a": "b"}, Preheats: true}},
		} {
			list, err := appendIn(nil, "peer", sent)
			if err != nil || len(list) != 1 {
				t.Fatal(err)
			}
			got := &wirepb.In{}
			over(t, list[0], got)
			if back, err := decodeIn(got); err != nil || !reflect.DeepEqual(back, sent) {
				t.Fatalf("sent %+v, got %+v, %v", sent, back, err)
			}
		}
	})
}

// What is out of bounds is refused, and a credential is in no error.
func TestPreheatBounds(t *testing.T) {
	good := func() *wirepb.Preheat {
		return encodePreheat(&jobs.Order{Job: "1", Repository: "a.b/c", Reference: "v1"})
	}
	for field, change := range map[string]func(*wirepb.Preheat){
		"job":           func(m *wirepb.Preheat) { m.Job = "" },
		"image":         func(m *wirepb.Preheat) { m.Image = jobs.MaxImages },
		"authorization": func(m *wirepb.Preheat) { m.Authorization = "Bearer hunter2\r\nX: y" },
		"blob":          func(m *wirepb.Preheat) { m.Contents = []*wirepb.Content{{Digest: "x"}} },
		"contents":      func(m *wirepb.Preheat) { m.Contents = make([]*wirepb.Content, jobs.MaxContents+1) },
		"pin_ms":        func(m *wirepb.Preheat) { m.PinMs = 1 << 60 },
	} {
		m := good()
		change(m)
		_, err := decodeOut(&wirepb.Out{Msg: &wirepb.Out_Preheat{Preheat: m}})
		if err == nil || !strings.Contains(err.Error(), "preheat."+field) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := decodeOut(&wirepb.Out{Msg: &wirepb.Out_Preheat{Preheat: good()}}); err != nil {
		t.Error(err)
	}
}

// A report is always short enough for one message, whatever is in it.
func TestReportFits(t *testing.T) {
	r := jobs.Report{Job: "1", State: jobs.Failed, Layers: make([]jobs.Layer, jobs.MaxContents)}
	for i := range r.Layers {
		r.Layers[i] = jobs.Layer{State: jobs.Failed, Bytes: MaxSize, Reason: strings.Repeat("long ", 200)}
	}
	if n := proto.Size(encodePreheated(r)); n > MaxMessage {
		t.Errorf("%d bytes", n)
	}
	res := &jobs.Resolution{Contents: make([]jobs.Content, jobs.MaxContents)}
	for i := range res.Contents {
		for range 16 {
			res.Contents[i].Platforms = append(res.Contents[i].Platforms, strings.Repeat("x", 64))
		}
	}
	m := encodePreheated(jobs.Report{Job: "1", Resolve: true, State: jobs.Done, Resolved: res})
	if proto.Size(m) > MaxMessage || m.State != wirepb.PreheatState_PREHEAT_STATE_FAILED {
		t.Errorf("%d bytes, %v", proto.Size(m), m.State)
	}
}
