package e2e

import (
	"net"
	"testing"
)

// DaemonConfig is how a shoal daemon is started.
type DaemonConfig struct {
	// Registries are the values of --registry: HOST or HOST=URL.
	Registries []string
	// DefaultRegistry is the value of --default-registry, left out if empty.
	DefaultRegistry string
	// Auth is the value of --auth; empty means open.
	Auth string
	// Schedulers are the values of --scheduler.
	Schedulers []string
	// Identity is what the daemon proves itself by; nil is plaintext.
	Identity *Identity
	// Descriptors is how many file descriptors the process may have; 0 leaves
	// the limit of the test.
	Descriptors int
	// Binary is what is started; empty is the one under test.
	Binary string
	// Extra flags come last.
	Extra []string
}

// Daemon is a running `shoal daemon`.
type Daemon struct {
	program
	// Addr is where runtimes reach the mirror, host:port. It stays the same
	// through [Daemon.Restart].
	Addr string
	// DataDir is the daemon's --data-dir.
	DataDir string

	node   *Node
	config DaemonConfig
	peer   string
}

// StartDaemon runs a daemon on the node until the end of the test, and returns
// when it is ready.
func (n *Node) StartDaemon(t testing.TB, config DaemonConfig) *Daemon {
	t.Helper()
	if config.Auth == "" {
		config.Auth = "open"
	}
	d := &Daemon{DataDir: n.Path("shoal"), node: n, config: config}
	d.Binary = config.Binary
	d.proc = startOnPorts(t, 3, func(ports []string) (*Process, error) {
		d.Addr = net.JoinHostPort(n.Addr, ports[0])
		d.Admin = net.JoinHostPort(n.Addr, ports[1])
		d.peer = net.JoinHostPort(n.Addr, ports[2])
		return d.start(t)
	})
	return d
}

func (d *Daemon) start(t testing.TB) (*Process, error) {
	t.Helper()
	args := []string{
		"daemon", "--listen", d.Addr, "--peer-listen", d.peer, "--admin-listen", d.Admin,
		"--node-name", d.node.Name, "--data-dir", d.DataDir, "--auth", d.config.Auth,
	}
	for _, r := range d.config.Registries {
		args = append(args, "--registry", r)
	}
	if d.config.DefaultRegistry != "" {
		args = append(args, "--default-registry", d.config.DefaultRegistry)
	}
	for _, s := range d.config.Schedulers {
		args = append(args, "--scheduler", s)
	}
	args = append(args, d.config.Identity.flags()...)
	args = append(args, d.config.Extra...)
	return d.run(t, d.node, d.config.Descriptors, args...)
}

// URL is the mirror's base URL.
func (d *Daemon) URL() string { return "http://" + d.Addr }

// Restart starts a daemon that has ended again, on the same addresses and data.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	proc, err := d.start(t)
	if err != nil {
		t.Fatal(err)
	}
	d.proc = proc
}
