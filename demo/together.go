package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalproject/shoal/registry/registrytest"
)

// pulled is a pull of the image by one node's client.
type pulled struct {
	node   *node
	before Fetched

	done atomic.Bool
	// Set before done:
	took time.Duration
	err  error
}

// got returns what the node has got for this pull so far.
func (p *pulled) got() Fetched {
	now := p.node.Fetched()
	return Fetched{Origin: now.Origin - p.before.Origin, Peers: now.Peers - p.before.Peers}
}

func sumOf(pulls []*pulled) (sum Fetched) {
	for _, p := range pulls {
		got := p.got()
		sum.Origin += got.Origin
		sum.Peers += got.Peers
	}
	return sum
}

// state says in a few words how the pull is.
func (p *pulled) state() string {
	switch {
	case p.node.killed.Load():
		return "killed"
	case !p.done.Load():
		return ""
	case p.err == nil:
		return "verified, " + seconds(p.took)
	case wrong(p.err):
		return "WRONG BYTES"
	default:
		return "FAILED"
	}
}

// together is the first act: all nodes pull at once, and what is to be killed
// is killed in the middle.
func (s *scene) together(ctx context.Context) error {
	var pulls []*pulled
	for _, n := range s.nodes {
		pulls = append(pulls, &pulled{node: n, before: n.Fetched()})
	}
	show := s.watch(pulls, s.imageSize())
	h := newHalf(s.cfg.Size / 2)
	resume := sync.OnceFunc(func() { close(h.resume) })
	defer resume()
	if s.cfg.KillScheduler || s.cfg.KillPeer {
		defer s.origin.Inject(registrytest.Order{Kind: registrytest.Blob}, h.fault())()
	}
	all := pullAll(ctx, pulls)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var killing error
	for reached := h.reached; ; {
		select {
		case <-tick.C:
			show.update()
		case <-reached:
			reached = nil
			killing = s.kill(show)
			resume()
		case <-all:
			show.end()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return errors.Join(killing, s.verdict(ctx, pulls))
		}
	}
}

// pullAll has clients of all nodes pull at the same time. The channel is closed
// when they are done.
func pullAll(ctx context.Context, pulls []*pulled) (all <-chan struct{}) {
	var wg sync.WaitGroup
	for _, p := range pulls {
		wg.Go(func() {
			start := time.Now()
			p.err = pull(ctx, p.node.Mirror(), "v1")
			p.took = time.Since(start)
			p.done.Store(true)
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

// kill kills what is to be killed.
func (s *scene) kill(show progress) error {
	var errs []error
	show.say("Half of the image has left the origin.")
	if s.cfg.KillScheduler {
		show.say("The scheduler is killed.")
		errs = append(errs, s.scheduler.Stop())
		s.scheduler = nil
	}
	if s.cfg.KillPeer {
		// The worst to lose is the one that brought most.
		victim := slices.MaxFunc(s.nodes, func(a, b *node) int { return int(a.Fetched().Origin - b.Fetched().Origin) })
		show.say(victim.name + ", which brought most of it, is killed.")
		victim.killed.Store(true)
		errs = append(errs, victim.Stop())
	}
	return errors.Join(errs...)
}

// verdict says what each node got from where, what became of those that were
// killed, or lied, and the figures that count. The error says what was not as
// promised.
func (s *scene) verdict(ctx context.Context, pulls []*pulled) error {
	const row = "%-8s%14s%14s%10s   %s\n"
	fmt.Fprintf(s.out, "\n"+row, "NODE", "FROM ORIGIN", "FROM PEERS", "TIME", "RESULT")
	var last time.Duration
	var bad []error
	for _, p := range pulls {
		got, result, took := p.got(), "verified", seconds(p.took)
		switch {
		case p.node.killed.Load():
			result, took = "killed", ""
		case p.err == nil:
			last = max(last, p.took)
		default:
			result = p.state()
			bad = append(bad, fmt.Errorf("%s: %w", p.node.name, p.err))
		}
		fmt.Fprintf(s.out, row, p.node.name, size(got.Origin), size(got.Peers), took, result)
	}
	if s.liar != nil {
		fmt.Fprintf(s.out, row, s.liarName(), "", "", "", fmt.Sprintf("lied %d times", s.liar.Lies()))
	}
	sum, result := sumOf(pulls), "0 wrong bytes"
	if len(bad) > 0 {
		result = fmt.Sprintf("%d FAILED", len(bad))
	}
	fmt.Fprintf(s.out, row, "all", size(sum.Origin), size(sum.Peers), seconds(last), result)

	copies := float64(s.origin.SentTotal()) / float64(s.imageSize())
	fmt.Fprintf(s.out, "\nOrigin copies   %-8.2fwithout Shoal: %d\n", copies, len(pulls))
	if s.cfg.Rate > 0 {
		one := time.Duration(float64(s.cfg.Size) / float64(s.cfg.Rate) * float64(time.Second))
		fmt.Fprintf(s.out, "Last node       %-8swithout Shoal: %s; one node alone: %s\n",
			seconds(last), seconds(one*time.Duration(len(pulls))), seconds(one))
	}
	s.deeds(ctx, pulls)
	if most := s.cfg.mostCopies(); copies > most {
		bad = append(bad, fmt.Errorf("the origin sent %.2f copies, promised are at most %.2f", copies, most))
	}
	return errors.Join(bad...)
}

// deeds says what became of those who were killed, or lied.
func (s *scene) deeds(ctx context.Context, pulls []*pulled) {
	if s.scheduler == nil {
		fmt.Fprintln(s.out, "The scheduler was killed midway: the nodes went on among themselves.")
	}
	var accusers []string
	for _, p := range pulls {
		if p.node.killed.Load() {
			fmt.Fprintf(s.out, "%s was killed midway: its runtime would go on to the origin by itself.\n", p.node.name)
		}
		if p.node.errors.names(s.liarName()) {
			accusers = append(accusers, p.node.name)
		}
	}
	switch {
	case s.liar == nil:
	case len(accusers) == 0:
		fmt.Fprintf(s.out, "%s lied, but nobody used what it sent.\n", s.liarName())
	default:
		fmt.Fprintf(s.out, "%s lied: the log of %s names it.\n", s.liarName(), some(accusers))
		if s.scheduler != nil && s.scheduler.Known(ctx).Banned > 0 {
			fmt.Fprintf(s.out, "%s is banned by the scheduler.\n", s.liarName())
		}
	}
}

// some lists names, as many as a line has room for.
func some(names []string) string {
	const most = 4
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
