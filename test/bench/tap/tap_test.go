package tap

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalproject/shoal/registry/registrytest"
	"github.com/shoalproject/shoal/test/bench/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, backend string) (*Tap, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tap := New(backend)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tap.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return tap, l.Addr().String()
}

// eventually looks at the counts until they are right.
func eventually(t *testing.T, tap *Tap, right func(Counts) bool) Counts {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		c := tap.Counts()
		if right(c) {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %+v", c)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCountsAPull(t *testing.T) {
	o := registrytest.New(t)
	img := o.AddImage("a/b", "v1", make([]byte, 9<<20), []byte{1})
	tap, addr := start(t, o.Host())
	out, err := load.Pull(t.Context(), "http://"+addr, "a/b", "v1")
	if err != nil {
		t.Fatal(err)
	}
	want := img.Manifest.Size + img.Config.Size + 9<<20 + 1
	c := eventually(t, tap, func(c Counts) bool { return c.InFlight == 0 && c.Unacked == 0 })
	if c.Payload != want || out.Bytes != want || c.Total != 5 || c.Failed != 0 || c.Unsent != 0 || c.Heads == 0 {
		t.Errorf("%+v of %d bytes", c, want)
	}
	if c.Requests["HEAD manifest"] != 1 || c.Requests["GET manifest"] != 1 || c.Requests["GET blob"] != 3 {
		t.Errorf("%v", c.Requests)
	}
}

// What a client leaves unread has not been sent, though the kernel had it.
func TestCountsWhatWasSent(t *testing.T) {
	const size = 64 << 20
	o := registrytest.New(t)
	d, err := registrytest.Digest(registrytest.Zeros{}, size)
	if err != nil {
		t.Fatal(err)
	}
	o.AddVirtual("a/b", d, registrytest.Zeros{}, size)
	tap, addr := start(t, o.Host())
	const wanted, window = 3 << 20, 256 << 10
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, c.(*net.TCPConn).SetReadBuffer(window)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + addr + "/v2/a/b/blobs/" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, wanted); err != nil {
		t.Fatal(err)
	}
	eventually(t, tap, func(c Counts) bool { return c.Unsent > 0 && c.InFlight == 1 })
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	c := eventually(t, tap, func(c Counts) bool { return c.Failed == 1 && c.InFlight == 0 })
	// The kernel doubles a window, and some bytes are on the way.
	if c.Payload < wanted || c.Payload > wanted+4*window {
		t.Errorf("%+v, of which %d bytes were read", c, wanted)
	}
}

func TestPassesRefusals(t *testing.T) {
	o := registrytest.New(t)
	tap, addr := start(t, o.Host())
	if _, err := load.Pull(t.Context(), "http://"+addr, "no/such", "v1"); err == nil {
		t.Fatal("pulled what is not there")
	}
	eventually(t, tap, func(c Counts) bool { return c.Total == 1 && c.InFlight == 0 && c.Payload == 0 })
}
