// Command hello is the entry point of the test image: it prints one line that
// the tests look for, so that a container that ran is told from one that did
// not.
package main

import "fmt"

func main() {
	fmt.Println("hello from a container that came through shoal")
}
