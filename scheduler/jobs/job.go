package jobs

import (
	"fmt"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Spec is what is wanted.
type Spec struct {
	// Images as users name them: alpine, ghcr.io/a/b:c, x.y/z@sha256:…. With a
	// tag and a digest, the digest says what the image is, and nodes remember
	// the tag if the origin says the same of it.
	Images []string `json:"images"`
	// Nodes selects: all, N, N%, zone=Z, label:KEY=VALUE, or names with
	// commas between; several one after the other, each from what the one
	// before left. None is all.
	Nodes []string `json:"nodes,omitempty"`
	// Platforms of an image that is there for several: os/arch[/variant], or
	// all. None is each node's own.
	Platforms []string `json:"platforms,omitempty"`
	// Concurrency is how many nodes work at a time; 0 is all of them.
	Concurrency int `json:"concurrency,omitempty"`
	// Timeout is the seconds after which what is not done has failed.
	Timeout int64 `json:"timeout_seconds,omitempty"`
	// Pin is the seconds for which the contents are safe from eviction.
	Pin int64 `json:"pin_seconds,omitempty"`
}

// DefaultTimeout is that of a job that names none.
const DefaultTimeout = time.Hour

// Job is a job as records keep it and users see it. There is no credential
// in it.
type Job struct {
	ID string `json:"id"`
	// Revision grows with every change.
	Revision int64     `json:"revision"`
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	Spec     Spec      `json:"spec"`
	// Private says that credentials came along.
	Private bool `json:"private,omitempty"`
	// Needs says that they are missing, since another scheduler had them.
	Needs  bool    `json:"needs_credentials,omitempty"`
	Counts Counts  `json:"counts"`
	Images []Image `json:"images"`
	Nodes  []Node  `json:"nodes,omitempty"`
}

// Counts sum a job up.
type Counts struct {
	Nodes   int `json:"nodes"`
	Waiting int `json:"waiting"`
	Running int `json:"running"`
	Done    int `json:"done"`
	Failed  int `json:"failed"`
	Unknown int `json:"unknown"`
	// Bytes of Size are on the nodes, summed over nodes.
	Bytes int64 `json:"bytes"`
	Size  int64 `json:"size"`
}

// Image is one image of a job.
type Image struct {
	Name string `json:"image"`
	// State is Done when it is known what the image consists of.
	State     State     `json:"state"`
	Reason    string    `json:"reason,omitempty"`
	Digest    string    `json:"digest,omitempty"`
	MediaType string    `json:"media_type,omitempty"`
	Platforms []string  `json:"platforms,omitempty"`
	Contents  []Content `json:"contents,omitempty"`
}

// Node is one node of a job.
type Node struct {
	Name     string      `json:"node"`
	Zone     string      `json:"zone,omitempty"`
	Platform string      `json:"platform,omitempty"`
	State    State       `json:"state"`
	Reason   string      `json:"reason,omitempty"`
	Bytes    int64       `json:"bytes"`
	Size     int64       `json:"size"`
	Images   []NodeImage `json:"images"`
}

// NodeImage is one image on one node.
type NodeImage struct {
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"`
	Bytes  int64  `json:"bytes"`
	Size   int64  `json:"size"`
	// Layers are those contents of the image that the node needs, in their
	// order. They are left out once all are done.
	Layers []Layer `json:"layers,omitempty"`
}

// Clone returns a copy that shares nothing that changes.
func (j *Job) Clone() Job {
	c := *j
	c.Images = append([]Image(nil), j.Images...)
	c.Nodes = make([]Node, len(j.Nodes))
	for i, n := range j.Nodes {
		n.Images = append([]NodeImage(nil), n.Images...)
		for k := range n.Images {
			n.Images[k].Layers = append([]Layer(nil), n.Images[k].Layers...)
		}
		c.Nodes[i] = n
	}
	return c
}

// Ended reports whether the job is over.
func (j *Job) Ended() bool { return j.State.Final() }

// Deadline returns when the job's time is up.
func (j *Job) Deadline() time.Time {
	return j.Created.Add(time.Duration(j.Spec.Timeout) * time.Second)
}

// SpecError says what is wrong with a Spec.
type SpecError struct{ Field, Why string }

func (e *SpecError) Error() string { return e.Field + ": " + e.Why }

// Check puts the defaults into s and returns a *SpecError if it makes no
// sense.
func (s *Spec) Check() error {
	switch {
	case len(s.Images) == 0:
		return &SpecError{"images", "name at least one"}
	case len(s.Images) > MaxImages:
		return &SpecError{"images", fmt.Sprintf("%d of them, at most %d", len(s.Images), MaxImages)}
	case s.Concurrency < 0:
		return &SpecError{"concurrency", "must not be negative"}
	case s.Timeout < 0 || s.Timeout > int64(MaxTimeout/time.Second):
		return &SpecError{"timeout_seconds", fmt.Sprintf("%d, want 1 to %d", s.Timeout, MaxTimeout/time.Second)}
	case s.Pin < 0 || s.Pin > int64(MaxPin/time.Second):
		return &SpecError{"pin_seconds", fmt.Sprintf("%d, want 0 to %d", s.Pin, MaxPin/time.Second)}
	case len(s.Platforms) > 16:
		return &SpecError{"platforms", "more than 16"}
	}
	for i, name := range s.Images {
		ref, err := ParseImage(name)
		if err != nil {
			return &SpecError{"images", err.Error()}
		}
		s.Images[i] = ref.String()
	}
	for _, p := range s.Platforms {
		if err := checkPlatform(p); err != nil {
			return &SpecError{"platforms", err.Error()}
		}
	}
	if s.Timeout == 0 {
		s.Timeout = int64(DefaultTimeout / time.Second)
	}
	if len(s.Nodes) == 0 {
		s.Nodes = []string{"all"}
	}
	_, err := parseSelectors(s.Nodes)
	return err
}

func checkPlatform(p string) error {
	parts := strings.Split(p, "/")
	if p == "all" {
		return nil
	}
	for _, part := range parts {
		if part == "" || len(p) > 64 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" {
			return fmt.Errorf("%.80q: want OS/ARCH, OS/ARCH/VARIANT or all", p)
		}
	}
	if len(parts) < 2 || len(parts) > 3 {
		return fmt.Errorf("%.80q: want OS/ARCH, OS/ARCH/VARIANT or all", p)
	}
	return nil
}

