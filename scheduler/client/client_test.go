package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/shoalproject/shoal/scheduler"
)

func digest(i int) scheduler.Digest { return scheduler.Digest(fmt.Sprintf("sha256:%064x", i)) }

// owned returns a blob that belongs to the first of the addresses.
func owned(addrs ...string) scheduler.Digest {
	c := &Client{}
	var links []*link
	for _, a := range addrs {
		links = append(links, &link{target: Target{Addr: a}})
	}
	for i := 0; ; i++ {
		if c.pick(links, digest(i)) == links[0] {
			return digest(i)
		}
	}
}

// A scheduler more or less moves only what becomes, or was, its own; each has
// about its share. The weights are part of the protocol.
func TestPick(t *testing.T) {
	// printf "10.0.0.1:4402\0sha256:%064x" 1 | sha256sum
	if w, want := weigh("10.0.0.1:4402", digest(1)), uint64(0xa42e8ba735ff11f2); w != want {
		t.Errorf("weight %#x, want %#x", w, want)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := &Client{}
		n := rapid.IntRange(2, 5).Draw(t, "schedulers")
		var all []*link
		for i := range n {
			all = append(all, &link{target: Target{Addr: fmt.Sprintf("10.0.%d.%d:4402", rapid.IntRange(0, 255).Draw(t, "net"), i)}})
		}
		gone := rapid.IntRange(0, n-1).Draw(t, "gone")
		rest := slices.Delete(slices.Clone(all), gone, gone+1)
		shuffled := rapid.Permutation(all).Draw(t, "order")
		count := map[*link]int{}
		const blobs = 500
		for i := range blobs {
			was := c.pick(all, digest(i))
			count[was]++
			if other := c.pick(shuffled, digest(i)); other != was {
				t.Fatalf("the order decides on %s", digest(i))
			}
			if is := c.pick(rest, digest(i)); is != was && was != all[gone] {
				t.Fatalf("%s moved without need", digest(i))
			}
		}
		for l, k := range count {
			if k < blobs/n/2 || k > 2*blobs/n {
				t.Errorf("%s has %d of %d blobs among %d", l.target.Addr, k, blobs, n)
			}
		}
	})
}

// A scheduler that takes a Join and says nothing is given up, the blob goes to
// the next, and what the first says late is not heard.
func TestSilentScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		f.mute["a:1"] = true
		l := &listener{}
		c, stop := start(t, Config{Schedulers: []string{"a:1", "b:1"}, Open: f.open}, l)
		defer stop()
		synctest.Wait()
		blob := owned("a:1", "b:1")
		if err := c.Send(t.Context(), scheduler.Join{Blob: blob, Size: 7}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		first := f.streams["a:1"]
		f.set(f.down, "a:1", true)
		time.Sleep(2 * time.Second)
		if len(f.told("b:1")) != 0 {
			t.Error("the scheduler was given up before its time")
		}
		time.Sleep(3 * time.Second)
		select {
		case first.out <- []any{&scheduler.Assign{Blob: blob, Run: scheduler.Run{Count: 1}}}:
		default:
		}
		synctest.Wait()
		told := f.told("b:1")
		if len(told) != 1 {
			t.Fatalf("the next scheduler was told %+v", told)
		}
		if j, ok := told[0].(scheduler.Join); !ok || !j.Again || len(j.Have) != 1 {
			t.Errorf("the next scheduler was told %+v", told[0])
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.got) != 1 || l.got[0].(*scheduler.Swarm).Blob != blob {
			t.Errorf("the consumer heard %+v", l.got)
		}
	})
}

