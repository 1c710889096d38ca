// Package nodeinfo is what a daemon tells of itself at /node of its admin
// address, for those who look whether a node is set up right. It holds no
// secrets: of keys only where they are.
package nodeinfo

// Path is where the admin address serves a Node, as JSON.
const Path = "/node"

// Node is how one daemon is set up, and whom it knows.
type Node struct {
	Version string `json:"version"`
	// Name and Zone are what the node calls itself to others.
	Name string `json:"name"`
	Zone string `json:"zone,omitempty"`
	// Mirror and Peer are the addresses it listens on, HOST:PORT.
	Mirror string `json:"mirror"`
	Peer   string `json:"peer"`
	Auth   string `json:"auth"`
	// Cache is nil if the disk does not say how much is free.
	Cache *Cache `json:"cache,omitempty"`
	// Registries are the upstreams that are allowed.
	Registries []Registry `json:"registries"`
	// Schedulers are as they were given, none for a node that is alone.
	Schedulers []string `json:"schedulers,omitempty"`
	// Connected says whether one of them is reachable.
	Connected bool `json:"connected"`
	// TLS is nil in plaintext.
	TLS *TLS `json:"tls,omitempty"`
	// Peers are the addresses of nodes that this one was told of last, eight
	// at most.
	Peers []string `json:"peers,omitempty"`
}

// Registry is one upstream and where its origin is asked.
type Registry struct {
	Host     string `json:"host"`
	Endpoint string `json:"endpoint"`
	// Auth is who decides over it: relay, node or open.
	Auth string `json:"auth"`
}

// Cache is how many bytes the store may hold.
type Cache struct {
	// Size is as configured, Limit what the disk allows of it now.
	Size  int64 `json:"size"`
	Limit int64 `json:"limit"`
	Used  int64 `json:"used"`
}

// TLS is what the node proves itself with.
type TLS struct {
	// Cert and Key are PEM files, empty for a certificate that an issuer gave
	// to the daemon, which keeps it in memory.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	CA   string `json:"ca"`
	// Issuer is where certificates come from, if that is an issuer.
	Issuer string `json:"issuer,omitempty"`
	// Expires is when the one in use expires, in Unix seconds; 0 while there
	// is none.
	Expires int64 `json:"expires,omitempty"`
}
