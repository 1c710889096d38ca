package origin

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	rt "github.com/shoalproject/shoal/registry/registrytest"
)

// BenchmarkBlob reads 64 MiB from an origin in this process, both ends
// counted.
func BenchmarkBlob(b *testing.B) {
	const size = 64 << 20
	for name, opts := range map[string][]rt.Option{"http": nil, "https": {rt.WithTLS()}} {
		b.Run(name, func(b *testing.B) {
			o, err := rt.Start(opts...)
			if err != nil {
				b.Fatal(err)
			}
			defer o.Close()
			d := digest.FromString("not looked at")
			o.AddVirtual(repo, d, bytes.NewReader(make([]byte, size)), size)
			c, err := New(Config{Endpoints: []Endpoint{{Upstream: o.Upstream(host), RootCAs: o.RootCAs()}}})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 256<<10)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				s, err := c.Blob(context.Background(), target, d, 0, -1)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, buf); err != nil || n != size {
					b.Fatal(n, err)
				}
				s.Close()
			}
		})
	}
}
