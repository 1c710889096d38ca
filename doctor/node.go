package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"

	"github.com/shoalproject/shoal/nodeinfo"
	"github.com/shoalproject/shoal/runtimes"
)

// get asks a URL and returns the answer with its body.
func (e *examination) get(ctx context.Context, url string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	return e.do(req)
}

func (e *examination) do(req *http.Request) (*http.Response, []byte, error) {
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return resp, body, err
}

// getSoon is get for what a process answers by itself, at once.
func (e *examination) getSoon(ctx context.Context, url string) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return e.get(ctx, url)
}

// askDaemon finds out how the daemon is set up.
func (e *examination) askDaemon(ctx context.Context) {
	_, body, err := e.getSoon(ctx, "http://"+e.Admin+"/readyz")
	if err != nil {
		e.add(Trap, "daemon", `start it: "shoal daemon", or name its --admin-listen with --admin`,
			fmt.Sprintf("nothing answers at its admin address %s: %v", e.Admin, cause(err)))
		return
	}
	var health struct{ Status, Store string }
	if json.Unmarshal(body, &health) != nil || health.Status == "" {
		e.add(Trap, "daemon", "name the daemon's --admin-listen with --admin", fmt.Sprintf("what answers at %s is no shoal daemon", e.Admin))
		return
	}
	if resp, body, err := e.getSoon(ctx, "http://"+e.Admin+nodeinfo.Path); err == nil && resp.StatusCode == http.StatusOK {
		var n nodeinfo.Node
		if json.Unmarshal(body, &n) == nil {
			e.node = &n
		}
	}
	switch {
	case e.node == nil:
		e.add(Trap, "daemon", "upgrade the daemon, or use the doctor of its version", fmt.Sprintf("the daemon at %s does not say how it is set up", e.Admin))
	case health.Status == "degraded":
		e.add(Trap, "daemon", "give the cache a disk that takes writes: until then every pull goes to the registry", "it stores nothing: "+health.Store)
	case health.Status != "ok":
		e.add(Trap, "daemon", "wait until it has started again", "it is "+health.Status)
	default:
		e.add(OK, "daemon", "", fmt.Sprintf("%s %s, --auth %s", e.node.Name, e.node.Version, e.node.Auth))
	}
	if e.node != nil && e.Options.Mirror == "" {
		e.Options.Mirror = "http://" + dialable(e.node.Mirror)
	}
}

// dialable is an address that is listened on, as one to dial from this node.
func dialable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return listen
}

// configuration looks at the runtime, and returns the registries for which it
// asks the mirror.
func (e *examination) configuration() []string {
	e.Options.Mirror = cmp.Or(e.Options.Mirror, e.Installed, DefaultMirror)
	in := runtimes.Inspect(e.Tree, e.Runtime, e.Options)
	for _, f := range in.Findings {
		status := OK
		if f.Trap {
			status = Trap
		}
		e.add(status, f.Check, f.Remedy, f.Text)
	}
	for _, file := range in.Files {
		if e.Changed == nil || e.Started.IsZero() {
			break
		}
		if changed := e.Changed(file); changed.After(e.Started) {
			e.add(Trap, "restart", "restart the runtime: containers keep running",
				fmt.Sprintf("%s was changed after the runtime was started, which reads it only then", file))
			break
		}
	}
	return in.Registries
}

// mirror looks whether the mirror listens where the runtime asks it.
func (e *examination) mirror(ctx context.Context) bool {
	const name = "mirror"
	u, err := url.Parse(e.Options.Mirror)
	if err != nil {
		e.add(Trap, name, "name it with --mirror http://HOST:PORT", err.Error())
		return false
	}
	wrong := ""
	if e.node != nil && !sameListener(u.Host, e.node.Mirror) {
		wrong = "the daemon listens at " + e.node.Mirror
	}
	resp, body, err := e.getSoon(ctx, e.Options.Mirror+"/v2/")
	switch {
	case err != nil && wrong != "":
		e.add(Trap, name, `run "shoal containerd install --mirror http://`+dialable(e.node.Mirror)+`", or set the daemon's --listen`,
			fmt.Sprintf("a wrong port: nothing answers at %s, %s", u.Host, wrong))
	case err != nil:
		e.add(Trap, name, `start the daemon, or set its --listen to that address`, fmt.Sprintf("nothing answers at %s: %v", u.Host, cause(err)))
	case resp.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != "{}" || wrong != "":
		text := fmt.Sprintf("a wrong port: what answers at %s is not this daemon's mirror", u.Host)
		if wrong != "" {
			text += ", " + wrong
		}
		e.add(Trap, name, "name the daemon's --listen with --mirror, to install and to doctor", text)
	default:
		e.add(OK, name, "", "it answers at "+u.Host)
		return true
	}
	return false
}

// smallCache is the least size of a cache that holds the layers of most images.
const smallCache = 1 << 30

// cache looks how much of the cache the disk leaves: a layer that is larger is
// stored on no node, and every pull of it goes to the registry.
func (e *examination) cache() {
	const name = "cache"
	if e.node == nil || e.node.Cache == nil {
		return // an earlier daemon, or a disk of which the daemon says what is wrong
	}
	c := e.node.Cache
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	switch {
	case c.Limit < c.Size && c.Limit < smallCache:
		e.add(Trap, name, "free space on the disk of --data-dir, or give the daemon another one",
			fmt.Sprintf("the disk leaves %s of --cache-size %s, since a tenth of it stays free: larger layers pass by, and every pull of them goes to the registry", size(c.Limit), size(c.Size)))
	case c.Limit < c.Size:
		e.add(OK, name, "", fmt.Sprintf("%s of %s used; the disk does not leave the whole --cache-size, %s", size(c.Used), size(c.Limit), size(c.Size)))
	default:
		e.add(OK, name, "", fmt.Sprintf("%s of %s used", size(c.Used), size(c.Limit)))
	}
}

// sameListener reports whether a dialed address can be that of a listener.
func sameListener(dialed, listens string) bool {
	host, port, err := net.SplitHostPort(dialed)
	lhost, lport, lerr := net.SplitHostPort(listens)
	if err != nil || lerr != nil || port != lport {
		return false
	}
	ip, lip := net.ParseIP(host), net.ParseIP(lhost)
	return ip == nil || lip == nil || lip.IsUnspecified() || ip.Equal(lip)
}

// allowed returns the endpoint of a registry that the daemon allows.
func (e *examination) allowed(registry string) (endpoint string, ok bool) {
	i := slices.IndexFunc(e.node.Registries, func(r nodeinfo.Registry) bool { return r.Host == registry })
	if i < 0 {
		return "", false
	}
	return e.node.Registries[i].Endpoint, true
}

// cause is what a person wants to know of a failed connection.
func cause(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return errors.New("connection refused")
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		if u.Timeout() {
			return errors.New("no answer in time")
		}
		return u.Err
	}
	return err
}
