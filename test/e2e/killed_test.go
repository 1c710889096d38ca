package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// TestDaemonKilledAgainAndAgain kills the daemon at moments chosen at random, by
// bytes delivered and not by time, in a loop of pulls on one data directory. No
// wrong body is ever delivered whole, what was held is held after the restart,
// and what was cut off is finished in the end.
func TestDaemonKilledAgainAndAgain(t *testing.T) {
	const (
		rounds = 15
		// enough ends the loop early on a slow machine.
		enough = 40 * time.Second
		seed   = 20261120
	)
	// Of one piece, of a few, of many; every round has some of its own.
	sizes := []int{100, 40 << 10, 700 << 10, 3 << 20}
	random := rand.New(rand.NewPCG(seed, 0))
	var contents [][]byte
	for i := range rounds * len(sizes) {
		contents = append(contents, noiseBytes(byte(i), sizes[i%len(sizes)]+i))
	}
	b := bedWithBlobs(t, DaemonConfig{}, contents...)

	held := make(map[string]Descriptor)    // complete and durable, as far as one can see
	pending := make(map[string]Descriptor) // asked for, not yet held
	deadline := time.Now().Add(enough)
	done, kept, again := 0, 0, 0
	for ; done < rounds && time.Now().Before(deadline); done++ {
		for _, d := range b.blobs[done*len(sizes) : (done+1)*len(sizes)] {
			pending[d.Digest] = d
		}
		// The last quarter of the range is after the end of all bodies.
		var total int64
		for _, d := range pending {
			total += d.Size
		}
		delivered := b.pullUntilKilled(t, slices.Collect(maps.Values(pending)), random.Int64N(total+total/3))
		b.daemon.Restart(t)

		b.registry.Origin.Reset(t)
		if err := b.client().CheckBlobs(t.Context(), slices.Collect(maps.Values(held))...); err != nil {
			t.Fatalf("round %d: after the restart: %v", done, err)
		}
		if asked := b.registry.Origin.Requests(t, ForContent); len(asked) > 0 {
			t.Fatalf("round %d: the origin was asked for what had been held, first %v", done, asked[0])
		}
		// What came whole just before the kill is kept if it was durable by then.
		if err := b.client().CheckBlobs(t.Context(), delivered...); err != nil {
			t.Fatalf("round %d: after the restart: %v", done, err)
		}
		Eventually(t, "nothing is in flight", time.Minute, func() error {
			n, err := b.daemon.Metric("shoal_blobs_in_flight")
			if err == nil && n != 0 {
				err = fmt.Errorf("%v are", n)
			}
			return err
		})
		for _, d := range delivered {
			if len(b.registry.Origin.Requests(t, ForBlob(d.Digest))) > 0 {
				again++
			} else {
				kept++
			}
			delete(pending, d.Digest)
			held[d.Digest] = d
		}
	}
	if done < rounds/3 {
		t.Errorf("only %d rounds in %v", done, enough)
	}
	if err := b.client().CheckBlobs(t.Context(), slices.Collect(maps.Values(pending))...); err != nil {
		t.Errorf("in the end: %v", err)
	}
	t.Logf("killed %d times (seed %d): of the blobs that had just come whole %d were kept, %d fetched again; %d were cut off until the end",
		done, seed, kept, again, len(pending))
}

// pullUntilKilled pulls blobs at once, kills the daemon when that many bytes
// have been delivered in total, or all there are, and returns the blobs that
// came whole. It fails the test if one of them is not what it should be.
func (b *blobBed) pullUntilKilled(t *testing.T, blobs []Descriptor, after int64) []Descriptor {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	var counted atomic.Int64
	reached := make(chan struct{})
	count := func(n int) {
		if total := counted.Add(int64(n)); total >= after && total-int64(n) < after {
			close(reached)
		}
	}
	client := crowdClient()
	client.Transport = countingTransport{client.Transport, count}
	type result struct {
		blob Descriptor
		err  error
	}
	results := make(chan result, len(blobs))
	for _, blob := range blobs {
		go func() { results <- result{blob, getOne(ctx, client, b.blobURL(blob), blob)} }()
	}
	var whole []Descriptor
	killed := false
	kill := func() {
		if !killed {
			killed = true
			b.daemon.Kill()
		}
	}
	for range blobs {
		var r result
		select {
		case <-reached:
			kill()
			r = <-results
		case r = <-results:
		}
		switch {
		case r.err == nil:
			whole = append(whole, r.blob)
		case errors.Is(r.err, errWrongBody):
			t.Fatal(r.err)
		case !killed && after > counted.Load():
			t.Fatalf("before the daemon was killed: %v", r.err)
		}
	}
	kill()
	return whole
}
