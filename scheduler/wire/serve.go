package wire

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// ServeConfig holds the bounds of what Serve accepts. The zero value of a
// field means its default.
type ServeConfig struct {
	// TLS demands a certificate of every daemon and proves the scheduler's
	// name; TLS 1.3 at least, whatever it says. Nil: plaintext.
	TLS *tls.Config
	// MaxConns bounds the connections, default 20,000; MaxConnsPerHost
	// those from one address (of IPv6: one /64), default 192. One too many is
	// closed at once.
	MaxConns, MaxConnsPerHost int
	// HelloTimeout is how long a connection may take for its TLS handshake,
	// and a stream for its Hello, default 10 s each.
	HelloTimeout time.Duration
	// Keepalive is how long a connection may be silent before it is pinged,
	// default 10 s; without an answer for half as long it is closed. A
	// daemon that pings more often than each 5 s is closed too.
	Keepalive time.Duration
	// Grace is how long a daemon may take to close a stream after Goodbye,
	// default 2 s. Then its connection is closed.
	Grace time.Duration
	// IdleConn is how long a connection without a stream is kept, default
	// 2 min.
	IdleConn time.Duration
}

func (c ServeConfig) withDefaults() ServeConfig {
	def(&c.MaxConns, 20_000)
	def(&c.MaxConnsPerHost, 192)
	def(&c.HelloTimeout, 10*time.Second)
	def(&c.Keepalive, 10*time.Second)
	def(&c.Grace, 2*time.Second)
	def(&c.IdleConn, 2*time.Minute)
	return c
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Conn is one daemon's stream as the scheduler sees it. One goroutine may
// send while another receives; Close may be called by any. It is valid while
// the handler that it was given to runs.
type Conn struct {
	// ID is the name that the daemon claims.
	ID scheduler.PeerID
	// Names are those that its certificate proves; nil without TLS.
	Names []string
	// Seen is the address that it connects from.
	Seen netip.Addr
	// Identity is who answers for the daemon, whatever name it claims: all
	// names of its certificate, or its address (of IPv6: the /64).
	Identity string

	stream grpc.BidiStreamingServer[wirepb.ToScheduler, wirepb.FromScheduler]
	raw    net.Conn
	grace  time.Duration
	first  []scheduler.In

	// sending is held while something is sent. It guards ended.
	sending sync.Mutex
	ended   bool

	// mu guards kill.
	mu   sync.Mutex
	kill *time.Timer
}

// Serve accepts daemons on lis and calls handle with each one's stream in a
// goroutine of its own, until ctx ends; the stream ends when handle returns.
// When ctx ends, daemons are told to go elsewhere (GOAWAY); what has not
// ended after the grace is cut. It closes lis. Beside the streams it answers
// gRPC health checks. The error of handle is told to the daemon: with what its
// method Reason() scheduler.Reason says, if it has one.
func Serve(ctx context.Context, lis net.Listener, cfg ServeConfig, handle func(context.Context, *Conn) error) error {
	cfg = cfg.withDefaults()
	creds := tracking{plain()}
	if cfg.TLS != nil {
		tlsCfg := atLeast13(cfg.TLS)
		tlsCfg.ClientAuth = tls.RequireAndVerifyClientCert
		creds = tracking{credentials.NewTLS(tlsCfg)}
	}
	srv := grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxReceived), grpc.MaxSendMsgSize(MaxMessage),
		// A daemon opens one stream. A window that grew with the link would
		// let it have megabytes wait here.
		grpc.MaxConcurrentStreams(1), grpc.MaxHeaderListSize(16<<10),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.ConnectionTimeout(cfg.HelloTimeout),
		// A daemon's messages are small and few, so that buffers for each
		// of ten thousand would hold nothing most of the time.
		grpc.ReadBufferSize(4<<10), grpc.WriteBufferSize(16<<10),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: cfg.Keepalive, Timeout: cfg.Keepalive / 2, MaxConnectionIdle: cfg.IdleConn}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	wirepb.RegisterSwarmsServer(srv, &service{cfg: cfg, handle: handle})
	healthy := health.NewServer()
	healthpb.RegisterHealthServer(srv, healthy)
	healthy.SetServingStatus(wirepb.Swarms_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)

	served := make(chan error, 1)
	go func() { served <- srv.Serve(limit(lis, cfg.MaxConns, cfg.MaxConnsPerHost)) }()
	select {
	case err := <-served:
		srv.Stop()
		return fmt.Errorf("scheduler: serving %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	healthy.Shutdown()
	hard := time.AfterFunc(2*cfg.Grace, srv.Stop)
	srv.GracefulStop()
	hard.Stop()
	<-served
	return nil
}

type service struct {
	wirepb.UnimplementedSwarmsServer
	cfg    ServeConfig
	handle func(context.Context, *Conn) error
}

// errExpired ends a stream. A daemon that has a later certificate connects again.
var errExpired = errors.New("the certificate by which this stream was opened has expired")

// Connect implements wirepb.SwarmsServer. A stream lasts no longer than the
// certificate that it was opened by.
func (s *service) Connect(stream grpc.BidiStreamingServer[wirepb.ToScheduler, wirepb.FromScheduler]) error {
	c := &Conn{stream: stream, grace: s.cfg.Grace}
	from, _ := peer.FromContext(stream.Context())
	if info, ok := from.AuthInfo.(tracked); ok {
		c.raw = info.raw
		c.Names = info.names()
		if end := info.expires(); !end.IsZero() {
			over := time.AfterFunc(time.Until(end), func() { c.Close(errExpired) })
			defer over.Stop()
		}
	}
	if addr, err := netip.ParseAddrPort(from.Addr.String()); err == nil {
		c.Seen = addr.Addr().Unmap()
	}
	c.Identity = identity(c.Names, c.Seen)
	err := c.hello(s.cfg.HelloTimeout)
	if err == nil {
		err = s.handle(stream.Context(), c)
	}
	c.settle()
	return toStatus(err)
}

// hello reads the first message.
func (c *Conn) hello(timeout time.Duration) error {
	late := time.AfterFunc(timeout, c.cut)
	defer late.Stop()
	batch, err := c.stream.Recv()
	if err != nil {
		return err
	}
	if len(batch.GetMessages()) == 0 || batch.GetMessages()[0].GetHello() == nil {
		return &FieldError{"messages", "the first is not hello"}
	}
	if c.first, err = decodeIns(batch); err != nil {
		return err
	}
	c.ID = scheduler.PeerID(batch.GetMessages()[0].GetHello().GetPeer())
	return nil
}

// Accept says that the daemon is known now, and reached by others at addr. It
// comes before Send.
func (c *Conn) Accept(addr string) error {
	return c.send([]*wirepb.Out{{Msg: &wirepb.Out_Welcome{Welcome: &wirepb.Welcome{Version: Version, Addr: addr}}}})
}

// Recv returns the next messages, in order. The first is Hello. The error is
// io.EOF when the daemon closed the stream, and a *FieldError when it sent
// what it must not.
func (c *Conn) Recv() ([]scheduler.In, error) {
	if first := c.first; first != nil {
		c.first = nil
		return first, nil
	}
	for {
		batch, err := c.stream.Recv()
		if err != nil {
			return nil, err
		}
		msgs, err := decodeIns(batch)
		if err != nil || len(msgs) > 0 {
			return msgs, err
		}
	}
}

// Send sends the messages of a core, in order. It waits while the daemon does
// not read.
func (c *Conn) Send(msgs []any) error {
	list := make([]*wirepb.Out, 0, len(msgs))
	for _, msg := range msgs {
		var err error
		if list, err = appendOut(list, msg); err != nil {
			return err
		}
	}
	return cut(list, c.send)
}

func (c *Conn) send(part []*wirepb.Out) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if c.ended {
		return status.Error(codes.Canceled, "the stream has ended")
	}
	return c.stream.Send(&wirepb.FromScheduler{Messages: part})
}

