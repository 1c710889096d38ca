// Package attack holds the attacks that Shoal withstands, each as a test
// against real processes that is named for the promise that the attack breaks.
// docs/faults.md lists them with their figures.
//
// With SHOAL_BINARY=FILE the tests attack another binary than the one of this
// source.
package attack
