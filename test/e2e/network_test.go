package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestNamespaces pulls on two nodes with network namespaces of their own.
func TestNamespaces(t *testing.T) {
	NeedRoot(t)
	Containerd16.Find(t)
	network := NewNetwork(t)
	b := &bed{image: newImage(t, SinglePlatform)}
	b.registry = NewNodeAt(t, "origin", network.Addr, "").StartRegistry(t)
	b.registry.Push(t, b.image, repository, tag)
	for _, name := range []string{"one", "two"} {
		b.node = network.NewNode(t, name)
		b.daemon = b.node.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + b.registry.Origin.URL()}})
		c := b.containerd(t, Containerd16, "containerd", ContainerdOptions{}, b.daemon.URL())
		b.pullsAndHolds(t, c, withCRI, byTag())
		runs(t, c, CRINamespace, byTag())
		b.nothingWentPast(t)
	}
}

// TestCut is about the harness: a node that is cut off reaches whom it was not
// cut off from, and everybody when it is mended.
func TestCut(t *testing.T) {
	network := NewNetwork(t)
	cut, other := network.NewNode(t, "cut"), network.NewNode(t, "other")
	listener, err := net.Listen("tcp", net.JoinHostPort(network.Addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	reach := func(n *Node, limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		conn, err := n.Dial(ctx, "tcp", listener.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err
	}
	cut.Cut(t, other.Addr)
	if err := reach(cut, time.Minute); err != nil {
		t.Errorf("cut off from another node: %v", err)
	}
	cut.Mend(t)
	cut.Cut(t, network.Addr)
	if err := reach(cut, time.Second); !isTimeout(err) {
		t.Errorf("a packet passed, or somebody answered for it: %v", err)
	}
	if err := reach(other, time.Minute); err != nil {
		t.Errorf("the other node: %v", err)
	}
	cut.Mend(t)
	if err := reach(cut, time.Minute); err != nil {
		t.Errorf("when mended: %v", err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// TestGate is about the harness: a gate stops all bodies together, at a number
// of bytes.
func TestGate(t *testing.T) {
	const bodies, size, chunk = 4, 1 << 20, 32 << 10
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, size))
	}))
	defer server.Close()
	tap := NewTap(t, "127.0.0.1", server.URL)
	gate := NewGate(size)
	tap.Order(func(Request) bool { return true }, &Fault{Gate: gate})
	ended := make(chan error, bodies)
	for range bodies {
		go func() {
			resp, err := fetchClient.Get(tap.URL())
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			ended <- err
		}()
	}
	for _, limit := range []int64{size, 2 * size} {
		gate.Raise(limit)
		Eventually(t, "all bodies are stopped", time.Minute, func() error {
			// Each waits with a chunk that does not fit any more.
			if got := bytesOf(tap.SoFar(t)); !gate.Held() || got <= limit-chunk {
				return errors.New("not yet")
			}
			return nil
		})
		if got := bytesOf(tap.SoFar(t)); got > limit {
			t.Errorf("%d bytes passed a gate that lets %d", got, limit)
		}
	}
	if len(ended) == bodies {
		t.Error("all bodies ended before the gate was open")
	}
	gate.Open()
	for range bodies {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got := tap.Bytes(t); got != bodies*size {
		t.Errorf("%d bytes passed, want %d", got, bodies*size)
	}
}
