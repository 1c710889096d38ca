// Package daemon puts one node together and runs it: the store, the fetching
// of blobs into it, the mirror that the container runtime asks, and the
// operator's endpoints.
//
// The packages below it do not know each other. They meet here, in the small
// adapters of adapters.go.
package daemon
