package wire

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

const (
	maxJobID     = 64
	maxPlatforms = 16
	maxPlatform  = 64
	maxLabels    = 64
	maxReasons   = 16 // of the layers of one report
	maxMediaType = 256
	maxTag       = 128
)

var preheatStates = []jobs.State{"", jobs.Waiting, jobs.Running, jobs.Done, jobs.Failed, jobs.Canceled, jobs.Unknown}

func encodeState(s jobs.State) wirepb.PreheatState {
	return wirepb.PreheatState(max(slices.Index(preheatStates, s), 0))
}

// state passes those that a newer version may have as unknown.
func (c *claims) state(s wirepb.PreheatState) jobs.State {
	if s < 0 || int(s) >= len(preheatStates) {
		return jobs.Unknown
	}
	return preheatStates[s]
}

func encodeNode(n scheduler.Node) *wirepb.Node {
	if n.Name == "" {
		return nil
	}
	return &wirepb.Node{Name: n.Name, Platform: n.Platform, Version: n.Version, Labels: n.Labels, Preheats: n.Preheats}
}

func (c *claims) node(n *wirepb.Node) scheduler.Node {
	if n == nil {
		return scheduler.Node{}
	}
	if c.atMost("node.labels", len(n.GetLabels()), maxLabels) {
		for key, value := range n.GetLabels() {
			c.text("node.labels", key, 1, maxName)
			c.text("node.labels", value, 0, maxName)
		}
	}
	return scheduler.Node{
		Name: c.text("node.name", n.GetName(), 1, maxName), Platform: c.text("node.platform", n.GetPlatform(), 0, maxPlatform),
		Version: c.text("node.version", n.GetVersion(), 0, maxName), Labels: n.GetLabels(), Preheats: n.GetPreheats(),
	}
}

// line takes text for people: what does not fit is made fit.
func line(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// header takes an Authorization header: visible ASCII and blanks.
func (c *claims) header(field, s string) string {
	if len(s) > jobs.MaxAuthorization || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		// The value is nobody's to see.
		c.fail(field, "%d bytes that cannot be a header", len(s))
		return ""
	}
	return s
}

func (c *claims) platforms(field string, list []string) []string {
	if c.atMost(field, len(list), maxPlatforms) {
		for _, p := range list {
			c.text(field, p, 1, maxPlatform)
		}
	}
	return list
}

func encodeContents(list []jobs.Content) []*wirepb.Content {
	out := make([]*wirepb.Content, len(list))
	for i, one := range list {
		out[i] = &wirepb.Content{Digest: one.Digest, Size: one.Size, Manifest: one.Manifest, Platforms: one.Platforms}
	}
	return out
}

func (c *claims) contents(field string, list []*wirepb.Content) []jobs.Content {
	if !c.atMost(field, len(list), jobs.MaxContents) {
		return nil
	}
	out := make([]jobs.Content, len(list))
	for i, one := range list {
		out[i] = jobs.Content{
			Digest: string(c.blob(one.GetDigest())), Size: c.size(one.GetSize(), 0),
			Manifest: one.GetManifest(), Platforms: c.platforms(field, one.GetPlatforms()),
		}
	}
	return out
}

func encodePreheat(o *jobs.Order) *wirepb.Preheat {
	return &wirepb.Preheat{
		Job: o.Job, Image: index(o.Image), Repository: o.Repository, Reference: o.Reference, Authorization: o.Authorization,
		Resolve: o.Resolve, Platforms: o.Platforms, Contents: encodeContents(o.Contents), MediaType: o.MediaType,
		PinMs: uint64(max(o.Pin.Milliseconds(), 0)), DeadlineMs: millis(o.Deadline), Known: o.Known, Tag: o.Tag,
	}
}

