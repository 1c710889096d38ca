// Package registry knows the vocabulary of OCI registries: names of
// repositories and tags, digests, the paths of the pull API, which upstreams
// are allowed, manifests and errors.
//
// It does no I/O: requests to an origin are made by registry/origin, and the
// API is served by daemon/mirror.
package registry