// What is held whole and what is joined moves to the next scheduler and back,
// and leave is taken of the one that had it meanwhile.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		held, joined, others := digest(1_000_000), owned("a:1", "b:1"), owned("b:1", "a:1")
		l := &listener{holdings: []scheduler.Holding{{Blob: held, Size: 9}}}
		c, stop := start(t, Config{Schedulers: []string{"a:1", "b:1"}, Open: f.open}, l)
		defer stop()
		synctest.Wait()
		for _, blob := range []scheduler.Digest{joined, others} {
			if err := c.Send(t.Context(), scheduler.Join{Blob: blob, Size: 7}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(f.told("a:1")) + len(f.told("b:1")); n != 3 {
			t.Fatalf("told: %+v, %+v", f.told("a:1"), f.told("b:1"))
		}
		f.kill("a:1")
		synctest.Wait()
		for _, blob := range []scheduler.Digest{held, joined, others} {
			if !slices.ContainsFunc(f.told("b:1"), func(m scheduler.In) bool { b, _ := blobOf(m); return b == blob }) {
				t.Errorf("the one that is left was not told of %s", blob)
			}
		}
		f.set(f.down, "a:1", false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if told := f.told("b:1"); !slices.Contains(told, scheduler.In(scheduler.Leave{Blob: joined})) == slices.ContainsFunc(told, func(m scheduler.In) bool {
			j, ok := m.(scheduler.Join)
			return ok && j.Blob == joined
		}) {
			t.Errorf("the one that had it meanwhile was told %+v", told)
		}
		if told := f.told("a:1"); !slices.ContainsFunc(told, func(m scheduler.In) bool {
			j, ok := m.(scheduler.Join)
			return ok && j.Blob == joined && j.Again
		}) {
			t.Errorf("the one that returned was told %+v", told)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !slices.Equal(l.reachable, []bool{true}) {
			t.Errorf("reachable: %v", l.reachable)
		}
	})
}

// A scheduler that is not there is asked at a bounded rate, for ever.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		f.down["a:1"] = true
		l := &listener{}
		_, stop := start(t, Config{Schedulers: []string{"a:1"}, Open: f.open}, l)
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		first := f.opened["a:1"]
		if first < 20 || first > 50 {
			t.Errorf("%d attempts in a minute", first)
		}
		if !slices.Equal(l.reachable, []bool{false}) {
			t.Errorf("reachable: %v", l.reachable)
		}
		f.set(f.down, "a:1", false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !slices.Equal(l.reachable, []bool{false, true}) {
			t.Errorf("reachable: %v", l.reachable)
		}
	})
}

type refusal struct{}

func (refusal) Error() string            { return "another's name" }
func (refusal) Reason() scheduler.Reason { return scheduler.ReasonRefused }

// Who is refused for what he is does not knock all the time.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int32
		_, stop := start(t, Config{Schedulers: []string{"a:1"}, Open: func(context.Context, Target, scheduler.Hello) (Stream, error) {
			attempts.Add(1)
			return nil, fmt.Errorf("connecting: %w", refusal{})
		}}, &listener{})
		defer stop()
		time.Sleep(time.Minute)
		if n := attempts.Load(); n > 5 {
			t.Errorf("%d attempts in a minute", n)
		}
	})
}

// The log of a day without its scheduler fits a screen or two, and says when it
// is gone and when it is back.
func TestLogOfLostScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFakes()
		f.set(f.down, "a:1", true)
		_, stop := start(t, Config{Schedulers: []string{"a:1", "dns:///schedulers:1"}, Open: f.open, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Lookup: func(context.Context, string) ([]string, error) { return nil, errors.New("no such host") },
		}, &listener{})
		defer stop()
		lines := func(what string) int { synctest.Wait(); return strings.Count(log.String(), what) }
		time.Sleep(time.Hour + time.Second)
		if lost, away, names := lines("scheduler lost"), lines("still away"), lines("not resolved"); lost != 1 || away < 10 || away > 12 || names < 10 || names > 13 {
			t.Errorf("in an hour %d lines that it is lost, %d that it is away and %d of its name, want 1 and about 12", lost, away, names)
		}
		if !strings.Contains(log.String(), "for=55m") || !strings.Contains(log.String(), "tries=") {
			t.Errorf("the log does not say for how long and how often it was tried:\n%s", log.String())
		}
		f.set(f.down, "a:1", false)
		time.Sleep(10 * time.Second)
		if n := lines("scheduler connected"); n != 1 {
			t.Errorf("%d lines that it is back", n)
		}
		time.Sleep(time.Minute)
		f.kill("a:1")
		if n := lines("scheduler lost"); n != 2 {
			t.Errorf("a second loss makes %d lines", n)
		}
	})
}

// lockedBuffer is a log that the client writes to while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A scheduler that takes connections and ends them at once fills no log either.
func TestLogOfFlappingScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		f := newFakes()
		stable := atomic.Bool{}
		_, stop := start(t, Config{Schedulers: []string{"a:1"}, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Open: func(ctx context.Context, to Target, h scheduler.Hello) (Stream, error) {
				s, err := f.open(ctx, to, h)
				if !stable.Load() {
					s.Close()
				}
				return s, err
			},
		}, &listener{})
		defer stop()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n > 20 {
			t.Errorf("%d lines in an hour", n)
		}
		before := strings.Count(log.String(), "scheduler connected")
		stable.Store(true)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := strings.Count(log.String(), "scheduler connected") - before; n != 1 {
			t.Errorf("%d lines that it is back:\n%s", n, log.String())
		}
	})
}

