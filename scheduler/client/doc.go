// Package client keeps a daemon in touch with its schedulers.
//
// Each blob belongs to one of the schedulers that are alive, by rendezvous
// hashing over their addresses, so that all daemons ask the same one without
// a word between them. The client has one stream to each. When one dies, what
// was its own is announced to the next, and back when it returns.
//
// The package knows which scheduler is asked, and when; it must not know what
// the messages mean beyond the blob that they are about, nor what a network
// is: it is given a function that opens a stream (package wire's over gRPC,
// or package server's within the process).
//
// # Who runs what
//
// Run's goroutine owns all state. Each scheduler has a goroutine that connects
// and reads and, while connected, one that writes. One more calls
// Consumer.Deliver, so that a consumer may take its time, and may send while
// it does. When it takes too long, the client reads no more from the
// schedulers, and they drop it at last: everything is bounded.
package client
