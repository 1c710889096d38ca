package test

import (
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/scheduler/api"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// What was pinned is there, all of it, when the daemon has been started again
// and has since pulled more than its disk may hold. What was not has made room.
func TestPreheatPinOutlivesRestart(t *testing.T) {
	const quota = 8 << 20
	o := registrytest.New(t)
	pinned, plain := o.AddImage("app", "pinned", noise(1, 3<<20), noise(2, 1000)), o.AddImage("app", "plain", noise(3, 1<<20))
	s := startScheduler(t)
	n := startCluster(t, o, 1, []*sched{s}, func(c *daemon.Config) { c.CacheSize = quota })[0]
	c := s.client(t)
	for tag, pin := range map[string]int64{"pinned": 3600, "plain": 0} {
		job := create(t, c, 1, api.Request{Spec: jobs.Spec{Images: []string{upstream + "/app:" + tag}, Pin: pin}})
		wantState(t, ended(t, c, job.ID), jobs.Done)
	}
	n = n.restart()
	n.blob(pinned.Layers[0].Digest) // a use takes no pin away
	for i := range quota >> 20 {
		n.blob(o.AddBlob("app", noise(uint64(10+i), 1<<20)))
		n.settled()
	}
	for _, d := range append([]v1.Descriptor{plain.Manifest, plain.Config}, plain.Layers...) {
		n.stored(d.Digest, false)
	}
	o.Down()
	n.right(n.get(manifestPath(pinned.Manifest.Digest.String())), pinned.Manifest.Digest)
	for _, d := range append([]v1.Descriptor{pinned.Config}, pinned.Layers...) {
		n.blob(d.Digest)
	}
}
