package bed

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Daemon is a running `shoal daemon`.
type Daemon struct {
	*Process
	// Addr and Admin are HOST:PORT of the mirror and of the admin endpoints.
	Addr, Admin string
	// DataDir goes when the daemon is stopped by Discard.
	DataDir string
}

// StartDaemon runs a daemon with an empty data directory, in front of one
// origin that all requests go to; more flags come last. It returns when it is
// ready.
func (b *Bed) StartDaemon(at Place, origin string, flags ...string) (*Daemon, error) {
	d, err := b.LaunchDaemon(at, origin, flags...)
	if err != nil {
		return nil, err
	}
	return d, d.WaitReady()
}

// LaunchDaemon is StartDaemon that does not wait.
func (b *Bed) LaunchDaemon(at Place, origin string, flags ...string) (*Daemon, error) {
	dir, err := b.NewDir("data")
	if err != nil {
		return nil, err
	}
	ports, err := at.ports(4400, 4403)
	if err != nil {
		return nil, err
	}
	d := &Daemon{Addr: ports[0], Admin: ports[1], DataDir: dir}
	args := []string{"daemon",
		"--listen", d.Addr, "--admin-listen", d.Admin, "--data-dir", dir, "--auth", "open",
		"--registry", "bench.example=http://" + origin, "--default-registry", "bench.example",
		"--log-level", "warn"}
	if d.Process, err = b.start(at, b.Shoal, append(args, flags...)...); err != nil {
		return nil, err
	}
	return d, nil
}

// WaitReady returns when the daemon says that it is.
func (d *Daemon) WaitReady() error {
	return d.waitReady(func() error { return d.answers(d.Admin, "/readyz") })
}

// Discard stops the daemon and removes its data.
func (d *Daemon) Discard() error {
	if err := d.Stop(); err != nil {
		return err
	}
	return os.RemoveAll(d.DataDir)
}

// Registry is Debian's docker-registry.
type Registry struct {
	*Process
	Addr string
}

const registryConfig = `version: 0.1
log: {accesslog: {disabled: true}, level: error}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "%s"}
`

// StartRegistry runs a registry on what is in a directory.
func (b *Bed) StartRegistry(at Place, root string) (*Registry, error) {
	ports, err := at.ports(5000)
	if err != nil {
		return nil, err
	}
	r := &Registry{Addr: ports[0]}
	dir, err := b.NewDir("registry")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, root, r.Addr), 0o600); err != nil {
		return nil, err
	}
	if r.Process, err = b.start(at, DockerRegistry.Program, "serve", config); err != nil {
		return nil, err
	}
	return r, r.waitReady(func() error { return r.answers(r.Addr, "/v2/") })
}

// NginxServer serves a directory.
type NginxServer struct {
	*Process
	Addr string
}

// The workers stay root, who owns the files. tcp_nopush stays off, as it is
// unless set: on loopback that is about a fifth faster than on, and other values
// of sendfile_max_chunk change nothing (nginx 1.22, five runs in turn of each).
const nginxConfig = `daemon off;
user root;
worker_processes auto;
pid %[1]s/pid;
error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	keepalive_requests 1000000;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server { listen %[2]s; root %[3]s; }
}
`

// StartNginx serves the files in root.
func (b *Bed) StartNginx(at Place, root string) (*NginxServer, error) {
	ports, err := at.ports(5000)
	if err != nil {
		return nil, err
	}
	n := &NginxServer{Addr: ports[0]}
	dir, err := b.NewDir("nginx")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, n.Addr, root), 0o600); err != nil {
		return nil, err
	}
	if n.Process, err = b.start(at, Nginx.Program, "-p", dir, "-c", config); err != nil {
		return nil, err
	}
	return n, n.waitReady(func() error { return n.answers(n.Addr, "") })
}

// answers is nil once the server answers at one of its addresses; with a path,
// only if it answers with 200.
func (p *Process) answers(addr, path string) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: p.at.dial}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Timeout: 5 * time.Second, Transport: transport}).Get("http://" + addr + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if path != "" && resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Request.URL, resp.Status)
	}
	return nil
}
