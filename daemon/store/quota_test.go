package store

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

func memStore(t testing.TB, mem *memFS, max int64) *Store {
	t.Helper()
	s, err := openOn(mem, Config{Dir: "/data", MaxBytes: max, Logger: quiet("").Logger})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func holds(s *Store, b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.blobs[digest.FromBytes(b)] != nil
}

// Blobs go in the order of their last use, which a restart keeps.
func TestEvictionOrder(t *testing.T) {
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			mem := newMemFS()
			// The model's clock is not the bubble's: let it start there.
			mem.clock = time.Now().UnixNano()
			s := memStore(t, mem, 400)
			var b [6][]byte
			for i := range b {
				b[i] = content(byte(i), 100)
			}
			for i := range 4 {
				mustPut(t, s, b[i])
			}
			time.Sleep(2 * touchEvery)
			for _, i := range []int{1, 0} { // unused since: 2, 3
				if err := get(s, b[i]); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			if restart {
				s.Close()
				s = memStore(t, mem, 400)
			}
			for n, gone := range []int{2, 3} {
				mustPut(t, s, b[4+n])
				if holds(s, b[gone]) || !holds(s, b[0]) || !holds(s, b[1]) {
					t.Fatalf("restart %v: after %d more blobs, blob %d is not the one that went", restart, n+1, gone)
				}
			}
			if st := s.Stats(); st.Evictions != 2 || st.UsedBytes != 400 {
				t.Fatalf("%+v", st)
			}
			s.Close()
		})
	}
}

// Uses are written to disk at most once a minute per blob.
func TestTouchIsRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		touches := 0
		h := &hookFS{fileSystem: newMemFS(), hook: func(op, _ string) error {
			if op == "touch" {
				touches++
			}
			return nil
		}}
		s, err := openOn(h, quiet("/data"))
		if err != nil {
			t.Fatal(err)
		}
		b := content(1, 10)
		mustPut(t, s, b)
		for range 61 {
			time.Sleep(2 * time.Second)
			if err := get(s, b); err != nil {
				t.Fatal(err)
			}
		}
		if touches != 2 {
			t.Fatalf("%d touches in two minutes", touches)
		}
	})
}

// What has a handle is not evicted, blob or partial; what has none is, idle
// partials too; if that is not enough, nothing is.
func TestPins(t *testing.T) {
	s := memStore(t, newMemFS(), 400)
	pinned, idle := content(1, 100), content(2, 100)
	mustPut(t, s, pinned)
	mustPut(t, s, idle)
	blob, err := s.Blob(digest.FromBytes(pinned))
	if err != nil {
		t.Fatal(err)
	}
	half := content(3, 100)
	p, err := s.Partial(digest.FromBytes(half), 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePiece(p, half, 0); err != nil {
		t.Fatal(err)
	}
	big := digest.FromString("big")
	if _, err := s.Partial(big, 301); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("301 bytes beside 200 in use: %v", err)
	}
	if !holds(s, idle) {
		t.Fatal("evicted for what does not fit anyhow")
	}
	p.Close() // idle from now on, but the piece is kept
	p2, err := s.Partial(big, 300)
	if err != nil {
		t.Fatal(err)
	}
	if !holds(s, idle) {
		t.Fatal("evicted for bytes that have not come")
	}
	if err := writePiece(p2, content(4, 300), 0); err != nil {
		t.Fatal(err)
	}
	if holds(s, idle) || !holds(s, pinned) {
		t.Fatal("the wrong one went")
	}
	if _, err := blob.CopyRange(io.Discard, 0, 100); err != nil {
		t.Fatal(err)
	}
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = s.Partial(digest.FromBytes(half), 100); err != nil {
		t.Fatal(err)
	}
	if p.Claimed(0) {
		t.Fatal("the idle partial was not evicted")
	}
	if err := errors.Join(p.Drop(), p2.Drop()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.UsedBytes != 100 || st.Partials != 0 || st.Refusals != 1 {
		t.Fatalf("%+v", st)
	}
	if _, err := s.Partial(big, 401); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("larger than the quota: %v", err)
	}
	if _, err := s.Partial(big, 1<<62); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("far larger than the quota: %v", err)
	}
}

// A smaller quota takes effect with the start.
func TestQuotaShrinks(t *testing.T) {
	mem := newMemFS()
	s := memStore(t, mem, 400)
	for i := range 4 {
		mustPut(t, s, content(byte(i), 100))
	}
	s.Close()
	s = memStore(t, mem, 150)
	if st := s.Stats(); st.UsedBytes != 100 || !holds(s, content(3, 100)) {
		t.Fatalf("%+v", st)
	}
	s.Close()
	s = memStore(t, mem, 0)
	if _, err := s.Partial(digest.FromString("x"), 1); !errors.Is(err, ErrUnavailable) {
		t.Fatal("a quota of 0 takes a byte:", err)
	}
	mustPut(t, s, nil)
}

