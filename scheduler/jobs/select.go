package jobs

import (
	"cmp"
	"hash/fnv"
	"net"
	"slices"
	"strconv"
	"strings"
)

// selector takes some of the nodes, which come in the job's own order.
type selector func(nodes []Facts) []Facts

// parseSelectors reads Spec.Nodes. The error is a *SpecError.
func parseSelectors(list []string) ([]selector, error) {
	if len(list) > 16 {
		return nil, &SpecError{"nodes", "more than 16 selectors"}
	}
	var out []selector
	for _, s := range list {
		sel, why := parseSelector(s)
		if sel == nil {
			return nil, &SpecError{"nodes", strconv.Quote(s[:min(len(s), 200)]) + ": " + why}
		}
		out = append(out, sel)
	}
	return out, nil
}

func parseSelector(s string) (sel selector, why string) {
	percent, isPercent := strings.CutSuffix(s, "%")
	zone, isZone := strings.CutPrefix(s, "zone=")
	label, isLabel := strings.CutPrefix(s, "label:")
	n, err := strconv.Atoi(s)
	switch {
	case s == "all":
		return func(nodes []Facts) []Facts { return nodes }, ""
	case err == nil:
		if n < 1 {
			return nil, "want at least 1 node"
		}
		return func(nodes []Facts) []Facts { return nodes[:min(n, len(nodes))] }, ""
	case isPercent:
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || p <= 0 || p > 100 {
			return nil, "want a percentage above 0% and up to 100%"
		}
		return func(nodes []Facts) []Facts {
			// Rounded up: some of a few is at least one.
			part := float64(len(nodes)) * p / 100
			count := int(part)
			if float64(count) < part {
				count++
			}
			return nodes[:count]
		}, ""
	case isZone:
		return keep(func(f Facts) bool { return f.Zone == zone }), ""
	case isLabel:
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			return nil, "want label:KEY=VALUE"
		}
		return keep(func(f Facts) bool { v, has := f.Labels[key]; return has && v == value }), ""
	case strings.HasPrefix(s, "zone:"):
		return nil, "want zone=" + strings.TrimPrefix(s, "zone:")
	case s == "" || strings.ContainsAny(s, "= \t") || strings.Contains(s, ":") && !addresses(s):
		return nil, "want all, N, N%, zone=Z, label:KEY=VALUE or names with commas between"
	}
	return byName(strings.Split(s, ",")), ""
}

// addresses reports whether all of a list with colons are IP addresses, which
// certificates may have for names.
func addresses(list string) bool {
	for _, s := range strings.Split(list, ",") {
		if strings.Contains(s, ":") && net.ParseIP(s) == nil {
			return false
		}
	}
	return true
}

func keep(good func(Facts) bool) selector {
	return func(nodes []Facts) []Facts {
		var out []Facts
		for _, f := range nodes {
			if good(f) {
				out = append(out, f)
			}
		}
		return out
	}
}

// byName takes the named nodes, those that are not there too: that they are
// missing is to be said, not passed over.
func byName(names []string) selector {
	return func(nodes []Facts) []Facts {
		byName := make(map[string]Facts, len(nodes))
		for _, f := range nodes {
			byName[f.Name] = f
		}
		var out []Facts
		for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
			f, ok := byName[name]
			if !ok {
				f = Facts{Name: name}
			}
			out = append(out, f)
		}
		return out
	}
}

// arrange puts nodes into the order in which a job counts them: by lot, the
// same for one job, and the zones in turn.
func arrange(nodes []Facts, job string) []Facts {
	lot := func(s string) uint64 {
		h := fnv.New64a()
		h.Write([]byte(job))
		h.Write([]byte{0})
		h.Write([]byte(s))
		return h.Sum64()
	}
	slices.SortFunc(nodes, func(a, b Facts) int {
		return cmp.Or(cmp.Compare(lot(a.Name), lot(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	turn := map[string]int{}
	place := make(map[string]int, len(nodes))
	for _, f := range nodes {
		place[f.Name] = turn[f.Zone]
		turn[f.Zone]++
	}
	slices.SortStableFunc(nodes, func(a, b Facts) int { return cmp.Compare(place[a.Name], place[b.Name]) })
	return nodes
}
