package bed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/test/bench/load"
	"github.com/shoalproject/shoal/test/bench/tap"
)

// Scheduler is a running `shoal scheduler`.
type Scheduler struct {
	*Process
	// Addr and Admin are HOST:PORT of gRPC and of the admin endpoints.
	Addr, Admin string
	port        int
}

// StartScheduler runs a scheduler, and returns when it is ready.
func (b *Bed) StartScheduler(at Place) (*Scheduler, error) {
	ports, err := at.ports(4402, 4404)
	if err != nil {
		return nil, err
	}
	s := &Scheduler{Addr: ports[0], Admin: ports[1]}
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return nil, err
	}
	if s.port, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	s.Process, err = b.start(at, b.Shoal, "scheduler", "--listen", s.Addr, "--admin-listen", s.Admin, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	return s, s.waitReady(func() error { return s.answers(s.Admin, "/readyz") })
}

// WaitConnected returns when so many daemons are connected.
func (s *Scheduler) WaitConnected(daemons int) error {
	return s.waitReady(func() error {
		n, err := s.Clients(s.port)
		if err == nil && n < daemons {
			err = fmt.Errorf("%d of %d daemons are connected", n, daemons)
		}
		return err
	})
}

// Tap counts what an origin sends; see package tap.
type Tap struct {
	*Process
	// Addr is where clients find the origin.
	Addr    string
	control string
}

// StartTap runs a tap before a server, HOST:PORT as seen from the place.
func (b *Bed) StartTap(at Place, server string) (*Tap, error) {
	ports, err := at.ports(5000)
	if err != nil {
		return nil, err
	}
	dir, err := b.NewDir("tap")
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t := &Tap{Addr: ports[0], control: filepath.Join(dir, "s")}
	if t.Process, err = b.start(at, exe, "tap", t.Addr, server, t.control); err != nil {
		return nil, err
	}
	return t, t.waitReady(func() error {
		_, err := t.Counts()
		return err
	})
}

// Counts asks what has passed so far.
func (t *Tap) Counts() (tap.Counts, error) {
	var c tap.Counts
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", t.control)
	}}
	resp, err := (&http.Client{Timeout: 5 * time.Second, Transport: transport}).Get("http://tap/")
	if err != nil {
		return c, fmt.Errorf("asking the tap: %w", err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		return c, fmt.Errorf("asking the tap: %w", err)
	}
	return c, nil
}

// ServeTap is the process that StartTap starts.
func ServeTap(ctx context.Context, listen, server, control string) error {
	t := tap.New(server)
	// Last, since it says that the tap is ready.
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	c, err := net.Listen("unix", control)
	if err != nil {
		return err
	}
	counts := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(t.Counts()) // or the one who asked is gone
	})}
	go func() { _ = counts.Serve(c) }()
	defer counts.Close()
	return t.Serve(ctx, l)
}

// Puller is a client that waits for a signal and then pulls.
type Puller struct {
	*Process
	out string // the file of its output
}

// Ready is what a puller prints before it waits.
const Ready = "ready\n"

// StartPuller starts a client that pulls an image from a base URL, some time
// after its standard input ends. It returns at once.
func (b *Bed) StartPuller(at Place, signal *os.File, base, repo, ref string, delay time.Duration) (*Puller, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(b.Dir, "puller-")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &Puller{out: out.Name()}
	p.Process, err = b.startWith(at, signal, out, exe, "client", "wait", base, repo, ref, delay.String())
	return p, err
}

// WaitReady returns when the client waits for the signal.
func (p *Puller) WaitReady() error {
	return p.waitReady(func() error {
		b, err := os.ReadFile(p.out)
		if err == nil && !strings.HasPrefix(string(b), Ready) {
			err = fmt.Errorf("printed %q", b)
		}
		return err
	})
}

// Done is closed when the client has ended.
func (p *Puller) Done() <-chan struct{} { return p.exited }

// Pulled is what became of a pull.
type Pulled struct {
	load.Outcome
	// Ended is when the last byte had come.
	Ended time.Time `json:"ended"`
	// CPU is what the pull used, in seconds.
	CPU float64 `json:"cpu"`
	// Failed is why the pull failed, "" if it did not.
	Failed string `json:"failed"`
	// Wrong: it failed because of wrong bytes.
	Wrong bool `json:"wrong"`
}

// Outcome waits for the end, and returns what the client printed.
func (p *Puller) Outcome() (Pulled, error) {
	<-p.exited
	var out Pulled
	b, err := os.ReadFile(p.out)
	if err == nil {
		err = p.err
	}
	if err == nil {
		err = json.Unmarshal(bytes.TrimPrefix(b, []byte(Ready)), &out)
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", p.name, err, p.tail())
	}
	return out, nil
}
