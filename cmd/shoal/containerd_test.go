package main

import (
	"strings"
	"testing"

	"github.com/shoalproject/shoal/runtimes"
)

// A restart happens if it is needed and allowed, and is asked for if it is
// needed alone.
func TestRestart(t *testing.T) {
	needed, not := []runtimes.Step{{}, {Restart: true}}, []runtimes.Step{{}}
	for _, c := range []struct {
		node    node
		steps   []runtimes.Step
		command []string
		said    string
		fails   bool
	}{
		{node{restart: true}, needed, []string{"true"}, "restarted true", false},
		{node{restart: true}, needed, []string{"false"}, "", true},
		{node{restart: true}, not, []string{"false"}, "no restart is needed", false},
		{node{}, needed, []string{"false"}, "needed for this to take effect: false", false},
	} {
		var out strings.Builder
		err := c.node.finish(t.Context(), &out, c.steps, c.command)
		if said := strings.Join(strings.Fields(out.String()), " "); (err != nil) != c.fails || !strings.Contains(said, c.said) {
			t.Errorf("%+v: said %q, %v; want %q", c, said, err, c.said)
		}
	}
}
