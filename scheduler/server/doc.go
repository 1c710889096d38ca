// Package server runs one scheduler core for many daemons.
//
// It knows who is connected, by what name and address, and keeps one daemon
// from harming others: it reads from each in turn, at a bounded rate, and
// drops one that does not read. It must not know what a network is: streams
// come from package wire or from Local, and it treats both alike. It decides
// nothing about swarms; that is the core's.
package server
