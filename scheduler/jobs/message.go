package jobs

import "time"

// Bounds of a job. What is beyond them is refused.
const (
	MaxImages   = 64   // of one job
	MaxContents = 2048 // of one image: manifests, configs and layers
	MaxTargets  = 1 << 14
	MaxReason   = 512 // bytes
	// MaxAuthorization bounds an Authorization header, in bytes: tokens of
	// some registries take 10 KiB.
	MaxAuthorization = 16 << 10
	MaxTimeout       = 24 * time.Hour
	MaxPin           = 30 * 24 * time.Hour
)

// State is how something stands: a job, a node of it, an image on a node, one
// content of that.
type State string

// The states. Done, Failed and Canceled are final. Unknown is final in a job
// that has ended: nobody could say what became of it.
const (
	Waiting  State = "waiting"
	Running  State = "running"
	Done     State = "done"
	Failed   State = "failed"
	Canceled State = "canceled"
	Unknown  State = "unknown"
)

// Final reports whether the state changes no more by itself.
func (s State) Final() bool { return s == Done || s == Failed || s == Canceled }

// Facts are what a daemon says of its node.
type Facts struct {
	// Name is the node's, the same after a restart.
	Name string `json:"name"`
	Zone string `json:"zone,omitempty"`
	// Platform is os/arch, with /variant if there is one.
	Platform string            `json:"platform,omitempty"`
	Version  string            `json:"version,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Preheats says that the daemon takes orders. Older ones do not.
	Preheats bool `json:"-"`
	// Proven says that a certificate proves Name. Credentials go to no other
	// node.
	Proven bool `json:"-"`
}

// Content is one thing that an image consists of.
type Content struct {
	Digest string `json:"digest"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// Manifest says that it is a manifest or index, not a blob.
	Manifest bool `json:"manifest,omitempty"`
	// Platforms are those that need it; none: all do.
	Platforms []string `json:"platforms,omitempty"`
}

// Order tells a daemon what to do for one image of a job. One that it has
// already it answers with a Report.
type Order struct {
	Job   string
	Image int
	// Repository is host/name; Reference a digest where one is known, else a
	// tag. Tag is what pulls will ask for; it may be empty.
	Repository, Reference, Tag string
	// Authorization is the header for the origin, empty for what the daemon
	// asks origins with itself. It is for memory alone: never to be logged
	// or stored.
	Authorization string
	// Resolve asks for a Resolution for these platforms ("all" is every
	// one), and for nothing to be fetched.
	Resolve   bool
	Platforms []string
	// Contents are to be fetched. The first is what Reference stands for. They
	// are another node's word: the daemon takes them only if it finds the same
	// itself, for Platforms.
	Contents  []Content
	MediaType string // of the first
	// Pin is how long the contents are to be safe from eviction.
	Pin time.Duration
	// Deadline is how much time is left.
	Deadline time.Duration
	// Known: a daemon that does not have this order must not begin it, but
	// report Unknown.
	Known bool
}

// Stop tells a daemon to drop what is left of a job.
type Stop struct{ Job string }

// Report says how an Order stands, all of it.
type Report struct {
	Job     string
	Image   int
	Resolve bool
	State   State
	Reason  string
	// Again: another node may well succeed.
	Again    bool
	Resolved *Resolution
	// Layers are in the order of the contents.
	Layers []Layer
}

// ToScheduler makes Report one of the messages that daemons send to a
// scheduler.
func (Report) ToScheduler() {}

// Resolution is what an image consists of.
type Resolution struct {
	Digest, MediaType string
	Contents          []Content
	// Platforms are those that the image is made for; none if it does not
	// say, and is the same for all.
	Platforms []string
}

// Layer is how one content stands on a node.
type Layer struct {
	State State `json:"state"`
	// Bytes of it are on the node.
	Bytes  int64  `json:"bytes"`
	Reason string `json:"reason,omitempty"`
}

// Vitals are running totals of a daemon, in bytes but for Flights.
type Vitals struct {
	FromOrigin int64 `json:"from_origin_bytes"`
	FromPeers  int64 `json:"from_peers_bytes"`
	ToPeers    int64 `json:"to_peers_bytes"`
	Served     int64 `json:"served_bytes"`
	Used       int64 `json:"cache_used_bytes"`
	Limit      int64 `json:"cache_limit_bytes"`
	Flights    int64 `json:"flights"`
}

// ToScheduler makes Vitals one of the messages that daemons send to a
// scheduler.
func (Vitals) ToScheduler() {}
