package rows

import (
	"context"
	"fmt"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/report"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// Row 5 asks what a node that is alone pays for Shoal: a cold pull through the
// daemon beside the same pull from the registry. The registry is behind a
// shaped link; daemon and client share the node on the other end.
var row5 = Row{
	ID:    5,
	Title: "one node alone, cold: time / direct pull",
	Root:  true,
	Needs: append([]bed.Need{bed.DockerRegistry}, bed.Namespaces...),
	Lines: row5Lines,
}

const repo = swarm.Repo

// image is an image to push.
type image struct {
	tag    string
	name   string
	layers []int64
	// index: the tag is of an index.
	index bool
}

func images(large int64) []image {
	return []image{
		{tag: "one", name: "1 layer of " + size(large), layers: []int64{large}},
		// About as in real images: a base, an interpreter, dependencies, and
		// many small steps.
		{tag: "mixed", name: "12 layers of 1 KiB to " + size(large/4), layers: []int64{
			large / 8, 1 << 10, large / 4, 64 << 10, 1 << 20, large / 16, 512 << 10, 3 << 20, 10 << 10, large / 32, 256 << 10, 5 << 20,
		}},
	}
}

func row5Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	rate := o.rate(200)
	root, err := b.NewDir("images")
	if err != nil {
		return nil, err
	}
	// Pushed by loopback, served from the same directory on both ways.
	local, err := b.StartRegistry(bed.Here, root)
	if err != nil {
		return nil, err
	}
	list := images(o.Layer)
	for i, img := range list {
		if _, err := img.push(ctx, "http://"+local.Addr, uint64(i)); err != nil {
			return nil, err
		}
	}
	nw, err := b.Network()
	if err != nil {
		return nil, err
	}
	server, err := nw.Add(rate)
	if err != nil {
		return nil, err
	}
	node, err := nw.Add(0)
	if err != nil {
		return nil, err
	}
	far, err := b.StartRegistry(bed.At(server), root)
	if err != nil {
		return nil, err
	}
	var lines []Line
	for _, img := range list {
		lines = append(lines, Line{Name: fmt.Sprintf("%s, %v", img.name, rate), Unit: "s", Goal: atMost(1.03), Contenders: []Contender{
			{Name: "shoal, cold", Measure: coldPull(b, bed.At(node), far.Addr, img.tag)},
			{Name: "direct", Measure: directPull(bed.At(node), far.Process, far.Addr, img.tag)},
		}})
	}
	for _, img := range list {
		lines = append(lines, Line{Name: img.name + ", loopback", Unit: "s", Contenders: []Contender{
			{Name: "shoal, cold", Measure: coldPull(b, bed.Here, local.Addr, img.tag)},
			{Name: "direct", Measure: directPull(bed.Here, local.Process, local.Addr, img.tag)},
		}})
	}
	return lines, nil
}

// push pushes the image to a base URL. Its bytes follow from the seed.
func (img image) push(ctx context.Context, base string, seed uint64) (load.Pushed, error) {
	layers := make([]load.Layer, len(img.layers))
	for i, n := range img.layers {
		layers[i] = load.Layer{Bytes: registrytest.Random(seed<<8 + uint64(i)), Size: n}
	}
	p, err := load.Push(ctx, base, repo, img.tag, layers...)
	if err != nil {
		return p, fmt.Errorf("pushing the image %q: %w", img.tag, err)
	}
	return p, nil
}

// coldPull pulls through a daemon that has just been started with nothing.
func coldPull(b *bed.Bed, at bed.Place, origin, tag string) func(context.Context) (report.Sample, error) {
	return func(ctx context.Context) (s report.Sample, err error) {
		d, err := b.StartDaemon(at, origin)
		if err != nil {
			return s, err
		}
		defer closing(&err, d.Discard)
		return pull(ctx, at, d.Process, d.Addr, tag)
	}
}

func directPull(at bed.Place, registry *bed.Process, addr, tag string) func(context.Context) (report.Sample, error) {
	return func(ctx context.Context) (report.Sample, error) { return pull(ctx, at, registry, addr, tag) }
}

// pull pulls from a server, and notes the CPU that this took there.
func pull(ctx context.Context, at bed.Place, server *bed.Process, addr, tag string) (report.Sample, error) {
	before, err := server.CPU()
	if err != nil {
		return report.Sample{}, err
	}
	var out load.Outcome
	if err := bed.Self(ctx, at, &out, "client", "pull", "http://"+addr, repo, tag); err != nil {
		return report.Sample{}, err
	}
	after, err := server.CPU()
	if err != nil {
		return report.Sample{}, err
	}
	return report.Sample{Value: out.Seconds, Notes: []report.Note{
		{Name: "server cpu", Value: (after - before) / gib(out.Bytes), Unit: "s/GiB"},
		{Name: "rate", Value: float64(out.Bytes) * 8 / 1e6 / out.Seconds, Unit: "Mbit/s"},
	}}, nil
}
