// Package runtimes knows where container runtimes keep their registry
// configuration, what they make of it, and which edits put a mirror before the
// registries: hosts.toml and config.toml of containerd, registries.yaml of k3s
// and RKE2, registries.conf of CRI-O and podman, daemon.json of Docker,
// buildkitd.toml of BuildKit.
//
// Planning is pure: [NewPlan] reads a [Tree] and returns whole files as they are
// to become, each a minimal edit of its text. [Install] and [Uninstall] work out
// the steps from what a [State] holds of earlier installs; [Disk] takes them.
// The package must not know the daemon behind the mirror.
package runtimes
