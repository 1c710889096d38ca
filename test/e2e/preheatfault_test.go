package e2e

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
)

// These tests wait for graces to pass and do little else, so they run side by
// side.

// TestPreheatLosesNodes kills a daemon and freezes another one while their layer
// comes. The commands name them, and say why; the other nodes have it.
func TestPreheatLosesNodes(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 4, false, "file")
	ref, layer, gate := c.image(t, 200)
	text := c.preheat(t, "--nodes", "node1,node2,node3", ref)
	asJSON := c.preheat(t, "--nodes", "node1,node2,node3", "--output", "json", ref)
	// Of one that is frozen it takes longer to know: 15 s, and then the grace.
	frozen := c.preheat(t, "--nodes", "node1,node2,node4", ref)
	c.underWay(t, 3, gate, c.daemons...)
	c.daemons[2].Kill()
	c.daemons[3].Freeze()
	gate.Open()

	const lost = "the connection with the node was lost at "
	text.says(t, 3, "2 of 3 nodes done", "\nnode3: unknown: "+lost, "1 of 3 nodes are not done")
	asJSON.says(t, 3)
	var end struct {
		Event string
		Job   preheatJob
	}
	for line := range strings.Lines(asJSON.Log(t)) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &end); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]string{"node1": "done", "node2": "done", "node3": "unknown"}
	if end.Event != "end" || end.Job.State != "failed" || end.Job.Counts.Done != 2 || !maps.Equal(end.Job.fates(), want) {
		t.Errorf("the last event is %+v", end)
	}
	for _, n := range end.Job.Nodes {
		if strings.HasPrefix(n.Reason, lost) != (n.Node == "node3") {
			t.Errorf("the reason of %s is %q", n.Node, n.Reason)
		}
	}
	frozen.says(t, 3, "2 of 3 nodes done", "\nnode4: unknown: "+lost)
	c.holds(t, layer, c.daemons[:2]...)
}

// TestPreheatSchedulerKilled kills the scheduler in the middle of jobs and starts
// it again. Two nodes get on meanwhile, the third dies: nobody says of it that it
// is done, or that it is not.
func TestPreheatSchedulerKilled(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 3, false, "file")
	scheduler := c.schedulers[0]
	ref, layer, gate := c.image(t, 201)
	whole := c.preheat(t, "--nodes", "node1,node2", ref)
	c.underWay(t, 1, gate)
	some := c.preheat(t, ref)
	id := c.underWay(t, 2, gate, c.daemons...)[0]

	scheduler.Kill()
	c.daemons[2].Kill()
	gate.Open()
	for _, command := range []*Process{whole, some} {
		Eventually(t, "the command says that nobody answers", time.Minute, func() error {
			if !strings.Contains(command.Log(t), "no scheduler answers; the nodes go on meanwhile") {
				return errors.New("it does not")
			}
			return nil
		})
	}
	for _, d := range c.daemons[:2] {
		Eventually(t, d.node.Name+" gets on without a scheduler", time.Minute, func() error {
			n, err := d.Metric("shoal_blobs_in_flight")
			if err == nil && n > 0 {
				err = errors.New("it is still at it")
			}
			return err
		})
	}
	for _, command := range []*Process{whole, some} {
		if gone, _ := command.Exited(); gone {
			t.Error("the command ended with nobody to tell it how")
		}
	}
	scheduler.Restart(t)

	whole.says(t, 0, "2 of 2 nodes done")
	const unknown = "\nnode3: unknown: the scheduler was restarted; the node has not been heard of since"
	some.says(t, 3, "2 of 3 nodes done", unknown, "job "+id+": 1 of 3 nodes are not done")
	// The record says the same to whoever asks later.
	c.preheat(t, "--attach", id).says(t, 3, "2 of 3 nodes done", unknown)
	if job := scheduler.job(t, id); job.State != "failed" || job.Counts.Unknown != 1 {
		t.Errorf("the API says %+v", job)
	}
	c.holds(t, layer, c.daemons[:2]...)
}

// TestPreheatForgotten has a scheduler forget its jobs, which are in memory
// alone. The command says that it does not know.
func TestPreheatForgotten(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1, false, "memory")
	ref, _, gate := c.image(t, 202)
	command := c.preheat(t, ref)
	id := c.underWay(t, 1, gate)[0]
	c.schedulers[0].Kill()
	c.schedulers[0].Restart(t)
	command.says(t, 1, "job "+id+": what became of it is not known")
}

