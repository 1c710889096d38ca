package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/piece"
)

// Config bounds an Endpoint. Zero fields take the default.
type Config struct {
	Logger *slog.Logger
	// ID names this node in handshakes. Default: random.
	ID ID
	// TLS, if set, is used for all connections both ways. It must hold a
	// certificate and demand one: MinVersion TLS 1.3, ClientAuth
	// RequireAndVerifyClientCert, RootCAs and ClientCAs set. Default: plain
	// TCP, by which payload leaves with sendfile.
	TLS *tls.Config
	// Finder finds blobs that no Swarm is open for. Default: there are none.
	Finder Finder

	// Conns is how many connections there may be, PerParty how many to and
	// from one party: the name in a certificate, or without TLS one IPv4
	// address or 64 bits of IPv6. When all are taken, one of the party that
	// has most makes room for a party that has fewer. A connection costs two
	// goroutines, a few KiB, and up to two descriptors. A pair of nodes has
	// one for each blob that they exchange. Defaults 1024 and 128.
	Conns, PerParty int
	// Strangers is how many connections there may be whose peer has not
	// finished its handshake, with TLS that of TLS first; StrangersPerNet how
	// many from one IPv4 address or 64 bits of IPv6. They count apart from
	// Conns. Beyond, the oldest is closed, so that who is quick gets in
	// whatever others do. Defaults 128 and 32: as many nodes as may be behind
	// one address, or blobs that one node may turn to this one for at once.
	Strangers, StrangersPerNet int
	// Slots is how many connections are uploaded to at once, until SetSlots
	// says otherwise. Few let a receiver have whole pieces soon, and pass
	// them on; but receivers that get much from others leave this link
	// idle, and each request that finds no slot is a round trip lost. With 4
	// among 16 nodes two requests of five did, and nodes had what the origin
	// had sent some 50 pieces later; with 8 some 10. Default 8.
	Slots int
	// Turn is how many bytes one connection may have before it leaves its
	// slot to another that waits; the piece begun is finished. Default 4 MiB.
	Turn int64
	// Block is the length in bytes of the blocks in which pieces are asked
	// for: at most MaxBlock. Long blocks save CPU, short ones let HAVE and
	// REJECT overtake payload sooner. Default 512 KiB: measured one to one
	// over loopback, CPU seconds per GiB for both ends, are 3.2 with 16 KiB,
	// 2.1 with 64 and 128 KiB, 2.0 with 256 KiB, 1.9 with 512 KiB and the
	// same from there to whole pieces (BenchmarkExchange).
	Block int
	// Queue is how many pieces may be asked for at once on one connection.
	// Two keep it busy where the round trip is shorter than a piece takes;
	// more than four gain nothing over loopback. Default 16.
	Queue int

	// StrangerTimeout is for a peer that dials to finish its handshake, and
	// with TLS that of TLS. Default 2 s.
	StrangerTimeout time.Duration
	// HandshakeTimeout is for all that comes before the first piece is
	// claimed: TLS, both handshakes. Default 5 s.
	HandshakeTimeout time.Duration
	// MessageTimeout is for a message to be complete once it has begun,
	// payload not counted. Default 10 s.
	MessageTimeout time.Duration
	// KeepAlive is how long a side may be silent. One that has been for two
	// and a half times as long is disconnected. Default 30 s.
	KeepAlive time.Duration
	// WriteTimeout is for one block to leave. Default 30 s.
	WriteTimeout time.Duration
	// CancelTimeout is for a peer to answer for blocks that were cancelled: to
	// reject them or, having begun, to send them in vain. One that takes
	// longer is disconnected, however it trickles. 9 KB/s are enough for
	// the usual block; time that Download takes counts too. Default 1 min,
	// twice WriteTimeout.
	CancelTimeout time.Duration
	// Lend is how long a block may take to leave before its slot is lent to
	// the next in line, so that receivers that stall cost nobody but
	// themselves. Default 1 s.
	Lend time.Duration
	// Keep is how long a slot that was granted is kept for a peer that does
	// not ask. Default 500 ms: the longest round trip, and time to decide.
	Keep time.Duration

	// Upload and Download limit payload, in bytes per second. Their burst
	// should be at least 64 KiB. Default: no limit.
	Upload, Download *rate.Limiter
}

const (
	// MaxBlock is the longest block that is served, in bytes: the longest
	// piece.
	MaxBlock = piece.MaxLength
	// MinBlock is the shortest block that is asked for, in bytes: what BEP 3
	// calls the usual size.
	MinBlock = 16 << 10
	// maxRequests is how many blocks one connection may have asked for and
	// not received: BEP 10's reqq. 16 pieces of 8 MiB in blocks of 256 KiB.
	maxRequests = 512
)

func (c *Config) setDefaults() {
	def(&c.ID, NewID())
	def(&c.Conns, 1024)
	def(&c.PerParty, 128)
	def(&c.Strangers, 128)
	def(&c.StrangersPerNet, 32)
	def(&c.Slots, 8)
	def(&c.Turn, 4<<20)
	def(&c.Block, 512<<10)
	def(&c.Queue, 16)
	def(&c.StrangerTimeout, 2*time.Second)
	def(&c.HandshakeTimeout, 5*time.Second)
	def(&c.MessageTimeout, 10*time.Second)
	def(&c.KeepAlive, 30*time.Second)
	def(&c.WriteTimeout, 30*time.Second)
	def(&c.CancelTimeout, time.Minute)
	def(&c.Lend, time.Second)
	def(&c.Keep, 500*time.Millisecond)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) validate() error {
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"Conns", int64(c.Conns)}, {"PerParty", int64(c.PerParty)},
		{"Strangers", int64(c.Strangers)}, {"StrangersPerNet", int64(c.StrangersPerNet)}, {"StrangerTimeout", int64(c.StrangerTimeout)},
		{"Slots", int64(c.Slots)}, {"Turn", c.Turn},
		{"Queue", int64(c.Queue)}, {"HandshakeTimeout", int64(c.HandshakeTimeout)},
		{"MessageTimeout", int64(c.MessageTimeout)}, {"KeepAlive", int64(c.KeepAlive)},
		{"WriteTimeout", int64(c.WriteTimeout)}, {"CancelTimeout", int64(c.CancelTimeout)}, {"Lend", int64(c.Lend)}, {"Keep", int64(c.Keep)},
	} {
		if n.value <= 0 {
			return fmt.Errorf("peer: %s is %d, must be positive", n.name, n.value)
		}
	}
	if c.Block < MinBlock || c.Block > MaxBlock {
		return fmt.Errorf("peer: Block is %d, must be from %d to %d", c.Block, MinBlock, MaxBlock)
	}
	for _, limit := range []*rate.Limiter{c.Upload, c.Download} {
		if limit != nil && limit.Burst() <= 0 {
			return errors.New("peer: a rate limit without burst lets nothing pass")
		}
	}
	if c.TLS == nil {
		return nil
	}
	// Half a check of who is there is none: whoever is let in is served.
	switch t := c.TLS; {
	case t.MinVersion < tls.VersionTLS13:
		return errors.New("peer: TLS must be 1.3 at least")
	case t.ClientAuth != tls.RequireAndVerifyClientCert || t.ClientCAs == nil:
		return errors.New("peer: TLS must demand and verify certificates of who dials")
	case t.RootCAs == nil || t.InsecureSkipVerify:
		return errors.New("peer: TLS must verify certificates of who is dialed, by a CA of its own")
	case len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil:
		return errors.New("peer: TLS has no certificate")
	}
	return nil
}
