package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

const MiB = 1 << 20

func TestOneDownloadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 2*MiB+123, Config{})
		gate := make(chan struct{})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: gate} }
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(f.readAll)
		}
		synctest.Wait() // all have boarded
		close(gate)
		wg.Wait()
		if calls := f.origin.calls(); len(calls) != 1 || f.origin.bytes() != int64(len(f.blob)) {
			t.Errorf("origin was asked %v and sent %d bytes", calls, f.origin.bytes())
		}
		synctest.Wait()
		if !f.stored() {
			t.Error("blob is not in the store")
		}
		f.readAll()
		if s := f.Stats(); s.Starts != 1 || s.Joins != 29 || s.Hits != 1 || s.OriginBytes != int64(len(f.blob)) || s.Flights != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// Bytes flow while the origin still sends, but the last piece waits for the
// digest.
func TestStreamsAndHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		gate := make(chan struct{})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: gate} }
		r := f.open(0)
		defer r.Close()
		gate <- struct{}{}
		f.read(r, 0, 64<<10) // not even a piece
		for range 11 {
			gate <- struct{}{}
		}
		f.read(r, 64<<10, 768<<10)
		for range 3 {
			gate <- struct{}{}
		}
		synctest.Wait()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.read(r, 768<<10, MiB)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("the last piece was delivered before the blob was verified")
		default:
		}
		gate <- struct{}{}
		<-done
	})
}

func TestWrongBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, flip := range []int64{1, MiB / 2, MiB - 1} {
			f := newFixture(t, MiB, Config{BadFor: time.Minute})
			f.origin.script = func(n int, _ int64) behaviour {
				if n < 2 {
					return behaviour{flip: flip}
				}
				return behaviour{}
			}
			for round := range 2 {
				n, err := f.tryAll()
				var bad *BadBlobError
				if !errors.As(err, &bad) || n >= MiB || !strings.Contains(err.Error(), f.digest.String()) || !strings.Contains(err.Error(), "origin") {
					t.Fatalf("flip at %d: %d bytes delivered, %v", flip, n, err)
				}
				synctest.Wait()
				if f.stored() {
					t.Fatal("a wrong blob was kept")
				}
				if _, pending := f.mem.Pending(f.digest); pending {
					t.Fatal("wrong pieces were kept")
				}
				// For a while the origin is not asked again.
				_, err = f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin, Proven: true})
				if !errors.As(err, &bad) || len(f.origin.calls()) != round+1 {
					t.Fatalf("asked again at once: %v, %v", err, f.origin.calls())
				}
				time.Sleep(time.Minute << round)
			}
			f.readAll()
		}
	})
}

func TestStartsAtTheOffsetWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 40*MiB, Config{})
		r := f.open(33 * MiB)
		f.read(r, 33*MiB, 40*MiB) // only complete once the beginning came too
		r.Close()
		if calls := f.origin.calls(); !slices.Equal(calls, []int64{32 * MiB, 0}) {
			t.Errorf("origin was asked for %v", calls)
		}
		if f.origin.bytes() != 40*MiB {
			t.Errorf("origin sent %d bytes", f.origin.bytes())
		}
		f.readAll()
	})
}

// A reader far ahead gets a stream of its own; no byte is fetched twice.
func TestReaderFarAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 100*MiB, Config{Workers: 3})
		gates := []chan struct{}{make(chan struct{}), make(chan struct{}), make(chan struct{})}
		f.origin.script = func(n int, _ int64) behaviour {
			if n < len(gates) {
				return behaviour{gate: gates[n]}
			}
			return behaviour{}
		}
		first := f.open(0)
		defer first.Close()
		var wg sync.WaitGroup
		for _, off := range []int64{8 * MiB, 60 * MiB, 60*MiB + 5, 30 * MiB, 90 * MiB} {
			r := f.open(off)
			wg.Go(func() {
				defer r.Close()
				f.read(r, off, off+MiB)
			})
			synctest.Wait()
		}
		if calls := f.origin.calls(); !slices.Equal(calls, []int64{0, 60 * MiB, 30 * MiB}) {
			t.Errorf("origin was asked for %v", calls)
		}
		for _, g := range gates {
			close(g)
		}
		f.read(first, 0, 100*MiB)
		wg.Wait()
		if f.origin.bytes() != 100*MiB {
			t.Errorf("origin sent %d bytes", f.origin.bytes())
		}
	})
}

func TestOriginWithoutRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 40*MiB, Config{})
		f.origin.script = func(int, int64) behaviour { return behaviour{noRanges: true} }
		r := f.open(33 * MiB)
		defer r.Close()
		f.read(r, 33*MiB, 40*MiB)
		if calls := f.origin.calls(); len(calls) != 1 || f.origin.bytes() != 40*MiB {
			t.Errorf("origin was asked %v and sent %d bytes", calls, f.origin.bytes())
		}
	})
}

// What a download that nobody wanted any more has brought is not fetched
// again.
func TestLastReaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4*MiB, Config{Linger: 2 * time.Second})
		gate := make(chan struct{})
		f.origin.script = func(n int, _ int64) behaviour {
			if n == 0 {
				return behaviour{gate: gate}
			}
			return behaviour{}
		}
		r := f.open(0)
		for range 34 { // two MiB and a bit
			gate <- struct{}{}
		}
		f.read(r, 0, 2*MiB)
		r.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if f.Stats().Flights != 1 {
			t.Fatal("the flight did not linger")
		}
		f.open(0).Close() // comes back, and leaves
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if f.Stats().Flights != 1 {
			t.Fatal("the flight ended although a reader came back")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if f.Stats().Flights != 0 {
			t.Fatal("the flight goes on without readers")
		}
		f.readAll()
		if calls := f.origin.calls(); !slices.Equal(calls, []int64{0, 2 * MiB}) {
			t.Errorf("origin was asked for %v", calls)
		}
	})
}

// All pieces are left from before, and only the digest is to be verified: the
// origin need not be asked.
func TestAllPiecesAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		p, err := f.mem.Partial(f.digest, MiB)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Layout().Count() {
			w, err := p.Piece(i)
			if err != nil {
				t.Fatal(err)
			}
			off, n := p.Layout().Span(i)
			if _, err := w.Write(f.blob[off : off+n]); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin}); !errors.Is(err, ErrUnproven) {
			t.Errorf("without proof: %v", err)
		}
		f.readAll()
		synctest.Wait()
		if len(f.origin.calls()) != 0 || !f.stored() {
			t.Errorf("origin was asked %v, stored %v", f.origin.calls(), f.stored())
		}
	})
}

func TestEmptyBlobAndSHA512(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 0, Config{})
		f.readAll()
		f = newFixture(t, MiB, Config{})
		f.digest = digest.SHA512.FromBytes(f.blob)
		f.readAll()
		synctest.Wait()
		if !f.stored() {
			t.Error("sha512 blob is not in the store")
		}
		// Nothing is not what the digest says.
		f.origin.blob = nil
		f.digest = digest.FromString("something")
		r, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin, Proven: true})
		if err == nil {
			err = errors.Join(r.Wait(t.Context(), 0), r.Close())
		}
		if bad := (*BadBlobError)(nil); !errors.As(err, &bad) {
			t.Errorf("an empty body passes for %s: %v", f.digest, err)
		}
	})
}

func TestRotInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4*MiB, Config{})
		f.readAll()
		synctest.Wait()
		if !f.mem.Corrupt(f.digest, 3*MiB) {
			t.Fatal("nothing to corrupt")
		}
		f.readAll()
		if n := len(f.origin.calls()); n != 2 {
			t.Errorf("origin was asked %d times", n)
		}
		f.readAll()
		if n := len(f.origin.calls()); n != 2 {
			t.Errorf("the fresh copy was not kept: origin was asked %d times", n)
		}
	})
}

func TestStoreTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4*MiB, Config{})
		f.mem.FailWrites(0, errors.New("disk full"))
		f.readAll()
		if n := len(f.origin.calls()); n != 1 {
			t.Errorf("origin was asked %d times for one reader", n)
		}
		r := f.open(3 * MiB)
		f.read(r, 3*MiB, 3*MiB+10)
		f.read(r, 4*MiB-10, 4*MiB)
		r.Close()
		// In portions, as a mirror asks, it is one stream all the same.
		before := len(f.origin.calls())
		r = f.open(0)
		for off := int64(0); off < 4*MiB; off += MiB / 2 {
			f.read(r, off, off+MiB/2)
		}
		r.Close()
		if n := len(f.origin.calls()) - before; n != 1 {
			t.Errorf("origin was asked %d times for one reader in portions", n)
		}
		// Wrong bytes are not delivered this way either.
		f.origin.script = func(int, int64) behaviour { return behaviour{flip: 5} }
		n, err := f.tryAll()
		if bad := (*BadBlobError)(nil); !errors.As(err, &bad) || n >= 4*MiB {
			t.Errorf("%d bytes delivered, %v", n, err)
		}
		if f.Stats().PassedThrough != 4 {
			t.Errorf("stats %+v", f.Stats())
		}
	})
}

// Who begins far into a blob that passes through gets what it asks for, but
// not its end: nobody could tell whether that is right.
func TestPassThroughFromTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 40*MiB, Config{})
		f.mem.FailWrites(0, errors.New("disk full"))
		r := f.open(30 * MiB)
		defer r.Close()
		f.read(r, 30*MiB, 39*MiB)
		if n, err := r.CopyRange(t.Context(), io.Discard, 39*MiB, MiB); err == nil || n != 0 {
			t.Errorf("%d bytes of an end that was not verified, %v", n, err)
		}
		if sent := f.origin.bytes(); sent > 10*MiB {
			t.Errorf("origin sent %d bytes", sent)
		}
	})
}

func TestStoreFailsOnTheWay(t *testing.T) {
	for _, writes := range []int{1, 2, 7, 15, 30, 60} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, 4*MiB, Config{})
			f.mem.FailWrites(writes, errors.New("disk full"))
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(f.readAll)
			}
			wg.Wait()
			if f.stored() {
				t.Error("stored although writes fail")
			}
			if sent := f.origin.bytes(); sent > 6*5*MiB {
				t.Errorf("origin sent %d bytes", sent)
			}
		})
	}
}

var errRefused = errors.New("refused")

func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4*MiB, Config{})
		gate := make(chan struct{})
		// A's token expires half way. B's is good.
		f.origin.key = "A"
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: gate, cut: 2*MiB + 100} }
		a := f.open(0)
		defer a.Close()
		other := &origin{key: "B", blob: f.blob}
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: other}); !errors.Is(err, ErrUnproven) {
			t.Fatalf("a caller without proof was let on board: %v", err)
		}
		b, err := f.Open(t.Context(), Request{Digest: f.digest, Source: other, Whole: true, Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		close(gate)
		if n, err := a.CopyRange(t.Context(), io.Discard, 0, a.Size()); !errors.Is(err, errCut) || n >= a.Size() {
			t.Errorf("A got %d bytes, %v", n, err)
		}
		f.read(b, 0, b.Size())
		if !slices.Equal(other.calls(), []int64{2*MiB + 100}) {
			t.Errorf("B's origin was asked for %v", other.calls())
		}
		synctest.Wait()
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: other}); !errors.Is(err, ErrUnproven) {
			t.Errorf("a caller without proof got what is stored: %v", err)
		}
	})
}

func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		f.origin.script = func(int, int64) behaviour { return behaviour{err: errRefused} }
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin}); !errors.Is(err, errRefused) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		f.origin.script = nil
		f.readAll()
	})
}

// A caller whose own source is refused gets the refusal, even while others
// get the blob.
func TestRefusedBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		asked, gate := make(chan struct{}), make(chan struct{})
		refused := &slowOpen{origin: &origin{key: "A"}, asked: asked, gate: gate}
		errs := make(chan error)
		go func() {
			_, err := f.Open(t.Context(), Request{Digest: f.digest, Source: refused})
			errs <- err
		}()
		<-asked
		var wg sync.WaitGroup
		wg.Go(f.readAll)
		synctest.Wait()
		close(gate)
		if err := <-errs; !errors.Is(err, errRefused) {
			t.Errorf("got %v", err)
		}
		wg.Wait()
	})
}

