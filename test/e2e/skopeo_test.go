package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mirrored is a registries.conf: upstream, its server, the mirror.
const mirrored = `[[registry]]
prefix = %[1]q
location = %[2]q
insecure = true
[[registry.mirror]]
location = "%[3]s/%[1]s"
insecure = true
`

// TestSkopeo pulls with containers/image, which podman and CRI-O are made of.
// It sends no ns: the upstream is the first element of the path, or unnamed.
func TestSkopeo(t *testing.T) {
	cases := []struct {
		name string
		ref  func(b *bed) string
		// conf is registries.conf.
		conf func(b *bed) string
	}{
		{"upstream in the path", func(b *bed) string {
			return b.daemon.Addr + "/" + byTag()
		}, nil},
		{"default upstream", func(b *bed) string {
			return b.daemon.Addr + "/" + repository + ":" + tag
		}, nil},
		{"mirror in registries.conf, by tag", func(b *bed) string {
			return byTag()
		}, func(b *bed) string {
			return fmt.Sprintf(mirrored, upstream, b.registry.Direct.Addr, b.daemon.Addr)
		}},
		{"mirror in registries.conf, by digest", func(b *bed) string {
			return b.byDigest()
		}, func(b *bed) string {
			return fmt.Sprintf(mirrored, upstream, b.registry.Direct.Addr, b.daemon.Addr)
		}},
	}
	skopeo := NeedProgram(t, "skopeo", "skopeo")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, MultiPlatform)
			conf := ""
			if c.conf != nil {
				conf = c.conf(b)
			}
			global := []string{"--insecure-policy", "--registries-conf", b.node.Write(t, conf, "registries.conf")}

			// The index itself is compared as it comes: copying it, skopeo 1.9
			// writes another one in its place, without its mediaType.
			raw, err := b.node.Run(skopeo, slices.Concat(global, []string{"inspect", "--raw", "--tls-verify=false", "docker://" + c.ref(b)})...)
			if err != nil {
				t.Fatal(err)
			}
			if got := digestOf([]byte(raw)); got != b.image.Digest {
				t.Errorf("%s is %s, want %s", c.ref(b), got, b.image.Digest)
			}
			layout := b.node.Path("layout")
			_, err = b.node.Run(skopeo, slices.Concat(global, []string{"copy", "--all", "--src-tls-verify=false",
				"docker://" + c.ref(b), "oci:" + layout + ":" + tag})...)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkLayout(layout, slices.Concat(b.image.Manifests[1:], b.image.AllBlobs)); err != nil {
				t.Error(err)
			}
			b.nothingWentPast(t)
			b.originSentOnce(t)
		})
	}
}

// checkLayout fails unless an OCI layout holds all of the content, and each file
// has the sha256 that it is named by.
func checkLayout(dir string, content []Descriptor) error {
	for _, d := range content {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", strings.ReplaceAll(d.Digest, ":", "/")))
		if err != nil {
			return err
		}
		if got := digestOf(b); got != d.Digest {
			return fmt.Errorf("the layout holds %s under the name %s", got, d.Digest)
		}
	}
	return nil
}
