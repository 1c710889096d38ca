// Package jobs keeps preheat jobs: images that are to be on nodes before
// anybody there asks for them.
//
// It knows jobs, nodes and what nodes say of themselves. It must not know
// sockets, HTTP, how a record is stored, or how a node fetches a byte. Core is
// pure: what happened and the time go in, messages to daemons come out.
// Manager puts a Core, a Store and the way to the daemons together.
//
// # The life of a job
//
// One of the nodes that the job names is asked to resolve each image: which
// contents it has, for which platform, of which size. Then every node gets an
// Order with the contents that it needs, and reports how it fares. An Order
// may be sent any number of times: a node that has it already answers with a
// Report and, if one came along, takes the newer credential.
//
// # What is true
//
// A node is done when it says so, and never because time has passed. One that
// is not heard of any more is unknown, and is said to be unknown. A scheduler
// that takes a job over, be it another one or the same one restarted, asks
// the nodes again. It has no credentials then: those are in no record.
package jobs