// Names are resolved again; schedulers come and go with what they resolve to.
func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		l := &listener{holdings: []scheduler.Holding{{Blob: owned("10.0.0.2:4402", "10.0.0.1:4402"), Size: 1}}}
		type answer struct {
			addrs []string
			err   error
		}
		var answers atomic.Pointer[answer]
		answers.Store(&answer{addrs: []string{"10.0.0.1"}})
		_, stop := start(t, Config{
			Schedulers: []string{"dns:///schedulers:4402"}, Open: f.open, Resolve: 10 * time.Second,
			Lookup: func(_ context.Context, name string) ([]string, error) {
				if name != "schedulers" {
					t.Errorf("looked up %q", name)
				}
				a := answers.Load()
				return a.addrs, a.err
			},
		}, l)
		defer stop()
		synctest.Wait()
		if len(f.told("10.0.0.1:4402")) != 1 {
			t.Errorf("the first was told %v", f.told("10.0.0.1:4402"))
		}
		answers.Store(&answer{addrs: []string{"10.0.0.2", "10.0.0.1", "10.0.0.2"}})
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if len(f.told("10.0.0.2:4402")) != 1 || len(f.told("10.0.0.1:4402")) != 2 {
			t.Errorf("told: %v, %v", f.told("10.0.0.2:4402"), f.told("10.0.0.1:4402"))
		}
		answers.Store(&answer{err: errors.New("no such host")})
		time.Sleep(20 * time.Second)
		answers.Store(&answer{addrs: []string{"10.0.0.1"}})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		select {
		case <-f.streams["10.0.0.2:4402"].done:
		default:
			t.Error("the stream to a scheduler that is gone is open")
		}
		if told := f.told("10.0.0.1:4402"); len(told) != 3 {
			t.Errorf("told: %v", told)
		}
		if !slices.Equal(l.reachable, []bool{true}) {
			t.Errorf("reachable: %v", l.reachable)
		}
	})
}

// A consumer that sends while it is told something, to a scheduler whose queue
// is full, is never waited for in a circle.
func TestSendWhileDelivering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		l := &listener{}
		var c *Client
		l.deliver = func(msg any) {
			for range 100 {
				if err := c.Send(t.Context(), scheduler.Have{Blob: msg.(*scheduler.Swarm).Blob}); err != nil {
					t.Error(err)
				}
			}
		}
		c, stop := start(t, Config{Schedulers: []string{"a:1"}, Open: f.open, Queue: 2}, l)
		defer stop()
		synctest.Wait()
		for i := range 50 {
			if err := c.Send(t.Context(), scheduler.Join{Blob: digest(i), Size: 7}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(f.told("a:1")); n != 50+50*100 {
			t.Errorf("%d messages arrived", n)
		}
	})
}

// A consumer that waits for ever holds up nothing but itself, and Run's end.
func TestSlowConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		release := make(chan struct{})
		l := &listener{deliver: func(any) { <-release }}
		c, stop := start(t, Config{Schedulers: []string{"a:1"}, Open: f.open}, l)
		synctest.Wait()
		for i := range 500 {
			if err := c.Send(t.Context(), scheduler.Join{Blob: digest(i), Size: 7}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := f.opened["a:1"]; n != 1 {
			t.Errorf("%d streams: the scheduler was taken for silent", n)
		}
		close(release)
		synctest.Wait()
		if len(l.got) != 500 {
			t.Errorf("%d messages were delivered", len(l.got))
		}
		stop()
		if err := c.Send(t.Context(), scheduler.Leave{Blob: digest(1)}); !errors.Is(err, ErrStopped) {
			t.Errorf("Send after the end: %v", err)
		}
	})
}

func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		c, stop := start(t, Config{Schedulers: []string{"a:1"}, Open: f.open, MaxBlobs: 3}, &listener{})
		defer stop()
		synctest.Wait()
		for i := range 4 {
			err := c.Send(t.Context(), scheduler.Join{Blob: digest(i), Size: 7})
			synctest.Wait()
			if (i < 3) != (err == nil) || i == 3 && !errors.Is(err, ErrFull) {
				t.Errorf("join %d: %v", i, err)
			}
		}
		if err := c.Send(t.Context(), scheduler.Complete{Blob: digest(0), Size: 7}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if err := c.Send(t.Context(), scheduler.Join{Blob: digest(3), Size: 7}); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if err := c.Send(t.Context(), scheduler.Bye{}); err == nil {
			t.Error("Bye was sent")
		}
	})
}

func TestPlaces(t *testing.T) {
	for _, s := range []string{"", "host", "host:", ":4402", "host:0", "host:70000", "dns://name:1", "dns:///name", "http://host:80"} {
		_, err := New(Config{Schedulers: []string{s}, Open: newFakes().open}, &listener{})
		if err == nil || s != "" && !strings.Contains(err.Error(), s) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
