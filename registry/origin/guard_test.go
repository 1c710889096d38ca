package origin

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoalproject/shoal/registry"
	rt "github.com/shoalproject/shoal/registry/registrytest"
	"golang.org/x/net/dns/dnsmessage"
)

func TestForbiddenAddresses(t *testing.T) {
	for _, s := range []string{
		"127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.0.1", "255.255.255.255",
		"100.100.100.200", "168.63.129.16", "192.0.0.192", "::", "::1", "fe80::1", "fe80::1%eth0", "ff02::1",
		"fd00:ec2::254", "fd20:ce::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
		"64:ff9b::169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
	} {
		if !isForbidden(netip.MustParseAddr(s)) {
			t.Errorf("%s is allowed", s)
		}
	}
	for _, s := range []string{
		"10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "192.0.0.1", "168.63.129.17", "fd00::1",
		"2001:db8::1", "64:ff9b::808:808", "::ffff:10.0.0.1", "2002:808:808::1",
	} {
		if isForbidden(netip.MustParseAddr(s)) {
			t.Errorf("%s is forbidden", s)
		}
	}
}

// forbiddenURLs are ways to write an address of this host, at port.
func forbiddenURLs(scheme, port string) []string {
	var out []string
	for _, h := range []string{
		"127.0.0.1", "localhost", "LOCALHOST", "x.localhost", "localhost.", "[::1]", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
		"0.0.0.0", "0", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "user:pass@127.0.0.1",
	} {
		out = append(out, scheme+"://"+h+":"+port+"/v2/")
	}
	return out
}

// TestRedirectsToForbiddenPlaces: a loopback endpoint is allowed by its
// literal address, the same address on another port is not.
func TestRedirectsToForbiddenPlaces(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	_, port, _ := net.SplitHostPort(trap(t, ":0")) // all addresses, both families
	nameserver(t, func(string) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	c := newClient(t, o)
	places := append(forbiddenURLs("http", port), forbiddenURLs("https", port)...)
	places = append(places, "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://x/", "//127.0.0.1:"+port+"/", "http://", "http:///x", ":", "javascript:x",
		"http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://100.100.100.200/")
	for _, place := range places {
		cancel := o.Inject(rt.Order{Kind: rt.Blob}, rt.Redirect(place))
		_, _, err := readBlob(t, c, d, 0, -1)
		cancel()
		if err == nil {
			t.Errorf("%s: no error", place)
			continue
		}
		var e *registry.Error
		if !errors.As(err, &e) || e.Status < 502 || e.Status > 503 {
			t.Errorf("%s: %v", place, err)
		}
	}
	// And the listener is one that would be reached if it were allowed.
	if b, _, err := readBlob(t, c, d, 0, -1); err != nil || string(b) != "data" {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

func TestTokenRealmsAtForbiddenPlaces(t *testing.T) {
	_, port, _ := net.SplitHostPort(trap(t, ":0"))
	nameserver(t, func(string) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	places := append(forbiddenURLs("http", port), "file:///etc/passwd", "http://169.254.169.254/token", "not a URL", "")
	for _, place := range places {
		auth := aliceOnly()
		auth.Realm = place
		if place == "" {
			auth.Realm = "/token"
		}
		o := rt.New(t, rt.WithAuth(auth))
		_, err := newClient(t, o, alice).HeadBlob(t.Context(), target, o.AddBlob(repo, []byte("data")))
		if err == nil {
			t.Errorf("%s: no error", place)
			continue
		}
		checkSecrets(t, err.Error())
		if !IsUnavailable(err) {
			t.Errorf("%s: %v", place, err)
		}
	}
}

func TestRedirectLoopEnds(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	o.Inject(rt.Order{}, rt.RedirectLoop())
	_, _, err := readBlob(t, newClient(t, o), d, 0, -1)
	wantStatus(t, err, 502)
	if n := o.Count(rt.Blob); n != 1+maxHops {
		t.Errorf("%d requests, want %d", n, 1+maxHops)
	}
}

func TestNoPlainHTTPAfterHTTPS(t *testing.T) {
	plain := rt.New(t)
	auth := aliceOnly()
	auth.Realm = plain.URL() + "/token"
	o := rt.New(t, rt.WithTLS(), rt.WithAuth(auth))
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o, alice, allowing(plain.Host()))
	_, err := c.HeadBlob(t.Context(), target, d) // realm
	wantStatus(t, err, 502)
	o.Inject(rt.Order{}, rt.Redirect(plain.URL()+"/v2/"+repo+"/blobs/"+string(d)))
	_, _, err = readBlob(t, c, d, 0, -1)
	wantStatus(t, err, 502)
	if n := plain.Connections(); n != 0 {
		t.Errorf("%d connections over plain HTTP", n)
	}
}

// nameserver makes names resolve to what answer returns, for this test.
func nameserver(t *testing.T, answer func(name string) netip.Addr) {
	t.Helper()
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			buf := make([]byte, 2048) // over a stream, two bytes of length go first
			n, err := b.Read(buf)
			for n < 2 && err == nil {
				var m int
				m, err = b.Read(buf[n:])
				n += m
			}
			var msg dnsmessage.Message
			if err != nil || msg.Unpack(buf[2:n]) != nil {
				return
			}
			msg.Response = true
			q := msg.Questions[0]
			if addr := answer(strings.TrimSuffix(q.Name.String(), ".")); q.Type == dnsmessage.TypeA && addr.Is4() {
				msg.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: addr.As4()},
				}}
			}
			msg.Additionals = nil
			out, err := msg.Pack()
			if err != nil {
				return
			}
			_, _ = b.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
		}()
		return a, nil
	}}
}

