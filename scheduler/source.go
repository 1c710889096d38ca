package scheduler

import "time"

// source is what bounds requests to an origin: an upstream, or a repository
// of it.
type source struct {
	name    string
	refs    int           // members that name it
	streams int           // of all blobs
	until   time.Duration // no new request before this
	// trial: a Hold has just ended; one request goes first, and the others
	// follow when it brought something.
	trial bool
}

func (c *Core) source(name string) *source {
	s := c.sources[name]
	if s == nil {
		s = &source{name: name}
		c.sources[name] = s
	}
	return s
}

func (c *Core) onHold(s *source) bool {
	return c.now < s.until || s.trial && s.streams > 0
}

// minHold is what a 429 without, or with a senseless, Retry-After costs.
const minHold = time.Second

// hold heeds an origin's Retry-After for all peers, and tells those who might
// ask, once: a second refusal within the time is old news.
func (c *Core) hold(s *source, after time.Duration) {
	after = min(max(after, minHold), c.cfg.MaxHold)
	if c.now+after <= s.until {
		return
	}
	told := c.now < s.until
	s.until = c.now + after
	s.trial = true
	if told && after <= minHold {
		return
	}
	c.epoch++
	for _, sw := range c.live {
		for _, r := range sw.rings {
			for _, m := range r.roll[rollAble] {
				if m.src == s && m.peer.epoch != c.epoch {
					m.peer.epoch = c.epoch
					c.send(m, &Hold{Source: s.name, For: after})
				}
			}
		}
	}
}

// tickSources forgets sources that nobody names.
func (c *Core) tickSources() {
	for name, s := range c.sources {
		if s.refs == 0 && c.now >= s.until {
			delete(c.sources, name)
		}
	}
}
