package jobs

import (
	"fmt"
	"time"
)

// advance does for a job what is to be done by now.
func (c *Core) advance(now time.Time, j *job) {
	if j.Ended() {
		return
	}
	if now.After(j.Deadline()) {
		c.stop(now, j, Failed, fmt.Sprintf("not done within the %s that the job had", time.Duration(j.Spec.Timeout)*time.Second))
		return
	}
	c.credentials(now, j)
	for k := range j.Images {
		c.resolve(now, j, k)
	}
	active := 0
	for i := range j.Nodes {
		if j.work[i].ordered && !j.work[i].over {
			active++
		}
	}
	for i := range j.Nodes {
		if w := &j.work[i]; !w.over {
			free := w.ordered || j.Spec.Concurrency == 0 || active < j.Spec.Concurrency
			was := w.ordered
			c.advanceNode(now, j, i, free)
			if w.ordered && !was {
				active++
			}
		}
	}
	if j.stir {
		j.stir = false
		j.sum(now)
	}
}

// missing reports whether the job's credentials are gone.
func (j *job) missing() bool { return j.Private && j.creds == nil }

// credentials waits a while for credentials that are missing. What cannot be
// begun without has failed then.
func (c *Core) credentials(now time.Time, j *job) {
	if !j.missing() {
		return
	}
	if j.needs.IsZero() {
		j.needs, j.Needs, j.stir = now, true, true
	}
	if now.Sub(j.needs) < c.cfg.Grace {
		return
	}
	const why = "the credentials were lost with the scheduler that had them: start the job again"
	for k := range j.Images {
		if img := &j.Images[k]; !img.State.Final() {
			img.State, img.Reason = Failed, why
			j.stir = true
		}
	}
	for i := range j.Nodes {
		for k := range j.Nodes[i].Images {
			if j.Nodes[i].Images[k].State == Waiting {
				j.fail(i, k, Failed, why)
			}
		}
	}
}

// resolve has a node find out what an image consists of.
func (c *Core) resolve(now time.Time, j *job, k int) {
	img, r := &j.Images[k], &j.images[k]
	if img.State.Final() || j.missing() {
		return
	}
	if img.State == Running {
		if n := c.names[r.node]; n != nil && now.Sub(r.asked) < c.cfg.Mute {
			return
		}
		c.unresolved(j, k, fmt.Sprintf("node %s was to resolve it and is not heard of", r.node), true)
		if img.State.Final() {
			return
		}
	}
	// Another one with each attempt, and for each image.
	for try := range len(j.Nodes) {
		n := c.names[j.Nodes[(r.tries+len(r.said)+k+try)%len(j.Nodes)].Name]
		if n == nil || !n.facts.Preheats || r.said[n.facts.Name] != nil || j.Private && !n.facts.Proven {
			continue
		}
		r.node, r.asked = n.facts.Name, now
		img.State, j.stir = Running, true
		ref := j.refs[k]
		c.outs = append(c.outs, Out{n.id, &Order{
			Job: j.ID, Image: k, Repository: ref.Repository, Reference: ref.Reference(), Tag: ref.Tag, Authorization: c.credential(j, k, n),
			Resolve: true, Platforms: j.platforms(), Deadline: j.Deadline().Sub(now),
		}})
		return
	}
	// Nobody is left who could confirm or deny what was said.
	if len(r.said) > 0 {
		c.decide(j, k)
	}
}

// credential is what a node is given to ask the origin of an image with:
// nothing if it has not proved who it is.
func (c *Core) credential(j *job, k int, n *conn) string {
	if !n.facts.Proven {
		return ""
	}
	return j.creds.of(j.refs[k].Repository)
}

// platforms are those for which the images are to be resolved.
func (j *job) platforms() []string {
	if len(j.Spec.Platforms) > 0 {
		return j.Spec.Platforms
	}
	var list []string
	seen := map[string]bool{}
	for _, n := range j.Nodes {
		if n.Platform != "" && !seen[n.Platform] && len(list) < 16 {
			seen[n.Platform] = true
			list = append(list, n.Platform)
		}
	}
	return list
}

// platformsFor are those of the job's platforms whose contents a node of that
// platform gets.
func (j *job) platformsFor(platform string) []string {
	if len(j.Spec.Platforms) > 0 {
		return j.Spec.Platforms
	}
	var list []string
	for _, p := range j.platforms() {
		if PlatformMatches(platform, p) {
			list = append(list, p)
		}
	}
	return list
}

