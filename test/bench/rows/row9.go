package rows

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/report"
)

// Row 9 asks how much memory a daemon needs for a layer that is far larger. The
// origin makes up its bytes, all zero; the client throws them away. A layer
// that is larger than the store's quota passes through, one that is not goes
// over the disk.
var row9 = Row{
	ID:    9,
	Title: "peak memory of a daemon through a large layer",
	Lines: row9Lines,
}

// memoryGoal is in MiB.
const memoryGoal = 128

func row9Lines(_ context.Context, b *bed.Bed, o Options) ([]Line, error) {
	var lines []Line
	// The flag's default would pass 16 GiB, but says so nowhere in the result.
	if o.Stored > 0 {
		lines = append(lines, Line{Name: size(o.Stored) + " into the store", Unit: "MiB", Runs: 1, Goal: atMost(memoryGoal), Contenders: []Contender{
			{Name: "shoal", Measure: memory(b, o.Stored, fmt.Sprint(o.Stored+o.Stored/4))},
		}})
	}
	if o.Passing > 0 {
		lines = append(lines, Line{Name: size(o.Passing) + " past the store", Unit: "MiB", Runs: 1, Goal: atMost(memoryGoal), Contenders: []Contender{
			{Name: "shoal", Measure: memory(b, o.Passing, fmt.Sprint(o.Passing/4))},
		}})
	}
	return lines, nil
}

// memory measures a pull through a daemon whose store has a quota.
func memory(b *bed.Bed, layer int64, quota string) func(context.Context) (report.Sample, error) {
	return func(ctx context.Context) (s report.Sample, err error) {
		d, err := zerosDigest(layer)
		if err != nil {
			return s, err
		}
		origin, err := registrytest.Start()
		if err != nil {
			return s, err
		}
		defer origin.Close()
		origin.AddVirtual(repo, d, registrytest.Zeros{}, layer)
		daemon, err := b.StartDaemon(bed.Here, origin.Host(), "--cache-size", quota)
		if err != nil {
			return s, err
		}
		defer closing(&err, daemon.Discard)
		start := time.Now()
		out, err := load.Discard(ctx, daemon.Addr, fmt.Sprintf("/v2/%s/blobs/%s", repo, d), 1, 0)
		if err != nil {
			return s, fmt.Errorf("after %v: %w", time.Since(start), err)
		}
		if out.Bytes != layer {
			return s, fmt.Errorf("got %d bytes of a layer of %d", out.Bytes, layer)
		}
		peak, err := daemon.PeakMemory()
		if err != nil {
			return s, err
		}
		cpu, err := daemon.CPU()
		if err != nil {
			return s, err
		}
		return report.Sample{Value: float64(peak) / (1 << 20), Notes: []report.Note{
			{Name: "rate", Value: gib(out.Bytes) / out.Seconds, Unit: "GiB/s"},
			{Name: "cpu", Value: cpu / gib(out.Bytes), Unit: "s/GiB"},
			{Name: "origin sent", Value: float64(origin.Sent(d)) / float64(layer), Unit: "layers"},
			{Name: "in", Value: float64(origin.Count(registrytest.Blob)), Unit: "requests"},
			{Name: "longest silence", Value: out.Silence, Unit: "s"},
		}}, nil
	}
}

// zeros are the sha256 digests of so many zero bytes. Computing that of
// 100 GiB takes a minute or more; a test computes a small one, and a wrong one
// would make the daemon refuse the layer.
var zeros = map[int64]digest.Digest{
	64 << 20:  "sha256:3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351",
	4 << 30:   "sha256:8479e43911dc45e89f934fe48d01297e16f51d17aa561d4d1c216b1ae0fcddca",
	16 << 30:  "sha256:07d217ebccc55480b7afa191674ec5da87f2d14efbc04dbc7e40efe345f16776",
	100 << 30: "sha256:f0b14a8da7f1c48a0846647a078b97956edd8df451a62fc4b466879aa24d4fd7",
}

func zerosDigest(n int64) (digest.Digest, error) {
	if d, ok := zeros[n]; ok {
		return d, nil
	}
	return registrytest.Digest(registrytest.Zeros{}, n)
}