// Ref is a parsed image name.
type Ref struct {
	// Repository is host/name as image names carry it, docker.io/library/x.
	Repository string
	// Tag may be empty; Digest is set if the name has one.
	Tag, Digest string
}

// String returns the name in full.
func (r Ref) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Short returns the name as people know it: with its tag, if it has one.
func (r Ref) Short() string {
	if r.Tag != "" {
		r.Digest = ""
	}
	return r.String()
}

// Reference returns what to ask the origin for.
func (r Ref) Reference() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

// ParseImage reads an image name as users write it.
func ParseImage(name string) (Ref, error) {
	if len(name) > 1024 {
		return Ref{}, fmt.Errorf("image name of %d bytes", len(name))
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return Ref{}, fmt.Errorf("%q: %w", name, err)
	}
	named = reference.TagNameOnly(named)
	host := strings.ToLower(reference.Domain(named))
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		// The grammar takes UPPER of UPPER/app for a host. On a node, upper/app
		// would be an image of the default registry.
		return Ref{}, fmt.Errorf("%q: repository names have no capital letters, and %q is no registry: write HOST.DOMAIN or HOST:PORT", name, host)
	}
	ref := Ref{Repository: host + "/" + reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		ref.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		ref.Digest = d.Digest().String()
	}
	return ref, nil
}

// needs reports whether a node of that platform needs a content, in a job
// that names platforms or does not.
func (s *Spec) needs(c Content, platform string) bool {
	if len(c.Platforms) == 0 || len(s.Platforms) > 0 {
		return true
	}
	for _, p := range c.Platforms {
		if PlatformMatches(platform, p) {
			return true
		}
	}
	return false
}

// PlatformMatches reports whether what is wanted, os/arch[/variant], is what
// an image has. arm64 and arm64/v8 are the same; a variant that is not named
// is any.
func PlatformMatches(want, has string) bool {
	w, h := strings.Split(want, "/"), strings.Split(has, "/")
	if len(w) < 2 || len(h) < 2 || w[0] != h[0] || w[1] != h[1] {
		return false
	}
	if len(w) == 2 || len(h) == 2 {
		return true
	}
	return w[2] == h[2]
}
