package main

import (
	"context"
	"os"
	"testing"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/bed"
	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/netns"
	"github.com/shoalproject/shoal/test/bench/swarm"
)

// The rig starts its own program, which here is the test's, as client and tap.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "client" || os.Args[1] == "tap") {
		os.Exit(run(context.Background(), os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestRig counts the bytes of direct pulls in every way that the rig has.
func TestRig(t *testing.T) {
	if err := bed.ExtendPath(); err != nil {
		t.Fatal(err)
	}
	if err := bed.Missing(true, append(bed.Namespaces, bed.DockerRegistry)...); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	b, err := bed.New(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	var img load.Pushed
	rig, err := swarm.New(b, swarm.Config{Nodes: 2, Rate: 100 * netns.Mbit}, func(base string) (err error) {
		img, err = load.Push(t.Context(), base, swarm.Repo, "v1", load.Layer{Bytes: registrytest.Random(1), Size: 8 << 20})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := rig.Start(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	clients := []swarm.Client{{Node: 0, Direct: true, Ref: "v1"}, {Node: 1, Direct: true, Ref: img.Digest.String()}}
	got, err := c.Pull(t.Context(), clients, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := got.Failed(); err != nil {
		t.Fatal(err)
	}
	if want := 2 * img.Bytes; got.Origin.Payload != want || got.Delivered != want || got.Origin.Total != 2*4 {
		t.Errorf("the tap counted %+v, the clients %d bytes, of %d in 8 requests", got.Origin, got.Delivered, want)
	}
	// Both counts are of the same bytes, and either may be believed within 1%.
	tapped, onLink := float64(got.Origin.Payload+got.Origin.Heads), float64(got.OriginSent.Payload())
	t.Logf("the origin sent %.0f bytes by the tap, %.0f by its link", tapped, onLink)
	if onLink < tapped || onLink > tapped*1.01 {
		t.Errorf("the origin sent %.0f bytes by the tap, %.0f by its link", tapped, onLink)
	}
	if got.Last() < rig.Ideal(img.Bytes-256<<10) {
		t.Errorf("the last node was done after %v, faster than its link", got.Last())
	}
	if u := got.Usage; u.Machine <= 0 || u.Busy <= 0 || u.Busy > 1.01 || u.Clients <= 0 || u.Clients > u.Machine {
		t.Errorf("usage %+v", u)
	}
	got, err = c.Pull(t.Context(), clients, func(<-chan struct{}) error {
		c.KillOrigin()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if failed, wrong, err := got.Failed(); failed != 2 || wrong != 0 || err == nil {
		t.Errorf("without an origin %d pulls failed, %d for wrong bytes: %v", failed, wrong, err)
	}
}
