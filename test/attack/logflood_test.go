package attack

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoalproject/shoal/test/rig"
)

// Four connections ask for paths of 60 KiB as fast as they can. The log stays
// small, and says that lines were left out.
func TestLogStaysSmall(t *testing.T) {
	n := rig.StartDaemon(t, rig.DaemonConfig{Registries: []string{"r.test=http://127.0.0.1:1"}})
	before := n.LogSize()
	const requests = 500
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c, err := net.Dial("tcp", n.Mirror)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			r := bufio.NewReader(c)
			path := "/v2/" + strings.Repeat("A/", 30<<10) + "manifests/v1"
			for range requests {
				fmt.Fprintf(c, "HEAD %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path)
				for line := ""; line != "\r\n"; {
					if line, err = r.ReadString('\n'); err != nil {
						t.Errorf("the daemon does not answer: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	grown := n.LogSize() - before
	t.Logf("%d requests made %d bytes of log", 4*requests, grown)
	if grown > 512<<10 {
		t.Errorf("%d requests made %d bytes of log", 4*requests, grown)
	}
	for line := range strings.Lines(n.Log()) {
		if len(line) > 2048 {
			t.Errorf("a line of %d bytes", len(line))
			break
		}
	}
	rig.Eventually(t, "the lines left out are counted", 30*time.Second, func() error {
		if !strings.Contains(n.Log(), "left_out=") {
			return fmt.Errorf("no count")
		}
		return nil
	})
}
