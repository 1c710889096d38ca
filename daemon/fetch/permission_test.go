package fetch

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/scheduler"
)

// as returns the fixture's origin in the name of another caller.
func (f *fixture) as(key string) *named { return &named{f.origin, key} }

type named struct {
	*origin
	key string
}

func (n *named) Key() string { return n.key }

// What one request says of its caller's permission proves nothing for another
// request of the same caller: that one is told to ask, unless the origin has
// opened the blob in the caller's name.
func TestAnothersWordProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2*MiB, Config{})
		gate := make(chan struct{})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: gate} }
		first, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("preheat"), Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("nobody")}); !errors.Is(err, ErrUnproven) {
			t.Errorf("another credential: %v", err)
		}
		again, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("preheat")})
		if err != nil {
			t.Fatalf("the credential that opened the blob: %v", err)
		}
		defer again.Close()
		// One that joined by its own word, and was never asked for.
		joined, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("nobody"), Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer joined.Close()
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("nobody")}); !errors.Is(err, ErrUnproven) {
			t.Errorf("by the word of another request: %v", err)
		}
		close(gate)
		synctest.Wait()
	})
}

// ledger is a cluster that has no swarm for anything and takes note of what is
// complete.
type ledger struct {
	mu     sync.Mutex
	public []bool
}

func (*ledger) Enter(digest.Digest, *Member) (Swarm, error) { return nil, errors.New("no swarm") }
func (*ledger) Accuse(digest.Digest, scheduler.PeerID)      {}
func (*ledger) Fetching(bool)                               {}
func (*ledger) Known(digest.Digest) []scheduler.Neighbour   { return nil }
func (l *ledger) Complete(_ digest.Digest, _ int64, public bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.public = append(l.public, public)
}

// A source with a credential brings nothing into a flight that may be in a
// swarm: its reader is served past the store meanwhile, or waits.
func TestCredentialStaysOutOfSwarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{}
		f := newFixture(t, 2*MiB, Config{Cluster: l})
		gate := make(chan struct{})
		f.origin.script = func(n int, _ int64) behaviour {
			if n == 0 {
				return behaviour{gate: gate}
			}
			return behaviour{}
		}
		shared, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("everyone"), Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		private := Request{Digest: f.digest, Source: f.as("alice"), Proven: true, Private: true, MayPass: true, Whole: true}
		past, err := f.Open(t.Context(), private)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := past.CopyRange(t.Context(), &got, 0, past.Size()); err != nil || !bytes.Equal(got.Bytes(), f.blob) {
			t.Errorf("past the store: %d bytes, %v", got.Len(), err)
		}
		past.Close()
		private.MayPass = false
		waiting := make(chan error, 1)
		go func() {
			r, err := f.Open(t.Context(), private)
			if err == nil {
				err = r.Close()
			}
			waiting <- err
		}()
		synctest.Wait()
		if len(waiting) > 0 || len(f.origin.calls()) != 2 {
			t.Errorf("it did not wait: %d calls at the origin", len(f.origin.calls()))
		}
		close(gate)
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		shared.Close()
		synctest.Wait()
		if !slices.Equal(l.public, []bool{true}) {
			t.Errorf("complete and public: %v", l.public)
		}
	})
}

// A part that is left of a blob that came by a credential gets into no swarm by
// a later request, unless that knows the blob to be public.
func TestPartLeftByCredentialStaysPrivate(t *testing.T) {
	for _, public := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := &ledger{}
			f := newFixture(t, 2*MiB, Config{Cluster: l})
			opened := make(chan struct{}) // else the cut may come before the reader
			f.origin.script = func(n int, _ int64) behaviour {
				if n == 0 {
					return behaviour{cut: MiB, gate: opened}
				}
				return behaviour{}
			}
			r, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("alice"), Proven: true, Private: true, Whole: true})
			if err != nil {
				t.Fatal(err)
			}
			close(opened)
			if _, err := r.CopyRange(t.Context(), &bytes.Buffer{}, 0, r.Size()); err == nil {
				t.Fatal("the origin was cut, and nothing failed")
			}
			r.Close()
			synctest.Wait()
			if _, pending := f.mem.Pending(f.digest); !pending {
				t.Fatal("nothing is left")
			}
			r, err = f.Open(t.Context(), Request{Digest: f.digest, Source: f.as("everyone"), Proven: true, Whole: true, Public: public})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.CopyRange(t.Context(), &bytes.Buffer{}, 0, r.Size()); err != nil {
				t.Error(err)
			}
			r.Close()
			synctest.Wait()
			if !slices.Equal(l.public, []bool{public}) {
				t.Errorf("complete and public: %v, want %v", l.public, public)
			}
		})
	}
}
