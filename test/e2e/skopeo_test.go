package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestSkopeo pulls with containers/image, which podman and CRI-O are made of.
// It sends no ns: the upstream is the first element of the path, or unnamed.
func TestSkopeo(t *testing.T) {
	const mirrored = `[[registry]]
prefix = %[1]q
location = %[2]q
insecure = true
[[registry.mirror]]
location = "%[3]s/%[1]s"
insecure = true
`
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
			layout := b.node.Path("layout")
			// skopeo has no flag for registries.conf.d; this one names the file.
			cmd := b.node.Command(skopeo, "--insecure-policy", "--registries-conf", b.node.Write(t, conf, "registries.conf"),
				"copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--src-no-creds",
				"docker://"+c.ref(b), "oci:"+layout+":"+tag)
			if _, err := runToEnd(cmd); err != nil {
				t.Fatal(err)
			}
			if err := checkLayout(layout, b.image); err != nil {
				t.Error(err)
			}
			b.nothingWentPast(t)
			b.originSentOnce(t)
		})
	}
}

// checkLayout compares an OCI layout with an image: the digest that its index
// names, and the sha256 of every blob, of which none may be missing.
func checkLayout(dir string, want *Image) error {
	var index struct {
		Manifests []struct{ Digest string }
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return fmt.Errorf("index.json of %s: %w", dir, err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != want.Digest {
		return fmt.Errorf("the layout holds %v, want %s", index.Manifests, want.Digest)
	}
	for _, d := range slices.Concat(want.Manifests, want.AllBlobs) {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Digest[len("sha256:"):]))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		if got := "sha256:" + hex.EncodeToString(sum[:]); got != d.Digest {
			return fmt.Errorf("the layout holds %s under the name %s", got, d.Digest)
		}
	}
	return nil
}
