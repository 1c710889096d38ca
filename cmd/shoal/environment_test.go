package main

import (
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// No setting is spelled like a variable that Kubernetes makes of a Service.
func TestSettingsAreNoServiceLinks(t *testing.T) {
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if isServiceLink(envName(f.Name), "tcp://10.0.0.1:4402") {
				t.Errorf("--%s of %s: %s may come from a Service", f.Name, cmd.Name(), envName(f.Name))
			}
		})
		for _, c := range cmd.Commands() {
			look(c)
		}
	}
	look(newRoot())
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"same", "same", 0},
		{"CACHESIZE", "CACHE_SIZE", 1}, {"kitten", "sitting", 3}, {"abc", "acb", 2},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