// Close tells the daemon why the stream ends. Send fails from then on, and
// Recv as soon as the daemon has closed the stream, or the grace is over.
func (c *Conn) Close(err error) {
	c.mu.Lock()
	if c.kill == nil {
		c.kill = time.AfterFunc(c.grace, c.cut)
	}
	c.mu.Unlock()
	if !c.sending.TryLock() {
		// It does not read, or is about to hear of something; either way
		// it gets no more.
		c.cut()
		return
	}
	defer c.sending.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	why, detail := reason(err)
	// An error is the daemon gone, which is what was wanted.
	_ = c.stream.Send(&wirepb.FromScheduler{Messages: []*wirepb.Out{{Msg: &wirepb.Out_Goodbye{
		Goodbye: &wirepb.Goodbye{Reason: wirepb.Reason(why), Detail: detail},
	}}}})
}

// cut ends the connection itself: gRPC has no other way to end a stream whose
// other end neither reads nor writes.
func (c *Conn) cut() {
	if c.raw != nil {
		c.raw.Close()
	}
}

// settle disarms what Close armed.
func (c *Conn) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kill != nil {
		c.kill.Stop()
	}
}

func decodeIns(batch *wirepb.ToScheduler) ([]scheduler.In, error) {
	list := batch.GetMessages()
	if len(list) > maxBatch {
		return nil, &FieldError{"messages", fmt.Sprintf("%d at once, want at most %d", len(list), maxBatch)}
	}
	msgs := make([]scheduler.In, 0, len(list))
	for _, in := range list {
		msg, err := decodeIn(in)
		if err != nil {
			return nil, err
		}
		if msg != nil {
			msgs = append(msgs, msg)
		}
	}
	return msgs, nil
}

