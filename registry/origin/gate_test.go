package origin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalproject/shoal/registry"
	rt "github.com/shoalproject/shoal/registry/registrytest"
)

func TestGateProbesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		p, err := g.enter(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.shut(10 * time.Second); got != 10*time.Second {
			t.Errorf("shut for %v", got)
		}
		var shut *shutError
		if _, err := g.enter(t.Context(), true); !errors.As(err, &shut) || shut.after != 10*time.Second {
			t.Fatalf("while shut: %v", err)
		}
		time.Sleep(8500 * time.Millisecond)
		// 1.5 s are left: short enough to wait. Then one probes.
		start := time.Now()
		var probes, through atomic.Int32
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				p, err := g.enter(t.Context(), true)
				if err != nil {
					t.Error(err)
					return
				}
				if p.probe {
					if got := time.Since(start); got != 1500*time.Millisecond {
						t.Errorf("the probe went after %v", got)
					}
					probes.Add(1)
					time.Sleep(time.Minute) // the others wait for what becomes of it
				} else if time.Since(start) < time.Minute {
					t.Error("let through before the probe had ended")
				}
				through.Add(1)
				p.opened()
			})
		}
		wg.Wait()
		if probes.Load() != 1 || through.Load() != 50 {
			t.Errorf("%d probes, %d through", probes.Load(), through.Load())
		}
	})
}

func TestGateAfterFailedProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		p, _ := g.enter(t.Context(), true)
		p.shut(time.Second)
		probe, err := g.enter(t.Context(), true)
		if err != nil || !probe.probe {
			t.Fatalf("probe: %v %v", probe, err)
		}
		outcome := make(chan error)
		go func() {
			_, err := g.enter(t.Context(), true)
			outcome <- err
		}()
		synctest.Wait()
		probe.shut(time.Minute)
		var shut *shutError
		if err := <-outcome; !errors.As(err, &shut) || shut.after != time.Minute {
			t.Errorf("who waited for the probe got %v", err)
		}
		// A probe that learns nothing hands over to the next.
		time.Sleep(time.Minute)
		probe, _ = g.enter(t.Context(), true)
		probe.unknown()
		if next, err := g.enter(t.Context(), true); err != nil || !next.probe {
			t.Errorf("next: %v %v", next, err)
		}
		// Who waits for a probe can go away.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.enter(ctx, true); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

func TestGateBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		burst := make([]*pass, 10)
		for i := range burst {
			burst[i], _ = g.enter(t.Context(), true)
		}
		for _, p := range burst { // one burst is one reason
			if got := p.shut(0); got != time.Second {
				t.Fatalf("first back-off %v", got)
			}
		}
		burst[0].opened() // answered before: opens nothing
		want := time.Second
		for range 12 {
			time.Sleep(want)
			p, err := g.enter(t.Context(), true)
			if err != nil || !p.probe {
				t.Fatalf("after %v: %v", want, err)
			}
			want = min(2*want, maxRetryAfter)
			if got := p.shut(0); got != want {
				t.Fatalf("back-off %v, want %v", got, want)
			}
		}
		time.Sleep(want)
		p, _ := g.enter(t.Context(), true)
		p.opened()
		p, _ = g.enter(t.Context(), true)
		if got := p.shut(0); got != time.Second {
			t.Errorf("back-off after success %v", got)
		}
	})
}

func TestDialMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m dialMemory
		var dials atomic.Int32
		refused := errors.New("refused")
		fail := func(context.Context) (net.Conn, error) {
			dials.Add(1)
			time.Sleep(5 * time.Second) // the dial timeout
			return nil, refused
		}
		dial := func(f dialFunc) error {
			conn, err := m.dial(t.Context(), "a:1", f)
			if conn != nil {
				conn.Close()
			}
			return err
		}
		if err := dial(fail); err != refused {
			t.Fatal(err)
		}
		start := time.Now()
		for range 100 {
			if err := dial(fail); err != refused {
				t.Fatal(err)
			}
		}
		if time.Since(start) != 0 || dials.Load() != 1 {
			t.Errorf("%v and %d dials for what is known", time.Since(start), dials.Load())
		}
		time.Sleep(downMemory)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { _ = dial(fail) })
		}
		wg.Wait()
		if dials.Load() != 2 {
			t.Errorf("%d dials, want one probe for all", dials.Load()-1)
		}
		time.Sleep(downMemory)
		// Those who wait for a probe that succeeds dial themselves.
		ok := func(context.Context) (net.Conn, error) {
			dials.Add(1)
			time.Sleep(time.Millisecond)
			a, b := net.Pipe()
			b.Close()
			return a, nil
		}
		for range 10 {
			wg.Go(func() {
				if err := dial(ok); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(m.down) != 0 {
			t.Error("still remembered as down")
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	for _, status := range []int{429, 503} {
		o := rt.New(t)
		img := o.AddImage(repo, "latest")
		o.Inject(rt.Order{Times: 1}, rt.Status(status, "Retry-After", "60"))
		c := newClient(t, o)
		for i := range 5 {
			_, err := c.HeadManifest(t.Context(), target, "latest", nil)
			e := wantStatus(t, err, 503)
			if !IsUnavailable(err) || e.Code != registry.CodeTooManyRequests || e.RetryAfter > time.Minute || e.RetryAfter < 30*time.Second {
				t.Errorf("%d: %v, Retry-After %v", i, err, e.RetryAfter)
			}
		}
		_, err := c.Blob(t.Context(), target, img.Config.Digest, 0, -1)
		wantStatus(t, err, 503)
		if n := len(o.Requests()); n != 1 {
			t.Errorf("%d requests to an origin that asked for none", n)
		}
	}
}

func TestShortRetryAfterIsWaitedFor(t *testing.T) {
	o := rt.New(t)
	o.AddImage(repo, "latest")
	o.Inject(rt.Order{Times: 1}, rt.Status(429)) // 1 s by default
	if _, err := newClient(t, o).HeadManifest(t.Context(), target, "latest", nil); err != nil {
		t.Error(err)
	}
}

func TestOriginDown(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o)
	o.Down()
	for range 3 {
		_, err := c.HeadBlob(t.Context(), target, d)
		if wantStatus(t, err, 503); !IsUnavailable(err) {
			t.Error("not unavailable")
		}
	}
	if err := o.Up(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool {
		_, err := c.HeadBlob(t.Context(), target, d)
		return err == nil
	})
}

func TestHangBeforeHeaders(t *testing.T) {
	for name, opts := range map[string][]rt.Option{"http1": nil, "http2": {rt.WithTLS()}} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t, opts...)
			d := o.AddBlob(repo, []byte("data"))
			release := make(chan struct{})
			defer close(release)
			o.Inject(rt.Order{}, rt.Hang(release))
			c := newClient(t, o, func(c *Config) { c.HeaderTimeout = 200 * time.Millisecond })
			_, err := c.HeadBlob(t.Context(), target, d)
			wantStatus(t, err, 503)
			if n := o.Count(rt.Blob, http.MethodHead); n != 1 {
				t.Errorf("%d requests: each costs the runtime the time-out", n)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := errors.New("the client went away")
			o.Heal()
			o.Inject(rt.Order{}, rt.HangAfter(1, release))
			s, err := c.Blob(ctx, target, d, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if n, err := s.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			time.AfterFunc(time.Millisecond, func() { cancel(gone) })
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, gone) || IsUnavailable(err) {
				t.Errorf("cancelled: %v", err)
			}
		})
	}
}