// unresolved takes in that an attempt to resolve an image has failed.
func (c *Core) unresolved(j *job, k int, why string, again bool) {
	img, r := &j.Images[k], &j.images[k]
	r.tries++
	j.stir = true
	// That asking again is of no use is one node's word, too.
	limit := min(c.cfg.Agree, len(j.Nodes))
	if again {
		limit = c.cfg.Attempts
	}
	if r.tries < limit {
		img.State = Waiting
		return
	}
	if len(r.said) > 0 {
		c.decide(j, k)
		return
	}
	img.State, img.Reason = Failed, why
}

// parts returns the indexes of an image's contents that a platform needs, none
// before they are known.
func (j *job) parts(k int, platform string) []int {
	if j.Images[k].State != Done {
		return nil
	}
	r := &j.images[k]
	if list, ok := r.parts[platform]; ok {
		return list
	}
	var list []int
	for i, content := range j.Images[k].Contents {
		if j.Spec.needs(content, platform) {
			list = append(list, i)
		}
	}
	if r.parts == nil {
		r.parts = map[string][]int{}
	}
	r.parts[platform] = list
	return list
}

// advanceNode does for one node what is to be done. It may begin only if free
// is set.
func (c *Core) advanceNode(now time.Time, j *job, i int, free bool) {
	w, node := &j.work[i], &j.Nodes[i]
	n := c.names[node.Name]
	if n == nil {
		c.away(now, j, i)
		return
	}
	if j.Private && !n.facts.Proven {
		for k := range node.Images {
			j.fail(i, k, Failed, "the node has no certificate, so it is not given the job's credentials")
		}
	}
	if !n.facts.Preheats {
		for k := range node.Images {
			j.fail(i, k, Failed, fmt.Sprintf("the daemon (version %s) is too old to preheat", n.facts.Version))
		}
	}
	w.lost = time.Time{}
	again := w.ordered && (w.conn != n.id || now.Sub(w.heard) > c.cfg.Silence && now.Sub(w.asked) > c.cfg.Silence)
	if w.ordered && now.Sub(w.heard) > c.cfg.Mute {
		for k := range node.Images {
			j.fail(i, k, Unknown, fmt.Sprintf("the daemon has not answered for %s", c.cfg.Mute))
		}
		w.over = true
		return
	}
	for k := range node.Images {
		img := &node.Images[k]
		switch {
		case img.State.Final():
		case j.Images[k].State == Failed && img.State == Waiting:
			j.fail(i, k, Failed, j.Images[k].Reason)
		case img.State == Waiting:
			if j.Images[k].State == Done && free {
				c.begin(now, j, i, k, n)
			}
		case again:
			c.order(now, j, i, k, n)
		}
	}
	// With nothing under way there is nothing to report, either.
	if !running(node) {
		w.heard = now
	}
	j.overIfFinal(i)
}

func running(n *Node) bool {
	for _, img := range n.Images {
		if img.State == Running || img.State == Unknown {
			return true
		}
	}
	return false
}

// away is advanceNode for a node that is not connected.
func (c *Core) away(now time.Time, j *job, i int) {
	w := &j.work[i]
	if w.lost.IsZero() {
		w.lost = now
	}
	over := now.Sub(w.lost) >= c.cfg.Grace
	for k := range j.Nodes[i].Images {
		img := &j.Nodes[i].Images[k]
		switch {
		case img.State == Running:
			j.fail(i, k, Unknown, "the connection with the node was lost at "+w.lost.UTC().Format(time.RFC3339))
		case img.State == Waiting && over && j.adopted:
			j.fail(i, k, Unknown, notHeardOf) // it may have had its order
		case img.State == Waiting && over:
			j.fail(i, k, Failed, "the node is not connected")
		}
	}
	w.over = w.over || over
	j.overIfFinal(i)
	if over {
		j.stir = true
	}
}

// begin gives a node its order for an image, if the image has anything for it.
func (c *Core) begin(now time.Time, j *job, i, k int, n *conn) {
	image, node := &j.Images[k], &j.Nodes[i]
	if len(j.Spec.Platforms) == 0 && len(image.Platforms) > 0 {
		has := false
		for _, p := range image.Platforms {
			has = has || PlatformMatches(node.Platform, p)
		}
		if !has {
			j.fail(i, k, Failed, "the image has no manifest for "+node.Platform)
			return
		}
	}
	if !j.missing() {
		c.order(now, j, i, k, n)
	}
}