func (c *claims) preheat(m *wirepb.Preheat) *jobs.Order {
	o := &jobs.Order{
		Job: c.text("job", m.GetJob(), 1, maxJobID), Repository: c.text("repository", m.GetRepository(), 3, maxSource),
		Reference: c.text("reference", m.GetReference(), 1, maxSource), Authorization: c.header("authorization", m.GetAuthorization()),
		Resolve: m.GetResolve(), Platforms: c.platforms("platforms", m.GetPlatforms()), Contents: c.contents("contents", m.GetContents()),
		Tag: c.text("tag", m.GetTag(), 0, maxTag), MediaType: c.text("media_type", m.GetMediaType(), 0, maxMediaType), Deadline: c.duration("deadline_ms", m.GetDeadlineMs()), Known: m.GetKnown(),
	}
	if c.atMost("image", int(m.GetImage()), jobs.MaxImages-1) {
		o.Image = int(m.GetImage())
	}
	if m.GetPinMs() > uint64(jobs.MaxPin.Milliseconds()) {
		c.fail("pin_ms", "%d, want at most %d", m.GetPinMs(), jobs.MaxPin.Milliseconds())
	} else {
		o.Pin = time.Duration(m.GetPinMs()) * time.Millisecond
	}
	return o
}

// encodePreheated returns a report as one message. One that is too long for
// that says so.
func encodePreheated(r jobs.Report) *wirepb.Preheated {
	m := &wirepb.Preheated{
		Job: r.Job, Image: index(r.Image), Resolve: r.Resolve, State: encodeState(r.State), Reason: line(r.Reason, jobs.MaxReason), Again: r.Again,
	}
	if res := r.Resolved; res != nil {
		m.Resolved = &wirepb.Resolution{Digest: res.Digest, MediaType: res.MediaType, Contents: encodeContents(res.Contents), Platforms: res.Platforms}
	}
	reasons := 0
	for _, l := range r.Layers {
		layer := &wirepb.PreheatLayer{State: encodeState(l.State), Bytes: l.Bytes}
		if l.Reason != "" && reasons < maxReasons {
			layer.Reason = line(l.Reason, jobs.MaxReason)
			reasons++
		}
		m.Layers = append(m.Layers, layer)
	}
	if proto.Size(m) > MaxMessage-4096 {
		return &wirepb.Preheated{Job: r.Job, Image: m.Image, Resolve: r.Resolve, State: wirepb.PreheatState_PREHEAT_STATE_FAILED, Reason: "the image consists of too much"}
	}
	return m
}

func (c *claims) preheated(m *wirepb.Preheated) jobs.Report {
	r := jobs.Report{
		Job: c.text("job", m.GetJob(), 1, maxJobID), Resolve: m.GetResolve(), State: c.state(m.GetState()),
		Reason: line(m.GetReason(), jobs.MaxReason), Again: m.GetAgain(),
	}
	if c.atMost("image", int(m.GetImage()), jobs.MaxImages-1) {
		r.Image = int(m.GetImage())
	}
	if res := m.GetResolved(); res != nil {
		r.Resolved = &jobs.Resolution{
			Digest: string(c.blob(res.GetDigest())), MediaType: c.text("resolved.media_type", res.GetMediaType(), 0, maxMediaType),
			Contents: c.contents("resolved.contents", res.GetContents()), Platforms: c.platforms("resolved.platforms", res.GetPlatforms()),
		}
	}
	if c.atMost("layers", len(m.GetLayers()), jobs.MaxContents) && len(m.GetLayers()) > 0 {
		r.Layers = make([]jobs.Layer, len(m.GetLayers()))
		for i, l := range m.GetLayers() {
			r.Layers[i] = jobs.Layer{State: c.state(l.GetState()), Bytes: c.size(l.GetBytes(), 0), Reason: line(l.GetReason(), jobs.MaxReason)}
		}
	}
	return r
}

func encodeVitals(v jobs.Vitals) *wirepb.Vitals {
	return &wirepb.Vitals{FromOrigin: v.FromOrigin, FromPeers: v.FromPeers, ToPeers: v.ToPeers, Served: v.Served, Used: v.Used, Limit: v.Limit, Flights: v.Flights}
}

// vitals are totals, which may well be larger than any blob.
func vitals(m *wirepb.Vitals) jobs.Vitals {
	return jobs.Vitals{
		FromOrigin: max(m.GetFromOrigin(), 0), FromPeers: max(m.GetFromPeers(), 0), ToPeers: max(m.GetToPeers(), 0), Served: max(m.GetServed(), 0),
		Used: max(m.GetUsed(), 0), Limit: max(m.GetLimit(), 0), Flights: max(m.GetFlights(), 0),
	}
}
