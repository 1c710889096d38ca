package wire

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// Bounds of what a message may hold. Who sends cuts to them; who receives
// more ends the stream.
const (
	// MaxMessage is the most bytes of one gRPC message, both ways.
	MaxMessage = 512 << 10
	// MaxPieces bounds piece indexes: the bits of the longest bitfield.
	MaxPieces = 1 << 20
	// MaxSize is the largest size of a blob in bytes.
	MaxSize = 1 << 50

	// maxReceived is the most that a scheduler takes of a daemon: a batch, and
	// one message more with the longest bitfield. window is how much of it
	// waits unread.
	maxReceived = 288 << 10
	window      = 64 << 10

	maxBatch      = 1024      // messages in one gRPC message
	batchBytes    = 128 << 10 // one more message begins another gRPC message
	maxRuns       = 1024
	maxHoldings   = 512
	maxNeighbours = 256
	maxName       = 253 // of a peer, a host or a zone: that of a DNS name
	maxSource     = 512
	maxDuration   = 24 * time.Hour
	maxDetail     = 256
)

// A FieldError says which field of a message from the network was out of
// bounds.
type FieldError struct{ Field, Why string }

func (e *FieldError) Error() string { return "scheduler message: " + e.Field + ": " + e.Why }

// Reason makes of it a scheduler.ReasonInvalid.
func (e *FieldError) Reason() scheduler.Reason { return scheduler.ReasonInvalid }

// claims turns the fields of one message into values that are in bounds. It
// remembers the first that was not.
type claims struct {
	msg string
	err error
}

func (c *claims) fail(field, format string, args ...any) {
	if c.err == nil {
		c.err = &FieldError{c.msg + "." + field, fmt.Sprintf(format, args...)}
	}
}

// hexDigits is how many digits each digest algorithm has.
var hexDigits = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}

func (c *claims) blob(s string) scheduler.Digest {
	algorithm, digits, _ := strings.Cut(s, ":")
	want, ok := hexDigits[algorithm]
	if !ok || len(digits) != want || strings.Trim(digits, "0123456789abcdef") != "" {
		c.fail("blob", "%.80q is not a digest", s)
		return ""
	}
	return scheduler.Digest(s)
}

func (c *claims) size(n, least int64) int64 {
	if n < least || n > MaxSize {
		c.fail("size", "%d, want %d to %d", n, least, int64(MaxSize))
		return 0
	}
	return n
}

// text takes printable ASCII without blanks.
func (c *claims) text(field, s string, least, most int) string {
	if len(s) < least || len(s) > most {
		c.fail(field, "%d bytes, want %d to %d", len(s), least, most)
		return ""
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			c.fail(field, "byte %#02x at %d", s[i], i)
			return ""
		}
	}
	return s
}

func (c *claims) peer(field, s string) scheduler.PeerID {
	return scheduler.PeerID(c.text(field, s, 1, maxName))
}

// addr takes host:port. The host may be empty where it says so.
func (c *claims) addr(field, s string, hostless bool) string {
	if c.text(field, s, 1, maxName+len("[]:65535")) == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || len(host) > maxName || host == "" && !hostless {
		c.fail(field, "%q is not host:port", s)
		return ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.fail(field, "port of %q is not a number from 1 to 65535", s)
		return ""
	}
	return s
}

func (c *claims) run(field string, r *wirepb.Run, empty bool) scheduler.Run {
	first, count := r.GetFirst(), r.GetCount()
	if first == 0 && count == 0 && empty {
		return scheduler.Run{}
	}
	if first >= MaxPieces || count == 0 || count > MaxPieces-first {
		c.fail(field, "%d pieces from %d, want 1 to %d", count, first, MaxPieces)
		return scheduler.Run{}
	}
	return scheduler.Run{First: int(first), Count: int(count)}
}

func (c *claims) runs(field string, list []*wirepb.Run) []scheduler.Run {
	if !c.atMost(field, len(list), maxRuns) || len(list) == 0 {
		return nil
	}
	runs := make([]scheduler.Run, len(list))
	for i, r := range list {
		runs[i] = c.run(field, r, false)
	}
	return runs
}

func (c *claims) atMost(field string, n, most int) bool {
	if n > most {
		c.fail(field, "%d of them, want at most %d", n, most)
	}
	return n <= most
}

func (c *claims) duration(field string, ms uint64) time.Duration {
	if ms > uint64(maxDuration/time.Millisecond) {
		c.fail(field, "%d ms, want at most a day", ms)
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// reason passes those that a newer version may have as unknown.
func (c *claims) reason(r wirepb.Reason) scheduler.Reason {
	if r < 0 || r > wirepb.Reason_REASON_INVALID {
		return 0
	}
	return scheduler.Reason(r)
}

func (c *claims) neighbour(field string, n *wirepb.Neighbour) scheduler.Neighbour {
	return scheduler.Neighbour{
		Peer:     c.peer(field+".peer", n.GetPeer()),
		Addr:     c.addr(field+".addr", n.GetAddr(), false),
		Zone:     c.text(field+".zone", n.GetZone(), 0, maxName),
		Reserved: n.GetReserved(),
	}
}
