package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// in does something within a namespace, on a thread that ends with it.
func in(netns string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread would take the namespace along to other
		// goroutines.
		runtime.LockOSThread()
		done <- func() error {
			f, err := os.Open("/run/netns/" + netns)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering %s: %w", netns, err)
			}
			return do()
		}()
	}()
	return <-done
}

// Dial connects to an address of IPv4 from within a namespace. The connection
// can be used from anywhere.
func Dial(ctx context.Context, netns, addr string) (c net.Conn, err error) {
	err = in(netns, func() (err error) {
		// With a name, or with several addresses, other threads would dial.
		c, err = new(net.Dialer).DialContext(ctx, "tcp4", addr)
		return err
	})
	return c, err
}
