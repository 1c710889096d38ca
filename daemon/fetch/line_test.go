package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestLineKeepsPlacesForOtherRegistries(t *testing.T) {
	fill := func(l *line, registry string) (n int) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for l.enter(ctx, registry) == nil {
			n++
		}
		return n
	}
	l := newLine(64)
	var got []int
	for i := range 6 {
		got = append(got, fill(l, fmt.Sprint("registry-", i)))
	}
	if fmt.Sprint(got) != "[48 12 3 1 0 0]" {
		t.Errorf("places taken one registry after another: %v", got)
	}
	for range 40 {
		l.leave("registry-0")
	}
	if n := fill(l, "registry-5"); n < 20 {
		t.Errorf("%d places for another registry of 40 that came free", n)
	}
	// Of few places one registry gets all: there is nothing to share.
	if n := fill(newLine(1), "a"); n != 1 {
		t.Errorf("%d of 1", n)
	}
}

func TestLineWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(1)
		if err := l.enter(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- l.enter(t.Context(), "b") }()
		synctest.Wait()
		l.leave("a")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(l.held) != 1 {
			t.Errorf("held: %v", l.held)
		}
	})
}

// of is an origin at another registry.
type of struct {
	*origin
	registry string
}

func (o of) Origin() string { return o.registry + "/app" }

// The places of a registry are all taken by blobs that do not come. Its other
// blobs pass, verified; small ones and other registries find a place.
func TestPassesWhereARegistryHasNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 100, Config{Flights: 8})
		stuck := make(chan struct{})
		seed := byte(0)
		fresh := func(n int) []byte {
			b := randomBytes(n)
			seed++
			b[0] = seed
			return b
		}
		open := func(registry string, blob []byte, b behaviour, req Request) (*Reader, time.Duration, error) {
			o := &origin{key: registry, blob: blob, script: func(int, int64) behaviour { return b }}
			req.Digest, req.Source = digest.FromBytes(blob), of{o, registry}
			start := time.Now()
			r, err := f.Open(t.Context(), req)
			if r != nil {
				t.Cleanup(func() { r.Close() })
			}
			return r, time.Since(start), err
		}
		for range 6 {
			if _, _, err := open("slow.test", fresh(MiB), behaviour{gate: stuck}, Request{Proven: true}); err != nil {
				t.Fatal(err)
			}
		}
		past := f.Stats().PassedThrough
		check := func(name string, blob []byte, r *Reader, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var got bytes.Buffer
			if _, err := r.CopyRange(t.Context(), &got, 0, r.Size()); err != nil || !bytes.Equal(got.Bytes(), blob) {
				t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
			}
		}
		blob := fresh(2 * MiB)
		r, took, err := open("slow.test", blob, behaviour{}, Request{MayPass: true})
		check("same registry", blob, r, err)
		if took > time.Second || f.Stats().PassedThrough != past+1 {
			t.Errorf("after %v, %d passed", took, f.Stats().PassedThrough-past)
		}
		// Wrong bytes are not delivered whole by this way either.
		blob = fresh(2 * MiB)
		r, _, err = open("slow.test", blob, behaviour{flip: 5}, Request{MayPass: true, Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := r.CopyRange(t.Context(), io.Discard, 0, r.Size()); err == nil || n == r.Size() {
			t.Errorf("a wrong blob passes: %d bytes, %v", n, err)
		}
		for name, req := range map[string]Request{
			"fast.test": {MayPass: true, Proven: true},
			"slow.test": {MayPass: true, Proven: true, Small: true},
		} {
			past, blob := f.Stats().PassedThrough, fresh(1000)
			r, took, err := open(name, blob, behaviour{}, req)
			check(name, blob, r, err)
			if took > 0 || f.Stats().PassedThrough != past {
				t.Errorf("%s: waited %v or passed", name, took)
			}
		}
		// A blob that the store keeps waits.
		if _, took, err := open("slow.test", fresh(10), behaviour{}, Request{Proven: true}); !errors.Is(err, ErrBusy) || took != f.cfg.Queue {
			t.Errorf("to be kept: %v after %v", err, took)
		}
		close(stuck)
	})
}

// The source of a request that passes refuses it: without proof that is the
// answer; with proof the request waits for the other nodes.
func TestPassRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 100, Config{Flights: 1})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: make(chan struct{})} }
		held := f.open(0)
		defer held.Close()
		no := errors.New("403")
		o := &origin{key: "o", blob: randomBytes(10), script: func(int, int64) behaviour { return behaviour{err: no} }}
		req := Request{Digest: digest.FromBytes(o.blob), Source: o, MayPass: true}
		if _, err := f.Open(t.Context(), req); !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
		req.Proven = true
		if _, err := f.Open(t.Context(), req); !errors.Is(err, ErrBusy) {
			t.Errorf("got %v", err)
		}
	})
}
