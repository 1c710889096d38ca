package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/scheduler"
)

// Consumer is what the client tells and asks of the daemon. Deliver and
// Reachable are called one after the other, in the order in which things
// happened. Inventory and Rejoin are called while Send may be waiting for
// them to return: they must not wait, least of all for a lock that is held
// during a Send.
type Consumer interface {
	// Inventory returns the blobs that the daemon holds whole.
	Inventory() []scheduler.Holding
	// Rejoin returns the Join that tells another scheduler how things stand
	// with a blob that was joined, or false when it is not wanted any more.
	// The neighbours that the one before had chosen are nobody's then: the
	// new one's first Swarm may replace them.
	Rejoin(scheduler.Digest) (scheduler.Join, bool)
	// Deliver takes a *scheduler.Swarm, Assign, Revoke, Ask, Probe, Hold, Ban
	// or Refused from the scheduler to which the blob belongs, and a
	// *jobs.Order or Stop from any.
	Deliver(msg any)
	// Reachable says whether any scheduler is there: when it is known
	// first, and when it changes. Without one the daemon is on its own.
	Reachable(bool)
}

// Stream is a stream to a scheduler. Send and Recv are called by one goroutine
// each, Close by any; it makes both return soon.
type Stream interface {
	Send([]scheduler.In) error
	Recv() ([]any, error)
	Close() error
}

// Target is a scheduler.
type Target struct {
	// Addr is its host:port.
	Addr string
	// ServerName is what its certificate must name; empty, the host of
	// Addr.
	ServerName string
}

// Config says which schedulers there are and how to reach them. The zero value
// of a field means its default, where one is named.
type Config struct {
	// Schedulers are host:port, or dns:///name:port for all addresses of a
	// name. All daemons must spell them alike: what they spell is hashed.
	Schedulers []string
	// Hello is what the daemon says of itself. Its inventory is the
	// Consumer's to say.
	Hello scheduler.Hello
	// Open opens a stream and says hello. The context bounds the opening. An
	// error with a method Reason() scheduler.Reason is the scheduler's
	// answer.
	Open func(context.Context, Target, scheduler.Hello) (Stream, error)
	// Lookup resolves a name. Default: net.DefaultResolver.LookupHost.
	Lookup func(context.Context, string) ([]string, error)
	// Resolve is how often names are resolved again, default 15 s.
	Resolve time.Duration
	// DialTimeout bounds the opening of a stream, default 5 s. For as long
	// at most the client waits at first for all schedulers to answer,
	// before it settles which blob belongs to which.
	DialTimeout time.Duration
	// MinBackoff is how long the client waits before it connects again,
	// default 200 ms; doubled each time up to MaxBackoff, default 3 s, of
	// which a random half is left out. Daemons that come back to a
	// scheduler at different times have it know half the swarm for so long;
	// those that come at once have it busy with handshakes.
	MinBackoff, MaxBackoff time.Duration
	// AnswerTimeout is how long a scheduler may say nothing after a Join,
	// which it answers always, default 3 s. SendTimeout is how long it may
	// not read, default 10 s.
	AnswerTimeout, SendTimeout time.Duration
	// Queue is how many messages wait for one scheduler before Send waits,
	// default 1024.
	Queue int
	// MaxBlobs bounds the blobs that are joined, and those announced,
	// default 16384.
	MaxBlobs int
	// MaxSchedulers bounds the streams, default 16: of more addresses the
	// first in order are taken.
	MaxSchedulers int
	// Log is where the client says what happens. Nil: slog.Default.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	def(&c.Resolve, 15*time.Second)
	def(&c.DialTimeout, 5*time.Second)
	def(&c.MinBackoff, 200*time.Millisecond)
	def(&c.MaxBackoff, 3*time.Second)
	def(&c.AnswerTimeout, 3*time.Second)
	def(&c.SendTimeout, 10*time.Second)
	def(&c.Queue, 1024)
	def(&c.MaxBlobs, 1<<14)
	def(&c.MaxSchedulers, 16)
	if c.Lookup == nil {
		c.Lookup = net.DefaultResolver.LookupHost
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// place is one of Config.Schedulers: an address, or a name that stands for
// several.
type place struct {
	host, port string
	lookup     bool
}

// CheckScheduler returns what is wrong with one of Config.Schedulers, or nil.
func CheckScheduler(s string) error {
	_, err := parsePlace(s)
	return err
}

func parsePlace(s string) (place, error) {
	rest, lookup := strings.CutPrefix(s, "dns:///")
	host, port, err := net.SplitHostPort(rest)
	if err != nil || host == "" || strings.Trim(host, hostBytes) != "" {
		return place{}, fmt.Errorf("%q: want host:port or dns:///name:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return place{}, fmt.Errorf("%q: the port is not a number from 1 to 65535", s)
	}
	return place{host, port, lookup}, nil
}

// hostBytes are what names and addresses, those with a zone too, consist of.
const hostBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:%"
