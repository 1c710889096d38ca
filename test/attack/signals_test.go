package attack

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalproject/shoal/test/rig"
)

// SIGHUP, by which operators have daemons read their files again, stops
// neither a daemon nor a scheduler.
func TestHangupStopsNobody(t *testing.T) {
	ca := rig.NewCA(t)
	s := rig.StartScheduler(t, rig.SchedulerConfig{TLS: ca.Issue(t, "127.0.0.1")})
	d := rig.StartDaemon(t, rig.DaemonConfig{Name: "node-1", Schedulers: []*rig.Scheduler{s}, TLS: ca.Issue(t, "node-1")})
	for _, p := range []*rig.Program{&s.Program, &d.Program} {
		p.Signal(syscall.SIGHUP)
		rig.Eventually(t, p.Name+" says that it has heard SIGHUP", 10*time.Second, func() error {
			if p.Exited() {
				t.Fatalf("%s was ended by SIGHUP", p.Name)
			}
			if !strings.Contains(p.Log(), "reload: ") {
				return errors.New("no line in its log")
			}
			return p.Ready()
		})
	}
}
