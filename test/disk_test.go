package test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// needRoot skips a test that mounts, and fails it in CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root to mount a small file system")
	}
	t.Skip("needs root to mount a small file system")
}

// smallDisk mounts a tmpfs of that size and returns the data directory on it.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return filepath.Join(dir, "data")
}

func flipByte(t *testing.T, file string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// A bit that rots on disk is found before it is served; the client sees only
// right bytes, in one response, and the blob is whole again.
func TestRotOnDisk(t *testing.T) {
	const size = 3 << 20
	for _, off := range []int64{0, size / 2, size - 1} {
		for _, restart := range []bool{false, true} {
			o := registrytest.New(t)
			d := o.AddBlob("app", noise(40, size))
			n := startNode(t, o)
			n.blob(d)
			n.settled()
			n.blob(d)
			if restart {
				n.stop()
			}
			flipByte(t, n.blobFile(d), off)
			if restart {
				n = run(t, n.cfg)
			}
			n.blob(d)
			if got := n.metric("shoal_store_corruptions_total"); got != "1" {
				t.Errorf("flip at %d, restart %v: %s corruptions were found", off, restart, got)
			}
			n.settled()
			n.stored(d, true)
			before := o.Count(registrytest.Blob)
			n.blob(d)
			if got := o.Count(registrytest.Blob); got != before {
				t.Errorf("flip at %d, restart %v: the fresh copy was not kept", off, restart)
			}
			n.stop()
		}
	}
}

// With the origin gone, a rotten blob is cut short where the rot begins.
func TestRotWithoutOrigin(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(41, 3<<20))
	n := startNode(t, o)
	n.blob(d)
	n.settled()
	flipByte(t, n.blobFile(d), 2<<20)
	o.Down()
	a := n.get(blobPath(d))
	n.incomplete(a)
	if want := noise(41, 3<<20); string(a.body) != string(want[:len(a.body)]) {
		t.Error("wrong bytes were sent")
	}
	if a := n.get(blobPath(d), "Range", "bytes=1048576-"); a.StatusCode != 503 {
		t.Errorf("the rest: status %d", a.StatusCode)
	}
}

func TestRestartKeepsBlobs(t *testing.T) {
	o := registrytest.New(t)
	image := o.AddImage("app", "v1", noise(42, 1<<20))
	layer := image.Layers[0].Digest
	n := startNode(t, o)
	n.get(manifestPath(image.Manifest.Digest.String()))
	n.blob(layer)
	n.settled()
	o.Down()
	n = n.restart()
	n.right(n.get(manifestPath(image.Manifest.Digest.String())), image.Manifest.Digest)
	n.blob(layer)
}

// A download that a stop cut off goes on where it was.
func TestRestartResumes(t *testing.T) {
	o := registrytest.New(t)
	const size = 8 << 20
	d := o.AddBlob("app", noise(43, size))
	n := startNode(t, o, func(c *daemon.Config) { c.ShutdownGrace = 0 })
	release := make(chan struct{})
	defer close(release)
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Times: 1}, registrytest.HangAfter(5<<20, release))
	resp, err := n.http.Get(n.url + blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 4<<20); err != nil {
		t.Fatal(err)
	}
	n = n.restart()
	n.blob(d)
	if sent := o.Sent(d); sent > size+1<<20+256<<10 {
		t.Errorf("origin sent %d bytes of %d", sent, size)
	}
}

// A blob that the disk has no room for passes through.
func TestDiskTooSmall(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(44, 16<<20))
	dir := smallDisk(t, "8m")
	n := startNode(t, o, func(c *daemon.Config) { c.DataDir = dir })
	for range 2 {
		n.blob(d)
	}
	n.stored(d, false)
	if got := o.Count(registrytest.Blob); got != 2 {
		t.Errorf("origin was asked %d times for two pulls", got)
	}
}

// A disk that fills up, for somebody else's sake, in the middle of a
// download.
func TestDiskFillsUp(t *testing.T) {
	o := registrytest.New(t)
	held := o.AddBlob("app", noise(45, 1<<20))
	d := o.AddBlob("app", noise(46, 12<<20))
	dir := smallDisk(t, "20m")
	n := startNode(t, o, func(c *daemon.Config) { c.DataDir = dir })
	n.blob(held)
	n.settled()
	fill := func() {
		eventually(t, "the store takes the blob", func() bool {
			begun, err := filepath.Glob(filepath.Join(dir, "partial", "*.journal"))
			return err == nil && len(begun) > 0
		})
		f, err := os.Create(filepath.Join(filepath.Dir(dir), "other"))
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		chunk := make([]byte, 64<<10)
		for err == nil {
			_, err = f.Write(chunk)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Error(err)
		}
	}
	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: d, Times: 1}, registrytest.After(3<<20, fill))
	n.blob(d)
	n.blob(d)
	n.stored(d, false)
	if got := o.Count(registrytest.Blob); got > 4 {
		t.Errorf("origin was asked %d times", got)
	}
	if status, body := n.admin("/healthz"); status != 200 || !strings.Contains(string(body), "no space left") {
		t.Errorf("health says %d %s", status, body)
	}
}

func TestDiskReadOnly(t *testing.T) {
	o := registrytest.New(t)
	held := o.AddBlob("app", noise(47, 1<<20))
	d := o.AddBlob("app", noise(48, 1<<20))
	dir := smallDisk(t, "32m")
	n := startNode(t, o, func(c *daemon.Config) { c.DataDir = dir })
	n.blob(held)
	n.settled()
	if err := unix.Mount("", filepath.Dir(dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	before := o.Count(registrytest.Blob)
	n.blob(held)
	if got := o.Count(registrytest.Blob); got != before {
		t.Error("a held blob was fetched again")
	}
	n.blob(d)
	n.blob(d)
	if got := o.Count(registrytest.Blob); got != before+2 {
		t.Errorf("origin was asked %d times for two pulls", got-before)
	}
	if got := n.metric("shoal_store_healthy"); got != "0" {
		t.Errorf("shoal_store_healthy %s", got)
	}
	n = n.restart() // starts on a read-only disk, too
	n.blob(held)
}

func TestCacheRemovedWhileRunning(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(49, 2<<20))
	n := startNode(t, o)
	n.blob(d)
	n.settled()
	if err := os.RemoveAll(n.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	n.blob(d)
	n.settled()
	before := o.Count(registrytest.Blob)
	n.blob(d)
	if got := o.Count(registrytest.Blob); got != before {
		t.Error("the cache does not come back")
	}
}

// What does not fit evicts what was not used for longest.
func TestEviction(t *testing.T) {
	o := registrytest.New(t)
	n := startNode(t, o, func(c *daemon.Config) { c.CacheSize = 5 << 20 })
	var blobs []string
	for i := range 4 {
		d := o.AddBlob("app", noise(uint64(50+i), 2<<20))
		blobs = append(blobs, d.String())
		n.blob(d)
		n.settled()
	}
	entries, err := filepath.Glob(filepath.Join(n.cfg.DataDir, "blobs", "sha256", "*", "*.pieces"))
	if err != nil || len(entries) != 2 {
		t.Errorf("%d blobs on disk, %v", len(entries), err)
	}
	if !strings.Contains(strings.Join(entries, " "), blobs[3][len("sha256:"):]) {
		t.Error("the last one is not among them")
	}
}