// order sends a node its order for an image, for the first time or again.
func (c *Core) order(now time.Time, j *job, i, k int, n *conn) {
	w, img, image, ref := &j.work[i], &j.Nodes[i].Images[k], &j.Images[k], j.refs[k]
	o := &Order{
		Job: j.ID, Image: k, Repository: ref.Repository, Reference: ref.Reference(), Tag: ref.Tag, Authorization: c.credential(j, k, n),
		MediaType: image.MediaType, Pin: time.Duration(j.Spec.Pin) * time.Second, Deadline: j.Deadline().Sub(now), Known: j.missing(),
	}
	o.Platforms = j.platformsFor(j.Nodes[i].Platform)
	for _, part := range j.parts(k, j.Nodes[i].Platform) {
		content := image.Contents[part]
		content.Platforms = nil
		o.Contents = append(o.Contents, content)
	}
	c.outs = append(c.outs, Out{n.id, o})
	w.conn, w.asked, w.ordered = n.id, now, true
	if img.State == Waiting {
		img.State, img.Reason, j.stir = Running, "", true
	}
}

// fail sets what has become of an image on a node.
func (j *job) fail(i, k int, s State, why string) {
	if img := &j.Nodes[i].Images[k]; !img.State.Final() && (img.State != s || img.Reason != why) {
		img.State, img.Reason, j.stir = s, why, true
	}
}

func (j *job) overIfFinal(i int) {
	for _, img := range j.Nodes[i].Images {
		if !img.State.Final() {
			return
		}
	}
	j.work[i].over = true
}

// stop ends a job with what is not done in a final state.
func (c *Core) stop(now time.Time, j *job, s State, why string) {
	for i := range j.Nodes {
		if n := c.names[j.Nodes[i].Name]; n != nil && j.work[i].ordered && !j.work[i].over {
			c.outs = append(c.outs, Out{n.id, &Stop{Job: j.ID}})
		}
		for k := range j.Nodes[i].Images {
			// Of a node that is away nobody knows whether it was done.
			if st := j.Nodes[i].Images[k].State; st != Unknown {
				j.fail(i, k, s, why)
			}
		}
		j.work[i].over = true
	}
	for k := range j.Images {
		if n := c.names[j.images[k].node]; n != nil && j.Images[k].State == Running {
			c.outs = append(c.outs, Out{n.id, &Stop{Job: j.ID}})
		}
		if !j.Images[k].State.Final() {
			j.Images[k].State, j.Images[k].Reason = s, why
		}
	}
	if s == Canceled {
		j.State, j.Reason = Canceled, why
	}
	j.sum(now)
}

// sum brings the states of nodes and of the job up to date.
func (j *job) sum(now time.Time) {
	counts, over := Counts{Nodes: len(j.Nodes)}, true
	for i := range j.Nodes {
		n := &j.Nodes[i]
		n.sum(j.work[i].over)
		counts.Bytes += n.Bytes
		counts.Size += n.Size
		over = over && j.work[i].over
		switch n.State {
		case Waiting:
			counts.Waiting++
		case Running:
			counts.Running++
		case Done:
			counts.Done++
		case Unknown:
			counts.Unknown++
		default:
			counts.Failed++
		}
	}
	j.Counts, j.Updated = counts, now
	j.Revision++
	if !over {
		return
	}
	j.ended, j.creds, j.Needs = now, nil, false
	for k := range j.Images {
		if img := &j.Images[k]; !img.State.Final() {
			img.State, img.Reason = Failed, "no node was left to resolve it"
		}
	}
	switch {
	case j.State == Canceled:
	case counts.Done == counts.Nodes:
		j.State = Done
	default:
		j.State = Failed
		j.Reason = fmt.Sprintf("%d of %d nodes are not done", counts.Nodes-counts.Done, counts.Nodes)
		for k := range j.Images {
			if img := &j.Images[k]; img.State == Failed {
				j.Reason = fmt.Sprintf("%s: %s", img.Name, img.Reason)
			}
		}
	}
}

// sum brings the state of a node up to date.
func (n *Node) sum(over bool) {
	n.Bytes, n.Size, n.Reason = 0, 0, ""
	count := map[State]int{}
	for _, img := range n.Images {
		n.Bytes += img.Bytes
		n.Size += img.Size
		count[img.State]++
		if n.Reason == "" || img.State == Failed {
			if img.State == Failed || img.State == Unknown || img.State == Canceled {
				n.Reason = img.Reason
			}
		}
	}
	switch {
	case count[Done] == len(n.Images):
		n.State = Done
	case !over && count[Unknown] > 0:
		n.State = Unknown
	case !over && (count[Running] > 0 || count[Done]+count[Failed] > 0):
		n.State = Running
	case !over:
		n.State = Waiting
	case count[Failed] > 0:
		n.State = Failed
	case count[Unknown] > 0:
		n.State = Unknown
	default:
		n.State = Canceled
	}
}
