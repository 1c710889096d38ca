package daemon

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/jobs"
)

// maxLabels is how many labels schedulers take.
const maxLabels = 64

// parseLabels reads KEY=VALUE.
func parseLabels(list []string) (map[string]string, error) {
	if len(list) > maxLabels {
		return nil, fmt.Errorf("%d of them, at most %d", len(list), maxLabels)
	}
	labels := make(map[string]string, len(list))
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: want KEY=VALUE", s)
		}
		if err := checkWord(s); err != nil {
			return nil, err
		}
		labels[key] = value
	}
	return labels, nil
}

// ownPlatform is what containers run on, whatever the daemon itself was built
// for.
const ownPlatform = "linux/" + runtime.GOARCH

// node is what schedulers are told of this node.
func (s *settings) node() scheduler.Node {
	if s.Guest {
		return scheduler.Node{}
	}
	return scheduler.Node{
		Name: s.nodeName, Version: strings.Join(strings.Fields(s.Version), "-"), Labels: s.labels, Preheats: true,
		Platform: ownPlatform,
	}
}

// vitals are the daemon's running totals.
func (d *Daemon) vitals() jobs.Vitals {
	f, p, s := d.fetcher.Stats(), d.cluster.endpoint.Stats(), d.store.Stats()
	return jobs.Vitals{
		FromOrigin: f.OriginBytes, FromPeers: f.PeerBytes, ToPeers: p.Uploaded, Served: d.metrics.served.Load(),
		Used: s.UsedBytes, Limit: s.LimitBytes, Flights: f.Flights,
	}
}
