package jobstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/scheduler/jobs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortLease is how long owners live here.
const shortLease = 300 * time.Millisecond

// pair returns a store twice, as two schedulers have it; shared says that they
// may have it at the same time. restart returns it as the next process does.
type pair struct {
	a, b    Store
	restart func() Store
}

func TestContract(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) pair{
		"memory": func(*testing.T) pair {
			m := NewMemory()
			m.lease = shortLease
			return pair{a: m, b: m}
		},
		"file": func(t *testing.T) pair {
			path := filepath.Join(t.TempDir(), "dir", "jobs.db")
			f, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return pair{a: f, restart: func() Store {
				f.Close()
				again, err := OpenFile(path)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { again.Close() })
				return again
			}}
		},
		"redis": func(t *testing.T) pair {
			url := startRedis(t)
			open := func() Store {
				r, err := OpenRedis(url)
				if err != nil {
					t.Fatal(err)
				}
				r.lease = shortLease
				t.Cleanup(func() { r.Close() })
				return r
			}
			return pair{a: open(), b: open()}
		},
	} {
		t.Run(name, func(t *testing.T) { contract(t, open) })
	}
}

// startRedis runs a redis-server of its own and returns its URL.
func startRedis(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("redis-server is missing: apt-get install redis-server")
		}
		t.Skip("redis-server is missing: apt-get install redis-server")
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := lis.Addr().(*net.TCPAddr).Port
	lis.Close()
	cmd := exec.Command(binary, "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	url := fmt.Sprintf("redis://127.0.0.1:%d/0", port)
	eventually(t, "redis answers", func() bool {
		r, err := OpenRedis(url)
		if err == nil {
			r.Close()
		}
		return err == nil
	})
	return url
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func job(n int64, s jobs.State) jobs.Job {
	return jobs.Job{
		ID: fmt.Sprint(n), Revision: 1, State: s, Created: time.UnixMicro(n).UTC(), Spec: jobs.Spec{Images: []string{"a.b/c:d"}},
		Images: []jobs.Image{{Name: "a.b/c:d", Contents: []jobs.Content{{Digest: "x"}}}},
		Nodes:  []jobs.Node{{Name: "n1", State: jobs.Running}},
	}
}

func contract(t *testing.T, open func(t *testing.T) pair) {
	ctx := context.Background()
	t.Run("put and list", func(t *testing.T) {
		s := open(t).a
		for _, n := range []int64{9, 10, 11} {
			if _, err := s.Put(ctx, "me", job(n, jobs.Running)); err != nil {
				t.Fatal(err)
			}
		}
		all, err := s.List(ctx)
		if err != nil || len(all) != 3 || all[0].ID != "11" || all[2].ID != "9" {
			t.Fatalf("list: %v, %+v", err, all)
		}
		if all[0].Nodes != nil || all[0].Images[0].Contents != nil {
			t.Errorf("a list has nodes: %+v", all[0])
		}
		one, err := s.List(ctx, "10", "77")
		if err != nil || len(one) != 1 || len(one[0].Nodes) != 1 || one[0].Nodes[0].Name != "n1" {
			t.Errorf("one: %v, %+v", err, one)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		s := open(t).a
		if err := s.Cancel(ctx, "10"); !errors.Is(err, jobs.ErrUnknown) {
			t.Errorf("of nothing: %v", err)
		}
		if stop, err := s.Put(ctx, "me", job(10, jobs.Running)); err != nil || stop {
			t.Fatal(stop, err)
		}
		if err := s.Cancel(ctx, "10"); err != nil {
			t.Fatal(err)
		}
		if stop, err := s.Put(ctx, "me", job(10, jobs.Running)); err != nil || !stop {
			t.Errorf("canceled: %v, %v", stop, err)
		}
	})
	t.Run("owners", func(t *testing.T) {
		p := open(t)
		if p.b == nil {
			t.Skip("one process has it at a time")
		}
		if _, err := p.a.Put(ctx, "one", job(10, jobs.Running)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.b.Put(ctx, "other", job(10, jobs.Running)); !errors.Is(err, jobs.ErrNotOwner) {
			t.Errorf("a job that lives is another's: %v", err)
		}
		if list, err := p.b.Claim(ctx, "other"); err != nil || len(list) != 0 {
			t.Errorf("claimed what lives: %v %v", list, err)
		}
		// The one who does not say that it lives loses it, and hears so.
		eventually(t, "the job is free", func() bool {
			list, err := p.b.Claim(ctx, "other")
			if err != nil {
				t.Fatal(err)
			}
			return len(list) == 1 && len(list[0].Nodes) == 1
		})
		if _, err := p.a.Put(ctx, "one", job(10, jobs.Running)); !errors.Is(err, jobs.ErrNotOwner) {
			t.Errorf("the one who lost it writes: %v", err)
		}
		if _, err := p.b.Put(ctx, "other", job(10, jobs.Done)); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(2 * shortLease); time.Now().Before(end); {
			if list, err := p.a.Claim(ctx, "one"); err != nil || len(list) != 0 {
				t.Fatalf("claimed what has ended: %v %v", list, err)
			}
		}
		if _, err := p.a.Put(ctx, "one", job(10, jobs.Running)); !errors.Is(err, jobs.ErrNotOwner) {
			t.Errorf("what has ended goes on: %v", err)
		}
	})
	t.Run("restart", func(t *testing.T) {
		p := open(t)
		if p.restart == nil {
			t.Skip("is another process's")
		}
		for n, s := range map[int64]jobs.State{10: jobs.Running, 11: jobs.Done} {
			if _, err := p.a.Put(ctx, "one", job(n, s)); err != nil {
				t.Fatal(err)
			}
		}
		if list, err := p.a.Claim(ctx, "one"); err != nil || len(list) != 0 {
			t.Errorf("claimed one's own: %v %v", list, err)
		}
		again := p.restart()
		list, err := again.Claim(ctx, "next")
		if err != nil || len(list) != 1 || list[0].ID != "10" || len(list[0].Nodes) != 1 {
			t.Errorf("after a restart: %+v %v", list, err)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		s := open(t).a
		if _, err := s.Put(ctx, "me", job(1, jobs.Running)); err != nil {
			t.Fatal(err)
		}
		for n := range int64(jobs.MaxEnded + 10) {
			if _, err := s.Put(ctx, "me", job(100+n, jobs.Failed)); err != nil {
				t.Fatal(err)
			}
		}
		all, err := s.List(ctx)
		if err != nil || len(all) != jobs.MaxEnded+1 || all[len(all)-1].ID != "1" || all[len(all)-2].ID != "110" {
			t.Errorf("%d are kept, %v", len(all), err)
		}
	})
}

// Nobody finds a password in an error.
func TestOpenKeepsPasswords(t *testing.T) {
	for _, where := range []string{"redis://u:geheim@127.0.0.1:1/0", "redis://u:geheim@[::1/x", "http://u:geheim@x"} {
		_, err := Open(where)
		if err == nil {
			t.Errorf("%s: opened", where)
		} else if text := err.Error(); len(text) == 0 || strings.Contains(text, "geheim") {
			t.Errorf("%s: %s", where, text)
		}
	}
}
