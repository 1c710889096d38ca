package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// serviceLink matches the variables that Kubernetes puts into every pod for a
// Service whose name begins with shoal: SHOAL_SCHEDULER_SERVICE_HOST,
// SHOAL_SCHEDULER_PORT_4402_TCP_ADDR and the like.
var serviceLink = regexp.MustCompile(`^SHOAL(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// isServiceLink reports whether a variable is about a Service of Kubernetes.
// The one named …_PORT holds a URL there; it may be a setting that is spelled
// wrongly otherwise.
func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// checkEnvironment returns an error if a variable SHOAL_… is a setting of no
// command below root. A variable that is a setting of another command is
// right: one environment may serve several.
func checkEnvironment(root *cobra.Command, environ []string) error {
	var known []string
	var collect func(*cobra.Command)
	collect = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, envName(f.Name)) })
		for _, c := range cmd.Commands() {
			collect(c)
		}
	}
	collect(root)
	for _, variable := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "SHOAL_") || slices.Contains(known, name) || isServiceLink(name, value) {
			continue
		}
		nearest := slices.MinFunc(known, func(a, b string) int { return cmp.Compare(distance(name, a), distance(name, b)) })
		return &usageError{fmt.Errorf("environment variable %s is not a setting; the nearest is %s: correct the name, or unset it", name, nearest)}
	}
	return nil
}

// distance is the number of characters to insert, delete or replace that make
// one string of the other.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
