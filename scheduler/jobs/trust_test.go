package jobs

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const secret = "Bearer secret-token"

var bringing = Credentials{"r.test/app": secret}

// In clear text whoever joins may be one of the nodes, so a job that brings
// credentials does not begin, and none gets any.
func TestNoCredentialsWithoutTLS(t *testing.T) {
	cfg := DefaultConfig()
	w := worldOf(t, cfg, many(3)...)
	if _, err := w.core.Create(w.now, "1", Spec{Images: []string{"r.test/app:v1"}}, bringing); !errors.Is(err, ErrCredentials) {
		t.Errorf("Create: %v", err)
	}
	w.create(Spec{Images: []string{"r.test/app:v1"}}, nil)
	if err := w.core.Renew(w.now, "1", bringing); !errors.Is(err, ErrCredentials) {
		t.Errorf("Renew: %v", err)
	}
	for _, o := range w.core.Take() {
		if order, ok := o.Msg.(*Order); ok && order.Authorization != "" {
			t.Errorf("%s gets credentials", o.To)
		}
	}
}

// A node that has proved nothing of itself is given no credentials, and is not
// asked what a private image is.
func TestCredentialsForProvenNodesAlone(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Credentials = true
	nodes := many(4)
	nodes[0].Proven = false
	w := worldOf(t, cfg, nodes...)
	w.create(Spec{Images: []string{"r.test/app:v1"}}, bringing)
	asked := map[string]bool{}
	for range 10 {
		w.core.Tick(w.now)
		for _, o := range w.core.Take() {
			order, ok := o.Msg.(*Order)
			if !ok {
				continue
			}
			asked[o.To] = true
			if o.To == "conn-n0" {
				t.Errorf("n0 gets an order of a private job: %+v", order)
			}
			if order.Resolve {
				w.core.Report(w.now, o.To, Report{Job: "1", Resolve: true, State: Done, Resolved: resolution()})
			}
		}
	}
	if len(asked) != 3 {
		t.Errorf("asked were %v", asked)
	}
	job := w.job()
	i := slices.IndexFunc(job.Nodes, func(n Node) bool { return n.Name == "n0" })
	if job.Nodes[i].State != Failed || !strings.Contains(job.Nodes[i].Reason, "no certificate") {
		t.Errorf("n0 is %s: %s", job.Nodes[i].State, job.Nodes[i].Reason)
	}
}

// answering lets nodes answer what they are asked about an image until it is
// decided, and returns it.
func (w *world) answering(say func(name string) *Resolution) Image {
	w.t.Helper()
	for range 20 {
		w.core.Tick(w.now)
		for _, o := range w.core.Take() {
			if order, ok := o.Msg.(*Order); ok && order.Resolve {
				r := Report{Job: "1", Resolve: true, State: Done, Resolved: say(strings.TrimPrefix(o.To, "conn-"))}
				if r.Resolved == nil {
					r.State, r.Reason = Failed, "it does not exist"
				}
				w.core.Report(w.now, o.To, r)
			}
		}
	}
	return w.job().Images[0]
}

func evil() *Resolution {
	return &Resolution{Digest: "sha256:evil", MediaType: "image", Contents: []Content{{Digest: "sha256:evil", Size: 1, Manifest: true}}}
}

// Whichever node lies about a tag, the others decide.
func TestOneLiarDoesNotSayWhatATagIs(t *testing.T) {
	for _, liar := range []string{"n0", "n1", "n2", "n3"} {
		for name, lie := range map[string]*Resolution{"another image": evil(), "none": nil} {
			w := worldOf(t, DefaultConfig(), many(4)...)
			w.create(Spec{Images: []string{"r.test/app:v1"}}, nil)
			image := w.answering(func(node string) *Resolution {
				if node == liar {
					return lie
				}
				return resolution()
			})
			if image.State != Done || image.Digest != "sha256:i" {
				t.Errorf("%s says %s: the image is %s %s (%s)", liar, name, image.State, image.Digest, image.Reason)
			}
		}
	}
}

