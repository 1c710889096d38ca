package daemon

import (
	"encoding/json"
	"net/http"

	"github.com/shoalproject/shoal/nodeinfo"
)

// maxToldPeers bounds the peers in what is told of the node.
const maxToldPeers = 8

// serveNode tells how the node is set up.
func (d *Daemon) serveNode(w http.ResponseWriter, _ *http.Request) {
	n := nodeinfo.Node{
		Version: d.cfg.Version, Name: d.cfg.nodeName, Zone: d.cfg.Zone,
		Mirror: d.MirrorAddr().String(), Auth: d.cfg.Auth, Schedulers: d.cfg.Schedulers,
	}
	for _, e := range d.cfg.endpoints {
		n.Registries = append(n.Registries, nodeinfo.Registry{Host: e.Upstream.Host, Endpoint: e.Upstream.Endpoint.String(), Auth: authNames[d.cfg.authFor(e.Upstream.Host)]})
	}
	if limit, err := d.store.Limit(); err == nil {
		n.Cache = &nodeinfo.Cache{Size: d.cfg.CacheSize, Limit: limit, Used: d.store.Stats().UsedBytes}
	}
	if d.cfg.identity != nil {
		n.TLS = &nodeinfo.TLS{Cert: d.cfg.TLSCert, Key: d.cfg.TLSKey, CA: d.cfg.TLSCA, Issuer: d.cfg.TLSIssuer}
		if expires := d.cfg.identity.Expires(); !expires.IsZero() {
			n.TLS.Expires = expires.Unix()
		}
	}
	if d.cluster != nil {
		n.Peer, n.Connected = d.PeerAddr().String(), d.cluster.connected()
		known := d.cluster.known.Values() // the latest last
		for _, neighbour := range known[max(0, len(known)-maxToldPeers):] {
			n.Peers = append(n.Peers, neighbour.Addr)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	// An error means that the client has gone.
	_ = json.NewEncoder(w).Encode(n)
}
