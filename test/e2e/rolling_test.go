package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPullsWhileDaemonComesAndGoes has containerd pull in a loop while the daemon is
// upgraded, killed, and removed, as pods of a DaemonSet are. No pull fails, and what
// the mirror cannot give comes from the origin.
func TestPullsWhileDaemonComesAndGoes(t *testing.T) {
	eachRelease(t, func(t *testing.T, release Release) {
		registry := NewNode(t, "origin").StartRegistry(t)
		var images []*Image
		for i := range 4 {
			img := newImage(t, func() (*Image, error) { return NoiseImage(byte(40+10*i), 100<<10, 1<<20, 6<<20) })
			registry.Push(t, img, repository, fmt.Sprint("v", i))
			images = append(images, img)
		}
		node := NewNode(t, "node")
		daemon := node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + registry.Origin.URL()}})
		c := node.StartContainerd(t, release, "containerd", ContainerdOptions{})
		c.Mirror(t, upstream, registry.Direct.URL(), daemon.URL())
		loop := startLoop(t, c, images)

		served := func() float64 {
			n, err := daemon.Metric("shoal_mirror_sent_bytes_total")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		for round := range 3 {
			// In the middle of a pull: the daemon has sent some of a layer.
			loop.more(t, 1)
			before := served()
			Eventually(t, "a pull is under way", time.Minute, func() error {
				if served() < before+256<<10 {
					return errors.New("nothing is sent")
				}
				return nil
			})
			if round == 1 {
				daemon.Kill()
			} else {
				daemon.Stop(t)
			}
			loop.more(t, 2) // without it
			daemon.Restart(t)
			loop.more(t, 2)
			if served() == 0 {
				t.Errorf("round %d: nobody asks the daemon that is back", round)
			}
		}

		// It leaves for good: its entry goes first, then the daemon.
		// What then stands for the origin: nobody finds it by its name here.
		c.Mirror(t, upstream, registry.Direct.URL(), registry.Direct.URL())
		daemon.Stop(t)
		registry.Origin.Reset(t)
		loop.more(t, 3)
		loop.end(t)
		if past := registry.Direct.Requests(t, ForBlobs, Delivered); len(past) == 0 {
			t.Error("the origin gave nothing while the daemon was away: what was pulled then?")
		}
		for i, img := range images {
			if err := c.Pull(fmt.Sprintf("%s/%s:v%d", upstream, repository, i)); err != nil {
				t.Fatal(err)
			}
			if err := c.CheckContent(CtrNamespace, img.Blobs...); err != nil {
				t.Error(err)
			}
		}
	})
}

// pullLoop pulls images and removes them, again and again.
type pullLoop struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup
	pulls  atomic.Int64

	mu     sync.Mutex
	failed []error // guarded by mu
}

// startLoop starts two pullers, each with images of its own, so that what one
// removes the other does not pull.
func startLoop(t *testing.T, c *Containerd, images []*Image) *pullLoop {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &pullLoop{cancel: cancel}
	t.Cleanup(func() {
		cancel()
		l.wait.Wait()
	})
	for first := range 2 {
		l.wait.Go(func() {
			for n := first; ctx.Err() == nil; n = (n + 2) % len(images) {
				ref := fmt.Sprintf("%s/%s:v%d", upstream, repository, n)
				// By ctr, which gives an image one name: with it the content goes.
				err := c.Pull(ref)
				if err == nil {
					_, err = c.Ctr(CtrNamespace, "images", "rm", "--sync", ref)
				}
				if err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err)
					l.mu.Unlock()
				}
				l.pulls.Add(1)
			}
		})
	}
	return l
}

// more waits until so many pulls have begun and ended since it was called.
func (l *pullLoop) more(t *testing.T, n int64) {
	t.Helper()
	want := l.pulls.Load() + 2 + n // two may be under way
	Eventually(t, "pulls go on", 2*time.Minute, func() error {
		if got := l.pulls.Load(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

func (l *pullLoop) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wait.Wait()
	for _, err := range l.failed {
		t.Errorf("a pull failed: %v", err)
	}
	t.Logf("%d pulls, %d failed", l.pulls.Load(), len(l.failed))
}