// privateAddress returns an address of this host that is neither loopback nor
// link-local.
func privateAddress(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !isForbidden(p.Addr()) {
			return p.Addr()
		}
	}
	t.Skip("this host has only loopback and link-local addresses")
	return netip.Addr{}
}

func named(o *rt.Origin, name string) (Config, string) {
	_, port, _ := net.SplitHostPort(o.Host())
	server := net.JoinHostPort(name, port)
	u := registry.Upstream{Host: host, Endpoint: url.URL{Scheme: "http", Host: server}}
	return Config{Endpoints: []Endpoint{{Upstream: u}}, RetryDelay: time.Millisecond}, server
}

func TestNameOfLoopback(t *testing.T) {
	nameserver(t, func(string) netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	cfg, server := named(o, "registry.example")
	_, err := newClientOf(t, cfg).HeadBlob(t.Context(), target, d)
	wantStatus(t, err, 502)
	if !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("not ErrForbiddenAddress: %v", err)
	}
	if n := o.Connections(); n != 0 {
		t.Errorf("%d connections to loopback", n)
	}
	if _, err := newClientOf(t, cfg, allowing(server)).HeadBlob(t.Context(), target, d); err != nil {
		t.Errorf("allowed by name: %v", err)
	}
}

// TestRebinding: the name means a good address first and loopback later.
func TestRebinding(t *testing.T) {
	good := privateAddress(t)
	o := rt.New(t, rt.WithAddress(netip.AddrPortFrom(good, 0).String()))
	d := o.AddBlob(repo, []byte("data"))
	cfg, server := named(o, "registry.example")
	_, port, _ := net.SplitHostPort(server)
	trap(t, "127.0.0.1:"+port)
	var addr atomic.Pointer[netip.Addr]
	addr.Store(&good)
	nameserver(t, func(string) netip.Addr { return *addr.Load() })
	c := newClientOf(t, cfg)
	if _, err := c.HeadBlob(t.Context(), target, d); err != nil {
		t.Fatalf("a private address is not forbidden: %v", err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	addr.Store(&loopback)
	c.endpoints[host].own.CloseIdleConnections()
	_, err := c.HeadBlob(t.Context(), target, d)
	wantStatus(t, err, 502)
}

func TestProxy(t *testing.T) {
	proxy := rt.New(t) // a server that takes absolute URLs is all that plain HTTP needs
	d := proxy.AddBlob(repo, []byte("data"))
	proxyURL, _ := url.Parse(proxy.URL())
	cfg, _ := named(proxy, "registry.example")
	c := newClientOf(t, cfg, func(c *Config) {
		c.Proxy = func(*http.Request) (*url.URL, error) { return proxyURL, nil }
	})
	if b, _, err := readBlob(t, c, d, 0, -1); err != nil || string(b) != "data" {
		t.Fatalf("through a proxy on loopback: %q, %v", b, err)
	}
	for _, place := range []string{"http://127.0.0.1:9/", "http://localhost/", "http://169.254.169.254/", proxy.URL() + "/v2/"} {
		proxy.ResetCounters()
		cancel := proxy.Inject(rt.Order{Kind: rt.Blob, Times: 1}, rt.Redirect(place))
		_, _, err := readBlob(t, c, d, 0, -1)
		wantStatus(t, err, 502)
		cancel()
		if n := len(proxy.Requests()); n != 1 {
			t.Errorf("%s: the proxy was asked for it", place)
		}
	}
}

func TestIPv6Endpoint(t *testing.T) {
	o := rt.New(t, rt.WithAddress("[::1]:0"), rt.WithTLS(), rt.WithAuth(aliceOnly()), rt.WithStore())
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o, alice, allowing(o.StoreHost()))
	if b, _, err := readBlob(t, c, d, 0, -1); err != nil || !bytes.Equal(b, []byte("data")) {
		t.Errorf("%q, %v", b, err)
	}
}

// A registry with a public address leads callers to a private one: not for what
// is handed to them, nor for tokens.
func TestPrivateAddressesAreForPrivateRegistries(t *testing.T) {
	o := rt.New(t)
	c := newClient(t, o)
	e := c.endpoints[host]
	for address, private := range map[string]bool{
		"10.0.0.1:80": true, "192.168.1.1:80": true, "172.31.0.1:80": true, "100.64.0.1:80": true, "[fd00::1]:80": true,
		"[::ffff:10.0.0.1]:80": true, "[64:ff9b::a00:1]:80": true, "203.0.113.1:80": false, "[2001:db8::1]:80": false,
	} {
		for own, refuse := range map[string]bool{"public": private, "private": false} {
			e.private.Store(own == "private")
			if err := e.controlStrictly(t.Context(), "tcp", address, nil); (err != nil) != refuse {
				t.Errorf("%s for a %s registry: %v", address, own, err)
			}
			if err := control(t.Context(), "tcp", address, nil); err != nil {
				t.Errorf("%s for a blob: %v", address, err)
			}
		}
	}
	e.private.Store(false)
	if _, err := c.Pass(t.Context(), target, "tags/list", nil, nil); err == nil {
		t.Error("no such repository, and it is listed")
	}
	if !e.private.Load() {
		t.Error("a registry on loopback counts as public after it was reached")
	}
}

// What is handed on as a listing is one.
func TestListingsAreListings(t *testing.T) {
	o := rt.New(t)
	img := o.AddImage(repo, "latest")
	c := newClient(t, o)
	for _, path := range []string{"tags/list", "referrers/" + img.Manifest.Digest.String()} {
		if _, err := c.Pass(t.Context(), target, path, nil, nil); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, body := range []string{`{"db_password":"hunter2"}`, `["hunter2"]`, `"hunter2"`, "hunter2", `{"tags":"hunter2"}`, `{"manifests":"hunter2"}`, ""} {
			cancel := o.Inject(rt.Order{}, rt.Answer(200, body, "Content-Type", "application/json"))
			_, err := c.Pass(t.Context(), target, path, nil, nil)
			if e := wantStatus(t, err, 502); strings.Contains(e.Error(), "hunter2") {
				t.Errorf("%s: the answer is told: %v", path, err)
			}
			cancel()
		}
	}
}

// A 404 means something else for each route.
func TestUnknownByRoute(t *testing.T) {
	o := rt.New(t)
	img := o.AddImage(repo, "latest")
	d := img.Config.Digest
	c := newClient(t, o)
	ctx := t.Context()
	routes := map[string]func() error{
		registry.CodeManifestUnknown: func() error { _, err := c.Manifest(ctx, target, "latest", nil); return err },
		registry.CodeBlobUnknown:     func() error { _, err := c.Blob(ctx, target, d, 0, -1); return err },
		registry.CodeNameUnknown:     func() error { _, err := c.Pass(ctx, target, "tags/list", nil, nil); return err },
		registry.CodeUnsupported:     func() error { _, err := c.Pass(ctx, target, "referrers/"+d.String(), nil, nil); return err },
	}
	for _, body := range []string{"404 page not found\n", "", "{}"} {
		cancel := o.Inject(rt.Order{}, rt.Answer(404, body))
		for code, ask := range routes {
			if e := wantStatus(t, ask(), 404); e.Code != code {
				t.Errorf("%q: code %s, want %s", body, e.Code, code)
			}
		}
		cancel()
	}
	o.Inject(rt.Order{}, rt.Answer(404, `{"errors":[{"code":"NAME_UNKNOWN","message":"no such project"}]}`))
	for _, ask := range routes {
		if e := wantStatus(t, ask(), 404); e.Code != registry.CodeNameUnknown || !strings.Contains(e.Message, "no such project") {
			t.Errorf("the registry's own words do not arrive: %v", e)
		}
	}
}