// The free tenth of the disk counts, as does what is allocated.
func TestDiskLimit(t *testing.T) {
	mem := newMemFS()
	mem.total, mem.avail = 1000, 150 // 50 may be used
	s := memStore(t, mem, 1<<30)
	if _, err := s.Partial(digest.FromString("x"), 51); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	mustPut(t, s, content(1, 50))
	mem.avail = 100
	mustPut(t, s, content(2, 50)) // in place of the other
	if st := s.Stats(); st.Blobs != 1 || st.LimitBytes != 50 || st.UsedBytes != 50 {
		t.Fatalf("%+v", st)
	}
	mem.avail = 0 // others took the rest
	if _, err := s.Partial(digest.FromString("x"), 1); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := s.Health(); err != nil {
		t.Fatal(err)
	}
}

// Whatever comes, the books agree with the disk.
func TestIndexModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := newMemFS()
		const quota = 1000
		s := memStore(t, mem, quota)
		var blobs []*Blob
		partials := map[digest.Digest]*Partial{}
		key := rapid.IntRange(0, 9)
		body := func(k int) []byte { return content(byte(k), 40*k+1) }
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				if _, err := put(s, body(key.Draw(rt, "k"))); err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBusy) {
					rt.Fatal(err)
				}
			},
			"open": func(rt *rapid.T) {
				if b, err := s.Blob(digest.FromBytes(body(key.Draw(rt, "k")))); err == nil {
					blobs = append(blobs, b)
				} else if !errors.Is(err, ErrNotFound) {
					rt.Fatal(err)
				}
			},
			"close": func(rt *rapid.T) {
				if len(blobs) == 0 {
					rt.Skip("none open")
				}
				b := blobs[0]
				blobs = blobs[1:]
				if _, err := b.CopyRange(io.Discard, 0, b.Size()); err != nil {
					rt.Fatal("an open blob does not read:", err)
				}
				b.Close()
			},
			"partial": func(rt *rapid.T) {
				b := body(key.Draw(rt, "k"))
				d := digest.FromBytes(b)
				p, err := s.Partial(d, int64(len(b)))
				if err == nil && !p.Claimed(0) {
					err = writePiece(p, b, 0)
				}
				if err == nil {
					partials[d] = p
				} else if p != nil {
					p.Drop()
				}
				if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBusy) {
					rt.Fatal(err)
				}
			},
			"end partial": func(rt *rapid.T) {
				for d, p := range partials {
					delete(partials, d)
					end := p.Close
					if rapid.Bool().Draw(rt, "drop") {
						end = p.Drop
					}
					if err := end(); err != nil {
						rt.Fatal(err)
					}
					return
				}
			},
			"evict": func(rt *rapid.T) {
				if err := s.Evict(digest.FromBytes(body(key.Draw(rt, "k")))); err != nil && !errors.Is(err, ErrNotFound) {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				if len(blobs)+len(partials) > 0 {
					rt.Skip("handles are open")
				}
				before := s.Stats()
				s.Close()
				s = memStore(t, mem, quota)
				if after := s.Stats(); after.UsedBytes != before.UsedBytes || after.Blobs != before.Blobs || after.Partials != before.Partials {
					rt.Fatalf("before %+v, after %+v", before, after)
				}
			},
			"": func(rt *rapid.T) {
				st := s.Stats()
				var sum int64
				n := 0
				for el := s.index.order.Front(); el != nil; el = el.Next() {
					e := el.Value.(*entry)
					n++
					sum += e.takes()
					if s.index.of(e)[e.digest] != e {
						rt.Fatal("the order holds what the maps do not")
					}
					path := s.blobPath(e.digest)
					if e.partial {
						path = s.partialPath(e.digest)
					}
					if _, err := mem.lstat(path); err != nil {
						rt.Fatal(err)
					}
				}
				if sum != st.UsedBytes || sum > quota || n != st.Blobs+st.Partials {
					rt.Fatalf("%d entries of %d bytes; %+v", n, sum, st)
				}
			},
		})
	})
}

// Many goroutines at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	s := memStore(t, newMemFS(), 3000)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 50 {
				b := content(byte((g+n)%7), 500+(g+n)%7)
				if err := get(s, b); err == nil {
					continue
				} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
				if _, err := put(s, b); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
				if n%10 == 0 {
					_ = s.Evict(digest.FromBytes(b))
				}
				_, _ = s.Stats(), s.Health()
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Open != 0 || st.Corruptions != 0 {
		t.Fatalf("%+v", st)
	}
}
