package scheduler

import (
	"cmp"
	"slices"
)

// SwarmInfo is a swarm as operators see it.
type SwarmInfo struct {
	Blob Digest `json:"blob"`
	// Size is in bytes, 0 while it is not known.
	Size int64 `json:"size"`
	// Wanting and Complete count the peers that want the blob and those that
	// hold it whole; Streams the runs that come from an origin now.
	Wanting  int `json:"wanting"`
	Complete int `json:"complete"`
	Streams  int `json:"streams"`
}

// Swarms returns the swarms that have peers who want the blob, those with
// most first, at most limit of them.
func (c *Core) Swarms(limit int) []SwarmInfo {
	list := make([]SwarmInfo, 0, len(c.live))
	for _, sw := range c.live {
		list = append(list, SwarmInfo{Blob: sw.blob, Size: sw.size, Wanting: sw.wanters, Complete: sw.seeds, Streams: len(sw.streams)})
	}
	slices.SortFunc(list, func(a, b SwarmInfo) int {
		return cmp.Or(cmp.Compare(b.Wanting, a.Wanting), cmp.Compare(b.Size, a.Size), cmp.Compare(a.Blob, b.Blob))
	})
	return list[:min(limit, len(list))]
}
