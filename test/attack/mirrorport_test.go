package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/registry"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/rig"
)

// ample is how much memory a process under attack may take beyond what it took
// before, in bytes.
const ample = 256 << 20

// longest makes a manifest of the largest size that is taken, of layers alone if
// full is set, else padded.
func longest(t *testing.T, full bool) []byte {
	t.Helper()
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Annotations: map[string]string{}}
	m.SchemaVersion = 2
	m.Config = v1.Descriptor{MediaType: "x", Digest: digest.FromString("config"), Size: 1}
	m.Layers = []v1.Descriptor{}
	if full {
		for i := range 33000 {
			m.Layers = append(m.Layers, v1.Descriptor{MediaType: "x", Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Annotations["pad"] = strings.Repeat("x", max(0, registry.MaxManifestSize-len(b)-64))
	if b, err = json.Marshal(m); err != nil || len(b) > registry.MaxManifestSize {
		t.Fatal(len(b), err)
	}
	return b
}

// Clients that ask for the longest manifests and do not read them do not fill the
// memory, however they ask, and others are served meanwhile.
func TestManifestsDoNotFillTheMemory(t *testing.T) {
	o := registrytest.New(t)
	var long []digest.Digest
	for _, full := range []bool{false, true} {
		long = append(long, o.AddManifest("app", fmt.Sprintf("long-%v", full), v1.MediaTypeImageManifest, longest(t, full)))
	}
	image := o.AddImage("app", "small", noise(1, 1<<20))
	d := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{at(o)}, Args: []string{"--auth", "open"}})
	pull := func() []rig.Result {
		m := d.Manifest(upstream, "app", image.Manifest.Digest.String())
		return []rig.Result{m, d.Blob(upstream, "app", image.Layers[0].Digest)}
	}
	first := pull()
	idle := d.PeakMemory()
	began := time.Now()
	second := pull()
	base := time.Since(began)
	rig.AllRight(t, append(first, second...))

	ask := func(i int) string {
		path := "manifests/" + long[i%2].String()
		header := ""
		if i%8 >= 6 { // of another caller each, so that each asks what the tag is
			path, header = fmt.Sprintf("manifests/long-%v", i%2 == 1), fmt.Sprintf("Authorization: Bearer caller-%d\r\n", i)
		}
		return "GET /v2/app/" + path + "?ns=" + upstream + " HTTP/1.1\r\nHost: " + d.Mirror + "\r\n" + header + "\r\n"
	}
	const count, batch = 400, 40
	for i := 0; i < count; i += batch {
		var conns []net.Conn
		for k := range batch {
			c, err := net.Dial("tcp", d.Mirror)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if _, err := io.WriteString(c, ask(i+k)); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		for _, c := range conns { // the answer has begun
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.ReadFull(c, make([]byte, 12)); err != nil {
				t.Errorf("no answer: %v", err)
			}
		}
		if took := d.PeakMemory() - idle; took > ample {
			t.Fatalf("%d connections take %d MiB more than none, should take at most %d", i+batch, took>>20, ample>>20)
		}
	}
	began = time.Now()
	rig.AllRight(t, pull())
	took := time.Since(began)
	t.Logf("%d connections take %d MiB; a pull takes %v beside them, %v without", count, (d.PeakMemory()-idle)>>20, took, base)
	if limit := twice(base); took > limit {
		t.Errorf("the pull took %v, should take at most %v", took, limit)
	}
}

// Connections that ask for nothing keep nobody out: neither those that say
// nothing, nor those that never finish a request, nor those that are idle.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	const most = 512
	get := func(d *rig.Daemon) string {
		return "GET /v2/ HTTP/1.1\r\nHost: " + d.Mirror + "\r\n"
	}
	for name, say := range map[string]func(d *rig.Daemon, c net.Conn){
		"nothing":        func(*rig.Daemon, net.Conn) {},
		"half a request": func(d *rig.Daemon, c net.Conn) { _, _ = io.WriteString(c, get(d)) },
		"one request":    func(d *rig.Daemon, c net.Conn) { _, _ = io.WriteString(c, get(d)+"\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			o := registrytest.New(t)
			d := rig.StartDaemon(t, rig.DaemonConfig{
				Registries: []string{at(o)}, Args: []string{"--auth", "open", "--max-connections", fmt.Sprint(most)},
			})
			digest := o.AddBlob("app", noise(1, 1000))
			base := d.Blob(upstream, "app", digest)
			idle := d.PeakMemory()
			until(t, crowd(t, most+most/2, "127.0.0.1", d.Mirror, func(ctx context.Context, c net.Conn) {
				say(d, c)
				sayNothing(ctx, c)
			}), most+most/2)
			for range 3 {
				// While all places are taken by requests that are being answered,
				// a pull is refused; but at once, so that the runtime goes on.
				rig.Eventually(t, "a pull is served beside them", 10*time.Second, func() error {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					defer cancel()
					under := d.Do(ctx, rig.Request{Host: upstream, Path: "app/blobs/" + digest.String(), Digest: digest})
					if under.Time > twice(base.Time) {
						t.Errorf("a pull beside them: %v; without: %v", under, base)
					}
					if !under.Right {
						return fmt.Errorf("%v", under)
					}
					return nil
				})
			}
			if err := d.Ready(); err != nil {
				t.Errorf("not ready, although pulls are served: %v", err)
			}
			if took := d.PeakMemory() - idle; took > ample {
				t.Errorf("they take %d MiB", took>>20)
			}
		})
	}
}