// reason returns what an error is to the other end.
func reason(err error) (scheduler.Reason, string) {
	if err == nil {
		return scheduler.ReasonUnreachable, ""
	}
	why := scheduler.ReasonUnreachable
	if r, ok := err.(interface{ Reason() scheduler.Reason }); ok {
		why = r.Reason()
	}
	detail := err.Error()
	// A rune cut in two could not be sent.
	return why, strings.ToValidUTF8(detail[:min(len(detail), maxDetail)], "")
}

// toStatus is the error of a handler as gRPC's own clients read it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ Reason() scheduler.Reason }); !ok {
		return status.Error(codes.Unavailable, err.Error())
	}
	code := codes.Unavailable
	why, detail := reason(err)
	switch why {
	case scheduler.ReasonInvalid:
		code = codes.InvalidArgument
	case scheduler.ReasonRefused:
		code = codes.PermissionDenied
	case scheduler.ReasonFull, scheduler.ReasonStalled:
		code = codes.ResourceExhausted
	}
	return status.Error(code, detail)
}

// identity returns who answers for a daemon. A certificate is one identity,
// whichever of its names the daemon claims.
func identity(names []string, seen netip.Addr) string {
	if names != nil {
		sorted := slices.Clone(names)
		slices.Sort(sorted)
		sum := sha256.Sum256([]byte(strings.Join(sorted, "\n")))
		return "certificate " + hex.EncodeToString(sum[:16])
	}
	return "address " + network(seen).String()
}

// network returns what one host can have without further cost: an address of
// IPv4, a /64 of IPv6.
func network(addr netip.Addr) netip.Prefix {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{} // of no address
	}
	return p
}

// names are what a certificate proves: its DNS names, URIs and addresses,
// else its common name.
func names(c *x509.Certificate) []string {
	list := append([]string{}, c.DNSNames...)
	for _, u := range c.URIs {
		list = append(list, u.String())
	}
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 && c.Subject.CommonName != "" {
		list = append(list, c.Subject.CommonName)
	}
	return list
}
