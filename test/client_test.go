package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/shoalproject/shoal/daemon"
	"github.com/shoalproject/shoal/registry/registrytest"
)

// The download ends when nobody wants it any more.
func TestClientGoesAway(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(60, 4<<20))
	release := make(chan struct{})
	defer close(release)
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.HangAfter(1<<20, release))
	n := startNode(t, o)
	resp, err := n.http.Get(n.url + blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 512<<10); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	n.settled()
	eventually(t, "the origin's request ends", func() bool { return o.Concurrent() == 0 })
	// What came is kept.
	o.Heal()
	n.blob(d)
	if sent := o.Sent(d); sent > 5<<20 {
		t.Errorf("origin sent %d bytes of 4 MiB", sent)
	}
}

// Clients that ask and do not read hold up nobody else.
func TestClientsThatDoNotRead(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(61, 16<<20))
	n := startNode(t, o)
	for range 200 {
		conn, err := net.Dial("tcp", hostOf(t, n.url))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", blobPath(d))
	}
	n.blob(d)
	n.settled()
	n.blob(d)
	if got := o.Count(registrytest.Blob); got != 1 {
		t.Errorf("origin was asked %d times", got)
	}
}

// A client that never ends its headers is dropped.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	n := startNode(t, registrytest.New(t))
	conn, err := net.Dial("tcp", hostOf(t, n.url))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the connection was not closed: %v", err)
	}
}

func TestHugeHeaders(t *testing.T) {
	n := startNode(t, registrytest.New(t))
	conn, err := net.Dial("tcp", hostOf(t, n.url))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Huge: ")
		chunk := make([]byte, 64<<10)
		for i := range chunk {
			chunk[i] = 'a'
		}
		for {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// A place that a connection gave up goes to the next one.
func TestConnectionsGiveUpTheirPlace(t *testing.T) {
	n := startNode(t, registrytest.New(t), func(c *daemon.Config) { c.MaxConnections = 2 })
	idle := make([]net.Conn, 2)
	for i := range idle {
		conn, err := net.Dial("tcp", hostOf(t, n.url))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle[i] = conn
		fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
	}
	idle[0].Close()
	if a := n.get("/v2/"); a.StatusCode != 200 {
		t.Errorf("status %d, %v", a.StatusCode, a.err)
	}
}

// A daemon that is told to stop finishes what it is sending.
func TestGracefulStop(t *testing.T) {
	o := registrytest.New(t)
	d := o.AddBlob("app", noise(62, 1<<20))
	release := make(chan struct{})
	o.Inject(registrytest.Order{Kind: registrytest.Blob}, registrytest.HangAfter(512<<10, release))
	n := startNode(t, o, func(c *daemon.Config) { c.ShutdownGrace = time.Minute })
	resp, err := n.http.Get(n.url + blobPath(d))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stopped := make(chan struct{})
	go func() {
		n.stop()
		close(stopped)
	}()
	eventually(t, "new connections are refused", func() bool {
		c, err := net.Dial("tcp", hostOf(t, n.url))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	ready, err := http.Get(n.adm + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	ready.Body.Close()
	if ready.StatusCode != 503 {
		t.Errorf("a stopping daemon is ready: %d", ready.StatusCode)
	}
	close(release)
	v := d.Verifier()
	if _, err := io.Copy(v, resp.Body); err != nil || !v.Verified() {
		t.Errorf("the body was cut: %v", err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	<-stopped
}

func TestIPv6Only(t *testing.T) {
	o, err := registrytest.Start(registrytest.WithAddress("[::1]:0"))
	if err != nil {
		if l, lerr := net.Listen("tcp", "[::1]:0"); lerr != nil {
			t.Skipf("this machine has no IPv6: %v", lerr)
		} else {
			l.Close()
		}
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	d := o.AddBlob("app", noise(63, 1<<20))
	n := startNode(t, o, func(c *daemon.Config) {
		c.Listen, c.AdminListen, c.PeerListen = "[::1]:0", "[::1]:0", "[::1]:0"
		c.Registries = []string{o.Host() + "=" + o.URL()}
		c.DefaultRegistry = o.Host()
	})
	for _, path := range []string{"/v2/app/blobs/%s?ns=" + o.Host(), "/v2/" + o.Host() + "/app/blobs/%s", "/v2/app/blobs/%s"} {
		n.right(n.get(fmt.Sprintf(path, d)), d)
	}
}