// What contradicts the digest that the job was begun with, or itself, is not
// believed, however many say it.
func TestResolutionMustFitTheReference(t *testing.T) {
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	crooked := resolution()
	crooked.Digest = digest
	for name, lie := range map[string]*Resolution{"another digest": resolution(), "another manifest than its digest": crooked, "nothing": {Digest: digest}} {
		w := worldOf(t, DefaultConfig(), many(4)...)
		w.create(Spec{Images: []string{"r.test/app:v1@" + digest}}, nil)
		image := w.answering(func(string) *Resolution { return lie })
		if image.State != Failed || image.Digest != digest || image.Name != "r.test/app:v1" {
			t.Errorf("%s: the image is %s %s %s", name, image.Name, image.State, image.Digest)
		}
	}
}

// One node that is all there is is believed, since it decides for itself alone;
// two that do not agree end the job with that.
func TestFewNodes(t *testing.T) {
	w := worldOf(t, DefaultConfig(), many(1)...)
	w.create(Spec{Images: []string{"r.test/app:v1"}}, nil)
	if image := w.answering(func(string) *Resolution { return resolution() }); image.State != Done {
		t.Errorf("of one node: %s: %s", image.State, image.Reason)
	}
	w = worldOf(t, DefaultConfig(), many(2)...)
	w.create(Spec{Images: []string{"r.test/app:v1"}}, nil)
	image := w.answering(func(name string) *Resolution {
		if name == "n1" {
			return evil()
		}
		return resolution()
	})
	if image.State != Failed || !strings.Contains(image.Reason, "do not agree") {
		t.Errorf("of two: %s: %s", image.State, image.Reason)
	}
}

// A second daemon of the same name is kept apart, and neither ends the other.
func TestSameNameTwice(t *testing.T) {
	w := newWorld(t, many(2)...)
	if name := w.core.Connected(w.now, "late", node(1, "z")); name == "n1" {
		t.Error("the second daemon has the first one's name")
	}
	names := func() (list []string) {
		for _, n := range w.core.Nodes() {
			list = append(list, n.Name)
		}
		return list
	}
	if got := names(); !slices.Equal(got, []string{"late", "n0", "n1"}) {
		t.Errorf("nodes %v", got)
	}
	w.create(Spec{Images: []string{"r.test/app:v1"}, Nodes: []string{"n1"}}, nil)
	for _, o := range w.core.Take() {
		if o.To != "conn-n1" {
			t.Errorf("the order for n1 goes to %s", o.To)
		}
	}
	w.core.Gone(w.now, "late")
	if got := names(); !slices.Equal(got, []string{"n0", "n1"}) {
		t.Errorf("after the second one left: %v", got)
	}
	w.core.Connected(w.now, "late", node(1, "z"))
	w.core.Gone(w.now, "conn-n1")
	if got := names(); !slices.Equal(got, []string{"n0", "n1"}) {
		t.Errorf("after the first one left: %v", got)
	}
	w.core.Tick(w.now)
	if outs := w.core.Take(); len(outs) == 0 || outs[len(outs)-1].To != "late" {
		t.Errorf("the job of n1 does not go on with the daemon that has the name now: %+v", outs)
	}
}

func TestSelectorsThatNameNothing(t *testing.T) {
	for _, s := range []string{"zone:z1", "label=x", "node:1", ""} {
		var wrong *SpecError
		if _, err := parseSelectors([]string{s}); !errors.As(err, &wrong) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"n1,n2", "fe80::1", "10.0.0.1,::1", "zone=z:1", "label:a=b:c"} {
		if _, err := parseSelectors([]string{s}); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestTagAndDigest(t *testing.T) {
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for name, want := range map[string]Ref{
		"alpine":                     {"docker.io/library/alpine", "latest", ""},
		"alpine:3":                   {"docker.io/library/alpine", "3", ""},
		"r.test/a@" + digest:         {"r.test/a", "", digest},
		"r.test:5000/a:v1@" + digest: {"r.test:5000/a", "v1", digest},
	} {
		ref, err := ParseImage(name)
		if err != nil || ref != want {
			t.Errorf("%s: %+v, %v", name, ref, err)
		}
	}
}
