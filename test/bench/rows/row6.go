package rows

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/report"
)

// Row 6 asks what a blob that is on the node costs to serve, beside nginx with
// sendfile. Both files are on the same disk and in memory; the client throws
// away what comes, in the kernel, on the same machine.
var row6 = Row{
	ID:    6,
	Title: "cache hit on the node: throughput / nginx serving the same file",
	Needs: []bed.Need{bed.Nginx},
	Lines: row6Lines,
}

func row6Lines(ctx context.Context, b *bed.Bed, o Options) ([]Line, error) {
	const name = "blob"
	root, err := b.NewDir("files")
	if err != nil {
		return nil, err
	}
	bytes := registrytest.Random(6)
	if err := writeFile(filepath.Join(root, name), bytes, o.Layer); err != nil {
		return nil, err
	}
	origin, err := registrytest.Start()
	if err != nil {
		return nil, err
	}
	b.Defer(func() error { origin.Close(); return nil })
	d, err := registrytest.Digest(bytes, o.Layer)
	if err != nil {
		return nil, err
	}
	origin.AddVirtual(repo, d, bytes, o.Layer)
	daemon, err := b.StartDaemon(bed.Here, origin.Host())
	if err != nil {
		return nil, err
	}
	nginx, err := b.StartNginx(bed.Here, root)
	if err != nil {
		return nil, err
	}
	ours, theirs := fmt.Sprintf("/v2/%s/blobs/%s", repo, d), "/"+name
	// The first fills the cache, the second is a hit; nginx's file is in
	// memory since it was written.
	for range 2 {
		if _, err := load.Discard(ctx, daemon.Addr, ours, 1, 0); err != nil {
			return nil, fmt.Errorf("filling the cache: %w", err)
		}
	}
	if sent := origin.Sent(d); sent != o.Layer {
		return nil, fmt.Errorf("the origin has sent %d bytes of a layer of %d: not a cache hit", sent, o.Layer)
	}
	var lines []Line
	for _, conns := range o.Connections {
		lines = append(lines, Line{Name: fmt.Sprintf("%s, connections: %d", size(o.Layer), conns), Unit: "GiB/s", Goal: atLeast(0.95), Contenders: []Contender{
			{Name: "shoal", Measure: throughput(daemon.Process, daemon.Addr, ours, conns, o)},
			{Name: "nginx", Measure: throughput(nginx.Process, nginx.Addr, theirs, conns, o)},
		}})
	}
	return lines, nil
}

func throughput(server *bed.Process, addr, path string, conns int, o Options) func(context.Context) (report.Sample, error) {
	return func(ctx context.Context) (report.Sample, error) {
		before, err := server.CPU()
		if err != nil {
			return report.Sample{}, err
		}
		var out struct {
			load.Outcome
			CPU float64 `json:"cpu"`
		}
		if err := bed.Self(ctx, bed.Here, &out, "client", "discard", addr, path, fmt.Sprint(conns), o.HitTime.String()); err != nil {
			return report.Sample{}, err
		}
		after, err := server.CPU()
		if err != nil {
			return report.Sample{}, err
		}
		return report.Sample{Value: gib(out.Bytes) / out.Seconds, Notes: []report.Note{
			{Name: "server cpu", Value: (after - before) / gib(out.Bytes), Unit: "s/GiB"},
			{Name: "client cpu", Value: out.CPU / gib(out.Bytes), Unit: "s/GiB"},
		}}, nil
	}
}

func writeFile(path string, bytes io.ReaderAt, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, io.NewSectionReader(bytes, 0, size)); err != nil {
		f.Close()
		return fmt.Errorf("writing %s: %w", path, err)
	}
	// Dirty pages would be written while others are measured.
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
