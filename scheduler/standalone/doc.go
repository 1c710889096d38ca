// Package standalone puts one scheduler together and runs it as a process of
// its own: the core behind gRPC, and the operator's endpoints.
//
// It knows settings, listeners, and how the parts fit. It must not know how
// they work inside, nor anything of a daemon.
package standalone
