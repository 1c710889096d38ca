// Package test tries whole nodes in one process: a daemon on real sockets and
// a real directory, before an origin that does as it is told. It also holds
// the rule by which packages may import each other.
package test
