package client

import (
	"cmp"
	"context"
	"net"
	"slices"
	"time"
)

// resolve says which schedulers there are: at once those with an address, the
// others when their names are resolved, and whenever that changes.
func (c *Client) resolve(ctx context.Context) {
	known := make([][]Target, len(c.places)) // a name that fails keeps what it was
	var told []Target
	for first := true; ; first = false {
		names := false
		for i, p := range c.places {
			if !p.lookup {
				known[i] = []Target{{Addr: net.JoinHostPort(p.host, p.port)}}
				continue
			}
			names = true
			if list := c.lookup(ctx, p); list != nil {
				known[i] = list
			}
		}
		now := slices.Concat(known...)
		byAddr := func(a, b Target) int {
			return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.ServerName, b.ServerName))
		}
		slices.SortFunc(now, byAddr)
		now = slices.CompactFunc(now, func(a, b Target) bool { return a.Addr == b.Addr })
		if len(now) > c.cfg.MaxSchedulers {
			c.log.Warn("too many schedulers", "found", len(now), "used", c.cfg.MaxSchedulers)
			now = now[:c.cfg.MaxSchedulers]
		}
		if first || !slices.Equal(now, told) {
			told = now
			select {
			case c.targets <- now:
			case <-ctx.Done():
				return
			}
		}
		if !names || !pause(ctx, c.cfg.Resolve) {
			return
		}
	}
}

func (c *Client) lookup(ctx context.Context, p place) []Target {
	ctx, cancel := context.WithTimeout(ctx, min(c.cfg.Resolve, 5*time.Second))
	defer cancel()
	addrs, err := c.cfg.Lookup(ctx, p.host)
	if err != nil {
		if told, again := c.unresolved[p.host]; !again || time.Since(told) >= tellAgain {
			c.unresolved[p.host] = time.Now()
			c.log.Warn("scheduler name not resolved", "name", p.host, "error", err)
		}
		return nil
	}
	delete(c.unresolved, p.host)
	var list []Target
	for _, a := range addrs {
		list = append(list, Target{Addr: net.JoinHostPort(a, p.port), ServerName: p.host})
	}
	return list
}

// retarget connects to schedulers that are new and leaves those that are gone.
func (c *Client) retarget(list []Target) {
	for target, l := range c.links {
		if !slices.Contains(list, target) {
			c.log.Info("scheduler not listed any more", "scheduler", target.Addr)
			if l.conn != nil {
				l.conn.end(errRemoved)
			}
			l.cancel()
			delete(c.links, target)
			defer c.unstall(l.conn)
		}
	}
	for _, target := range list {
		if c.links[target] == nil {
			ctx, cancel := context.WithCancel(c.ctx)
			l := &link{target: target, cancel: cancel}
			c.links[target] = l
			c.group.Go(func() {
				defer cancel()
				c.run(ctx, l)
			})
		}
	}
	c.settle()
}
