package jobs

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Report takes in what a daemon says of an order. What does not fit the job
// is ignored.
func (c *Core) Report(now time.Time, id string, r Report) {
	n, j := c.conns[id], c.jobs[r.Job]
	if n == nil || j == nil || j.Ended() || r.Image < 0 || r.Image >= len(j.Images) {
		return
	}
	r.Reason = j.clean(r.Reason)
	if r.Resolve {
		c.resolved(j, n, r)
		return
	}
	i, ok := j.index[n.facts.Name]
	if !ok || c.names[n.facts.Name] != n {
		return
	}
	w, img := &j.work[i], &j.Nodes[i].Images[r.Image]
	// What a node does for a scheduler before this one says nothing until it
	// is known again what the image consists of. It is asked then.
	if img.State.Final() || w.over || j.Images[r.Image].State != Done {
		return
	}
	w.heard, w.conn, w.ordered = now, n.id, true
	j.stir = true
	switch r.State {
	case Unknown: // it does not have the order
		if j.missing() {
			img.State, img.Reason = Waiting, ""
		} else {
			img.State = Waiting
			c.order(now, j, i, r.Image, n)
		}
		return
	case Waiting, Running, Done, Failed, Canceled:
	default:
		return
	}
	all := c.layers(j, i, r)
	switch {
	case r.State == Done && all:
		img.State, img.Reason, img.Layers, img.Bytes = Done, "", nil, img.Size
	case r.State == Failed || r.State == Canceled:
		img.State, img.Reason = Failed, r.Reason
		if img.Reason == "" {
			img.Reason = "the daemon gave no reason"
		}
	default:
		img.State, img.Reason = Running, r.Reason
	}
	j.overIfFinal(i)
}

// layers takes over how the contents stand and reports whether all are done.
// A report that is not about these contents leaves things as they are.
func (c *Core) layers(j *job, i int, r Report) (all bool) {
	img := &j.Nodes[i].Images[r.Image]
	parts := j.parts(r.Image, j.Nodes[i].Platform)
	if len(r.Layers) != len(parts) || len(parts) == 0 {
		return false
	}
	all = true
	img.Bytes = 0
	for p := range r.Layers {
		l := &r.Layers[p]
		size := j.Images[r.Image].Contents[parts[p]].Size
		l.Bytes = min(max(l.Bytes, 0), size)
		if l.State == Done {
			l.Bytes = size
		}
		l.Reason = j.clean(l.Reason)
		img.Bytes += l.Bytes
		all = all && l.State == Done
	}
	img.Layers = r.Layers
	return all
}

// resolved takes in what a node found out about an image.
func (c *Core) resolved(j *job, n *conn, r Report) {
	img := &j.Images[r.Image]
	if img.State != Running || j.images[r.Image].node != n.facts.Name {
		return
	}
	switch {
	case r.State == Done && r.Resolved != nil:
		if why := j.refs[r.Image].doubt(r.Resolved); why != "" {
			c.unresolved(j, r.Image, "node "+n.facts.Name+" says of it "+why, true)
			return
		}
		c.said(j, n, r.Image, r.Resolved)
	case r.State == Failed:
		c.unresolved(j, r.Image, r.Reason, r.Again)
	case r.State == Unknown, r.State == Done:
		c.unresolved(j, r.Image, "node "+n.facts.Name+" could not say what it consists of", true)
	}
}

// doubt is what shows that a Resolution cannot be that of an image; empty if
// nothing does.
func (r Ref) doubt(res *Resolution) string {
	switch {
	case len(res.Contents) == 0 || len(res.Contents) > MaxContents:
		return fmt.Sprintf("that it consists of %d contents", len(res.Contents))
	case res.Contents[0].Digest != res.Digest || !res.Contents[0].Manifest:
		return "that its manifest is another content than its digest"
	case r.Digest != "" && res.Digest != r.Digest:
		return fmt.Sprintf("that it is %.80s", res.Digest)
	}
	return ""
}

// said takes in what a node says that an image is. One node's word is not
// enough where another can be asked: it counts when a second one says the same.
// It is for the job's plan alone, in any case; every node finds out for itself
// what the image is and takes no order for another.
func (c *Core) said(j *job, n *conn, k int, res *Resolution) {
	r := &j.images[k]
	if r.said == nil {
		r.said = map[string]*Resolution{}
	}
	r.said[n.facts.Name] = res
	j.stir = true
	if agreed(r.said, res) >= c.cfg.Agree || len(r.said) >= c.cfg.Agree+c.cfg.Attempts {
		c.decide(j, k)
		return
	}
	j.Images[k].State = Waiting // another one is asked
}

// agreed counts those who say the same.
func agreed(said map[string]*Resolution, res *Resolution) (count int) {
	for _, other := range said {
		if res.equal(other) {
			count++
		}
	}
	return count
}

func (r *Resolution) equal(o *Resolution) bool {
	return r.Digest == o.Digest && r.MediaType == o.MediaType && slices.Equal(r.Platforms, o.Platforms) &&
		slices.EqualFunc(r.Contents, o.Contents, func(a, b Content) bool {
			return a.Digest == b.Digest && a.Size == b.Size && a.Manifest == b.Manifest && slices.Equal(a.Platforms, b.Platforms)
		})
}

// decide takes what most nodes said of an image.
func (c *Core) decide(j *job, k int) {
	img, r := &j.Images[k], &j.images[k]
	j.stir = true
	var names, best []string
	for name := range r.said {
		names = append(names, name)
	}
	slices.Sort(names)
	tie := false
	for _, name := range names {
		var same []string
		for _, other := range names {
			if r.said[name].equal(r.said[other]) {
				same = append(same, other)
			}
		}
		switch {
		case len(same) > len(best):
			best, tie = same, false
		case len(same) == len(best) && same[0] != best[0]:
			tie = true
		}
	}
	if tie {
		img.State = Failed
		img.Reason = fmt.Sprintf("the nodes do not agree what it is: %s says %.80s, %s says %.80s", names[0], r.said[names[0]].Digest, names[1], r.said[names[1]].Digest)
		return
	}
	res := r.said[best[0]]
	r.said = nil
	img.State, img.Reason = Done, ""
	img.Digest, img.MediaType = res.Digest, res.MediaType
	img.Contents, img.Platforms = res.Contents, res.Platforms
	for i := range j.Nodes {
		j.measure(i, k)
	}
}

// measure sums up what an image has for a node.
func (j *job) measure(i, k int) {
	size := int64(0)
	for _, p := range j.parts(k, j.Nodes[i].Platform) {
		size += j.Images[k].Contents[p].Size
	}
	j.Nodes[i].Images[k].Size = size
}

// clean makes a reason from the network fit to be shown: one line, bounded,
// and without the credentials of the job, whoever repeated them.
func (j *job) clean(s string) string {
	for _, auth := range j.creds {
		if _, secret, ok := strings.Cut(auth, " "); ok && len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > MaxReason {
		s = strings.ToValidUTF8(s[:MaxReason], "") + "…"
	}
	return s
}
