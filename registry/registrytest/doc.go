// Package registrytest is an origin in the test's own process: a registry on
// real sockets that serves what is put into it, asks for tokens, redirects to
// an object store of its own, counts what it sends, and fails in whatever way
// it is told to.
//
// It knows the distribution specification and the ways in which origins break
// it. It must not know who asks.
//
// A Fault is a middleware. An Order says which requests it meets and how many
// of them:
//
//	o := registrytest.New(t, registrytest.WithStore())
//	d := o.AddBlob("library/x", data)
//	o.Inject(registrytest.Order{Kind: registrytest.Blob, Digest: d, Times: 1}, registrytest.Cut(1000))
package registrytest