// A caller that comes when a flight has just failed by another source's
// refusal does not get that refusal: its own source was never asked.
func TestRefusalIsNotForThoseWhoCameTooLate(t *testing.T) {
	f := newFixture(t, MiB, Config{})
	fl := newFlight(f.Fetcher, f.digest, func() {})
	refused := fl.add(Request{Source: &origin{key: "A"}})
	refused.asked, refused.err = true, errRefused
	late, err := fl.join(Request{Source: &origin{key: "B"}, Proven: true})
	if err != nil {
		t.Fatal(err)
	}
	fl.over, fl.err = true, errRefused
	close(fl.gone)
	if _, err := fl.begun(t.Context(), late, true); !errors.Is(err, errGone) {
		t.Errorf("got %v, want to be asked to come again", err)
	}
	if _, err := fl.begun(t.Context(), refused, false); !errors.Is(err, errRefused) {
		t.Errorf("the one that was refused got %v", err)
	}
}

type slowOpen struct {
	*origin
	asked, gate chan struct{}
}

func (s *slowOpen) Open(context.Context, digest.Digest, int64, int64) (Stream, error) {
	close(s.asked)
	<-s.gate
	return nil, errRefused
}

func TestSourcesDisagreeOnSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 4*MiB, Config{})
		f.origin.script = func(n int, _ int64) behaviour {
			if n == 0 {
				return behaviour{cut: MiB}
			}
			return behaviour{size: 5 * MiB}
		}
		if n, err := f.tryAll(); err == nil || n >= 4*MiB {
			t.Errorf("%d bytes delivered, %v", n, err)
		}
	})
}

// Bytes that a reader has seen of a piece that then came anew, differently,
// must not end up in a body that passes for verified.
func TestPieceFetchedAgainDifferently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		gate := make(chan struct{})
		f.origin.key = "A"
		f.origin.script = func(int, int64) behaviour { return behaviour{flip: 10, cut: 128 << 10, gate: gate} }
		a := f.open(0)
		defer a.Close()
		good := &origin{key: "B", blob: f.blob}
		b, err := f.Open(t.Context(), Request{Digest: f.digest, Source: good, Whole: true, Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		gate <- struct{}{}
		var seen bytes.Buffer
		if _, err := b.CopyRange(t.Context(), &seen, 0, 64<<10); err != nil || bytes.Equal(seen.Bytes(), f.blob[:64<<10]) {
			t.Fatalf("the reader was to see a wrong byte: %v", err)
		}
		close(gate)
		n, err := b.CopyRange(t.Context(), io.Discard, 64<<10, b.Size()-64<<10)
		if err == nil {
			t.Fatal("a wrong body was delivered as complete")
		}
		t.Logf("reader got %d more bytes, %v", n, err)
		late, err := f.Open(t.Context(), Request{Digest: f.digest, Source: good, Whole: true, Proven: true})
		if err != nil {
			t.Fatal(err)
		}
		defer late.Close()
		f.read(late, 0, late.Size())
	})
}

func TestCloseEndsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: make(chan struct{})} }
		r := f.open(0)
		errs := make(chan error)
		go func() {
			_, err := r.CopyRange(t.Context(), io.Discard, 0, MiB)
			errs <- err
		}()
		synctest.Wait()
		f.Close()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		r.Close()
		if _, err := f.Open(t.Context(), Request{Digest: f.digest, Source: f.origin, Proven: true}); err == nil {
			t.Error("a closed Fetcher opens blobs")
		}
	})
}

func TestTooManyFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, MiB, Config{Flights: 1, Queue: time.Second})
		gate := make(chan struct{})
		f.origin.script = func(int, int64) behaviour { return behaviour{gate: gate} }
		r := f.open(0)
		blob := randomBytes(10)
		other := Request{Digest: digest.FromBytes(blob), Source: &origin{key: "o", blob: blob}, Proven: true}
		if _, err := f.Open(t.Context(), other); !errors.Is(err, ErrBusy) {
			t.Errorf("got %v", err)
		}
		close(gate)
		f.read(r, 0, MiB)
		r.Close()
		synctest.Wait()
		next, err := f.Open(t.Context(), other)
		if err != nil {
			t.Fatal(err)
		}
		next.Close()
	})
}
