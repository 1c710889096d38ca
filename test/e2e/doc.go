// Package e2e runs Shoal between real container runtimes and a real registry:
// containerd of two lines, podman, skopeo, Docker, BuildKit and docker-registry,
// each as a process of its own. Nothing here is faked, and nothing here reaches beyond the machine.
//
// The package is a harness and the tests that use it. The harness starts
// processes on a [Node], waits for them by condition, prints their logs when a
// test fails, and leaves neither process nor mount behind. Origin traffic is
// counted by a [Tap], a proxy that stands before the registry.
//
// The harness knows the product by its command line and its HTTP endpoints
// alone. It must not import any package of the product, so that a fault in the
// product cannot hide in code that both share.
//
// What a test needs from the machine and does not find (a binary, root) skips
// it with the reason; with CI=true it fails instead.
package e2e
