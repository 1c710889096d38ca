package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/shoalproject/shoal/piece"
)

// nameserver has every name that is not in the hosts file stand for addr.
func nameserver(t *testing.T, addr [4]byte) {
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			var length [2]byte
			if _, err := io.ReadFull(far, length[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(length[:]))
			var m dnsmessage.Message
			if _, err := io.ReadFull(far, b); err != nil || m.Unpack(b) != nil {
				return
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: addr},
				}}
			}
			b = must(m.Pack())
			far.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		}()
		return near, nil
	}}
}

// A name that stands for this machine reaches nothing here, unless it says so.
func TestNameOfLoopback(t *testing.T) {
	nameserver(t, [4]byte{127, 0, 0, 1})
	src := newContent(piece.MinLength)
	seed := newEndpoint(t, Config{})
	_, port, _ := net.SplitHostPort(serve(t, seed, "127.0.0.1"))
	open(t, seed, src.blob(nil, src.all()...))
	s := open(t, newEndpoint(t, Config{}), src.blob(nil))
	if _, err := s.Dial(t.Context(), net.JoinHostPort("node.example", port), ""); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("a name of loopback: %v", err)
	}
	mustGet(t, dial(t, s, net.JoinHostPort("localhost", port), ""), src, 0)
	if n := seed.Stats().Accepted; n != 1 {
		t.Errorf("%d connections, want that to localhost", n)
	}
}

func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		host, address string
		ok            bool
	}{
		{"node.example", "10.1.2.3:4401", true},
		{"node.example", "[fd00::1]:4401", true},
		{"node.example", "203.0.113.1:4401", true},
		{"localhost", "127.0.0.1:4401", true},
		{"LocalHost", "[::1]:4401", true},
		{"node.example", "127.0.1.1:4401", false},
		{"node.example", "[::1]:4401", false},
		{"node.example", "[::ffff:127.0.0.1]:4401", false},
		{"node.example", "169.254.169.254:80", false},
		{"node.example", "[fe80::1%eth0]:4401", false},
		{"node.example", "0.0.0.0:4401", false},
		{"node.example", "[::]:4401", false},
		{"node.example", "224.0.0.1:4401", false},
		{"node.example", "[ff02::1]:4401", false},
		{"node.example", "255.255.255.255:4401", false},
		{"localhost", "169.254.169.254:80", false},
		{"localhost.", "127.0.0.1:4401", false},
		{"127.1", "127.0.0.1:4401", false}, // what some resolvers take for an address
		{"", "127.0.0.1:4401", false},
		{"node.example", "nonsense", false},
	} {
		if err := guard(tc.host)("tcp", tc.address, nil); (err == nil) != tc.ok {
			t.Errorf("%s at %s: %v", tc.host, tc.address, err)
		}
	}
	for _, host := range []string{"127.0.0.1", "::1", "fe80::1%eth0"} { // as the scheduler let them pass
		if guard(host) != nil {
			t.Errorf("%s is looked at", host)
		}
	}
}
