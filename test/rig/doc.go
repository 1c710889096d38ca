// Package rig starts real shoal processes for tests: schedulers and daemons as
// operators run them, on loopback ports that are free, with memory, log and
// metrics to look at. It pulls from them as runtimes do, and compares what
// comes with the digest.
//
// The environment variable SHOAL_BINARY names another binary than the one of
// this source, so that a test can be seen failing on an older version.
//
// It knows the command line and the HTTP interfaces of shoal. It must not
// import the product's packages except registry/registrytest and mtls/mtlstest.
package rig