// TestPreheatTakenOver kills the one of two schedulers on a Redis that has the
// job. The other one answers at once, and goes on with it: the command brings
// the node that has not begun the token that was lost.
func TestPreheatTakenOver(t *testing.T) {
	t.Parallel()
	redis := NewNode(t, "redis").StartRedis(t)
	c := newCrew(t, 2, true, redis, redis)
	ref, _, gate := c.image(t, 203)
	command := c.preheat(t, "--concurrency", "1", ref)
	first, other := c.schedulers[0], c.schedulers[1]
	var id string
	Eventually(t, "one node is at work and one waits", time.Minute, func() error {
		var list struct{ Jobs []preheatJob }
		if err := other.get("jobs", &list); err != nil {
			return err
		}
		if len(list.Jobs) != 1 || list.Jobs[0].Counts.Running != 1 || !gate.Held() {
			return errors.New("not yet")
		}
		id = list.Jobs[0].ID
		return nil
	})
	if strings.Contains(other.proc.Log(t), "preheat job created") {
		t.Fatal("the job is with the other scheduler")
	}
	first.Kill()
	if job := other.job(t, id); job.State != "running" || job.Counts.Done != 0 {
		t.Errorf("the other scheduler says %+v", job)
	}
	gate.Open()
	command.says(t, 0, "2 of 2 nodes done")
	if !strings.Contains(other.proc.Log(t), "preheat job taken over") {
		t.Error("the other scheduler did not take the job over")
	}
	c.schedulers = c.schedulers[1:]
	c.preheat(t, "--attach", id).says(t, 0, "2 of 2 nodes done")
	for _, text := range []string{first.proc.Log(t), other.proc.Log(t)} {
		if strings.Contains(text, gatePassword) {
			t.Error("the password is in a log")
		}
	}
}

// TestPreheatInterrupted presses Ctrl-C on a terminal.
func TestPreheatInterrupted(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1, false, "file")
	scheduler, d := c.schedulers[0], c.daemons[0]
	for i, row := range []struct {
		name  string
		ended bool   // the job has, when the answer comes
		keys  string // the answer
		code  int
		says  string // after "job ID"
		state string // of the job then
	}{
		{"yes", false, "y\n", 1, " goes on; --attach ID follows it, --cancel ID ends it", "running"},
		{"return", false, "\n", 1, " goes on; ", "running"},
		{"again", false, CtrlC, 1, " goes on; ", "running"},
		{"no", false, "n\n", 1, " is canceled", "canceled"},
		{"yes, too late", true, "y\n", 0, "1 of 1 node done", "done"},
		{"no, too late", true, "n\n", 0, "1 of 1 node done", "done"},
	} {
		t.Run(row.name, func(t *testing.T) {
			ref, _, gate := c.image(t, byte(210+i))
			term := c.head.StartTerminal(t, c.shoal(t, "preheat", ref))
			id := c.underWay(t, 1, gate)[0]
			term.Type(t, CtrlC)
			term.Shows(t, "Interrupted. Shall job "+id+" go on without this command? [Y/n] ")
			if row.ended {
				gate.Open()
				scheduler.jobIs(t, id, "done")
			}
			term.Type(t, row.keys)
			if code := term.Code(t); code != row.code {
				t.Errorf("exit code %d, want %d", code, row.code)
			}
			says := row.says
			if !row.ended {
				says = "shoal preheat: job " + id + strings.ReplaceAll(says, "ID", id)
			}
			term.Shows(t, says)
			if job := scheduler.job(t, id); job.State != row.state {
				t.Errorf("the job is %s, want %s", job.State, row.state)
			}
			switch row.state {
			case "canceled":
				Eventually(t, "the daemon lets go of the layer", time.Minute, func() error {
					n, err := d.Metric("shoal_blobs_in_flight")
					if err == nil && n > 0 {
						err = errors.New("it does not")
					}
					return err
				})
			case "running":
				// What the command said is so: it can be followed to its end.
				gate.Open()
				c.preheat(t, "--attach", id).says(t, 0, "1 of 1 node done")
			}
			if row.state == "done" {
				c.preheat(t, "--cancel", id).says(t, 1, "job "+id+" is not canceled: it had ended, done")
			}
		})
	}
}
