package scheduler

import (
	"slices"
	"time"
)

// source is what bounds requests to an origin: an upstream, or a repository
// of it.
type source struct {
	name    string
	refs    int               // members that name it
	streams int               // of all blobs, those that count
	by      map[*identity]int // the same by identity
	until   time.Duration     // no new request before this
	// trial: a Hold has just ended; one request goes first, and the others
	// follow when it brought something.
	trial bool
	// appeal is when the next one of those who do not say so may find out
	// whether the origin still wants to be left alone.
	appeal time.Duration
	claims []claim
}

// claim is what one identity says: that the origin asked it to wait.
type claim struct {
	by    *identity
	until time.Duration
}

func (c *Core) source(name string) *source {
	s := c.sources[name]
	if s == nil {
		s = &source{name: name, by: map[*identity]int{}}
		c.sources[name] = s
	}
	return s
}

// onHold reports whether a member has to leave its source alone: because all
// do, or because its own identity was asked to.
func (c *Core) onHold(m *member) bool {
	s := m.src
	if c.claims(s, m.peer.who) {
		return true
	}
	return c.now < s.until && (c.now < s.appeal || s.streams > 0) || c.now >= s.until && s.trial && s.streams > 0
}

// claims reports whether an identity was asked to wait.
func (c *Core) claims(s *source, who *identity) bool {
	for _, cl := range s.claims {
		if cl.by == who {
			return c.now < cl.until
		}
	}
	return false
}

// full reports whether a member may open no more streams: all of its source's
// are taken, or its identity has as many as are left for the others.
func (c *Core) full(m *member) bool {
	return !share(m.src.by[m.peer.who], 1, c.cfg.SourceStreams, c.cfg.SourceStreams-m.src.streams)
}

// minHold is what a 429 without, or with a senseless, Retry-After costs.
const minHold = time.Second

// hold heeds an origin's Retry-After. The word of one identity holds its own
// peers; when a second one says the same, all are held, until the earlier of
// the two times. Those who might ask are told, once: a second refusal within
// the time is old news.
func (c *Core) hold(s *source, by *identity, after time.Duration) {
	after = min(max(after, minHold), c.cfg.MaxHold)
	s.claims = slices.DeleteFunc(s.claims, func(cl claim) bool { return cl.by != by && c.now >= cl.until })
	i := slices.IndexFunc(s.claims, func(cl claim) bool { return cl.by == by })
	if i < 0 {
		i = len(s.claims)
		s.claims = append(s.claims, claim{by: by})
	}
	own := &s.claims[i]
	told := c.now < own.until
	fresh := c.now+after > own.until
	own.until = max(own.until, c.now+after)
	if fresh && !(told && after <= minHold) {
		c.announce(s, after, func(who *identity) bool { return who == by })
	}
	agreed := time.Duration(0)
	for _, cl := range s.claims {
		if cl.by != by {
			agreed = max(agreed, min(cl.until, own.until))
		}
	}
	if agreed <= s.until {
		return
	}
	told = c.now < s.until
	s.until, s.trial = agreed, true
	if told && agreed-c.now <= minHold {
		return
	}
	s.appeal = c.now + c.cfg.Cool
	c.announce(s, agreed-c.now, func(who *identity) bool { return !c.claims(s, who) })
}

// announce tells those who might ask a source to leave it alone.
func (c *Core) announce(s *source, after time.Duration, to func(*identity) bool) {
	c.epoch++
	for _, sw := range c.live {
		for _, r := range sw.rings {
			for _, m := range r.roll[rollAble] {
				if m.src == s && m.peer.epoch != c.epoch && to(m.peer.who) {
					m.peer.epoch = c.epoch
					c.send(m, &Hold{Source: s.name, For: after})
				}
			}
		}
	}
}

// lift ends a Hold for all but those who say that there is one: another got
// something from the origin.
func (c *Core) lift(s *source) {
	if c.now < s.until {
		s.until, s.trial = c.now, false
	}
}

// tickSources forgets sources that nobody names.
func (c *Core) tickSources() {
	for name, s := range c.sources {
		if s.refs == 0 && c.now >= s.until && !slices.ContainsFunc(s.claims, func(cl claim) bool { return c.now < cl.until }) {
			delete(c.sources, name)
		}
	}
}
