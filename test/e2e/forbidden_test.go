package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestNoForbiddenPacket asks a daemon for upstreams that it must not reach, and
// has an allowed origin redirect and name realms there. The kernel counts what
// leaves the node, and each connection that begins on its loopback: but for the
// origin, the mirror and the admin port, there is none. Questions to a name
// server are not counted, and nobody answers them; nor are the kernel's own
// messages about groups and neighbours.
func TestNoForbiddenPacket(t *testing.T) {
	network := NewNetwork(t)
	n := network.NewNode(t, "node")
	NeedProgram(t, "nft", "nftables")
	// Every address has a way out of the node, so that the daemon alone decides.
	if _, err := n.Run("ip", "route", "add", "default", "via", network.Addr); err != nil {
		t.Fatal(err)
	}

	var places []string // of the redirects and realms, by their number in the path
	origin := &httptest.Server{Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var i int
		var way string
		if _, err := fmt.Sscanf(r.URL.Path, "/v2/%4s-%d/", &way, &i); err != nil || i >= len(places) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if way == "real" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x"`, places[i]))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Location", places[i])
		w.WriteHeader(http.StatusTemporaryRedirect)
	})}}
	var err error
	if origin.Listener, err = net.Listen("tcp", net.JoinHostPort(network.Addr, "0")); err != nil {
		t.Fatal(err)
	}
	origin.Start()
	defer origin.Close()
	d := n.StartDaemon(t, DaemonConfig{Registries: []string{upstream + "=" + origin.URL}, Auth: "node"})

	_, mirror, _ := net.SplitHostPort(d.Addr)
	_, admin, _ := net.SplitHostPort(d.Admin)
	_, port, _ := net.SplitHostPort(origin.Listener.Addr().String())
	rules := fmt.Sprintf(`table inet forbidden {
counter strays {}
set places { type ipv4_addr . inet_service; size 1024; flags dynamic; }
chain output {
type filter hook output priority 0; policy accept;
meta l4proto { icmpv6, igmp } accept
oif lo tcp flags & (syn | ack) == syn tcp dport != { %s, %s } add @places { ip daddr . tcp dport } counter name strays
oif != lo ip daddr %s tcp dport %s accept
udp dport 53 reject
oif != lo meta l4proto tcp add @places { ip daddr . tcp dport }
oif != lo counter name strays drop
}
}
`, mirror, admin, network.Addr, port)
	if _, err := n.Run("nft", rules); err != nil {
		t.Fatal(err)
	}
	counted := func() int {
		t.Helper()
		out, err := n.Run("nft", "list counter inet forbidden strays")
		if err != nil {
			t.Fatal(err)
		}
		match := regexp.MustCompile(`packets (\d+) bytes`).FindStringSubmatch(out)
		if match == nil {
			t.Fatalf("no counter in %q", out)
		}
		v, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		return v
	}
	// The counter counts.
	for i, addr := range []string{"169.254.169.254:80", "10.0.0.1:80", "127.0.0.2:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		conn, err := n.Dial(ctx, "tcp", addr)
		cancel()
		if err == nil {
			conn.Close()
		}
		if got := counted(); got < i+1 {
			t.Fatalf("the counter is at %d after %d forbidden connections (%v)", got, i+1, err)
		}
	}
	before := counted()

	ask := func(path, ns string) (int, string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.RawQuery = ns
		resp, err := n.HTTP().Do(req)
		if err != nil {
			t.Errorf("%s?%s: %v", path, ns, err)
			return 0, ""
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s?%s: %v", path, ns, err)
		}
		return resp.StatusCode, string(body)
	}
	digest := "sha256:" + strings.Repeat("0", 64)
	hosts := []string{
		"169.254.169.254", "169.254.169.254:80", "[fd00:ec2::254]", "100.100.100.200", "metadata.google.internal", "localhost", "127.0.0.1", "127.0.0.2:80", "[::1]:80",
		"10.0.0.1", "192.168.0.1:5000", "172.16.0.1", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]", "0.0.0.0:" + mirror,
	}
	for _, host := range hosts {
		for _, form := range []struct{ path, query string }{
			{"/v2/app/blobs/" + digest, "ns=" + url.QueryEscape(host)},
			{"/v2/app/manifests/latest", "ns=" + url.QueryEscape("http://"+host)},
			{"/v2/app/manifests/latest", "ns=" + url.QueryEscape("user:pw@"+host)},
			{"/v2/app/manifests/latest", "ns=" + upstream + "&ns=" + url.QueryEscape(host)},
			{"/v2/" + host + "/app/blobs/" + digest, ""},
		} {
			if status, body := ask(form.path, form.query); status < 400 || status > 499 {
				t.Errorf("%s?%s: status %d %s", form.path, form.query, status, body)
			}
		}
	}
	for _, host := range hosts {
		places = append(places, "http://"+host+"/latest/meta-data/", "https://"+host+"/x")
	}
	places = append(places, "file:///etc/passwd", "gopher://169.254.169.254/", "//169.254.169.254/x", "http://user:pw@169.254.169.254/")
	private := regexp.MustCompile(`^https?://(10|172\.16|192\.168)\.`)
	for i, place := range places {
		for _, way := range []string{"redi", "real"} {
			for _, path := range []string{"blobs/" + digest, "manifests/latest", "tags/list", "referrers/" + digest} {
				if way == "redi" && path == "blobs/"+digest && private.MatchString(place) {
					// Object stores have private addresses. What they send is
					// compared with the digest before anybody gets it.
					continue
				}
				full := fmt.Sprintf("/v2/%s-%d/%s", way, i, path)
				if status, body := ask(full, "ns="+upstream); status < 400 {
					t.Errorf("%s, which leads to %s: status %d %s", full, place, status, body)
				}
			}
		}
	}
	if got := counted() - before; got != 0 {
		places, err := n.Run("nft", "list set inet forbidden places")
		t.Errorf("%d packets to forbidden addresses (%v), some of them in the beginning by this test itself: %s", got, err, places)
	}
}
