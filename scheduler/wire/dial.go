package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// keepaliveEvery is the shortest that grpc-go lets a client ping at; with
// keepaliveWait it finds a dead network in 13 s when nothing is said.
const (
	keepaliveEvery = 10 * time.Second
	keepaliveWait  = 3 * time.Second
)

// Dialer opens streams to schedulers.
type Dialer struct {
	// TLS proves this daemon's name and checks the scheduler's; TLS 1.3 at
	// least, whatever it says. Nil: plaintext.
	TLS *tls.Config
	// Log hears of messages that this daemon itself must not send. Nil:
	// slog.Default.
	Log *slog.Logger
}

// GoodbyeError is the reason that a scheduler gave for ending a stream.
type GoodbyeError struct {
	Why    scheduler.Reason
	Detail string
}

func (e *GoodbyeError) Error() string {
	return fmt.Sprintf("the scheduler says goodbye: %s: %s", e.Why, e.Detail)
}

// Reason returns Why.
func (e *GoodbyeError) Reason() scheduler.Reason { return e.Why }

// Stream is a daemon's stream to a scheduler. One goroutine may send while
// another receives; Close may be called by any.
type Stream struct {
	id     scheduler.PeerID
	log    *slog.Logger
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[wirepb.ToScheduler, wirepb.FromScheduler]
	cancel context.CancelFunc
	first  []any
}

// Open connects to the scheduler at addr (host:port) and says hello. The
// context bounds the opening alone. The serverName is what the scheduler's
// certificate must name; empty, the host of addr. The error is a
// *GoodbyeError when the scheduler answered and refused.
func (d *Dialer) Open(ctx context.Context, addr, serverName string, id scheduler.PeerID, hello scheduler.Hello) (*Stream, error) {
	creds := insecure.NewCredentials()
	if d.TLS != nil {
		cfg := atLeast13(d.TLS)
		if serverName != "" {
			cfg.ServerName = serverName
		}
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		// A proxy in the environment is for the way to origins.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to scheduler %s: %w", addr, err)
	}
	s := &Stream{id: id, log: d.Log, conn: conn}
	if s.log == nil {
		s.log = slog.Default()
	}
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	stop := context.AfterFunc(ctx, cancel)
	if err := s.open(streamCtx, hello); err != nil {
		s.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connecting to scheduler %s: %w", addr, err)
	}
	if !stop() {
		s.Close()
		return nil, fmt.Errorf("connecting to scheduler %s: %w", addr, context.Cause(ctx))
	}
	return s, nil
}

func (s *Stream) open(ctx context.Context, hello scheduler.Hello) error {
	stream, err := wirepb.NewSwarmsClient(s.conn).Connect(ctx)
	if err != nil {
		return err
	}
	s.stream = stream
	if err := s.Send([]scheduler.In{hello}); err != nil {
		// The reason, if there is one, is what Recv returns.
		if _, rerr := stream.Recv(); rerr != nil {
			err = rerr
		}
		return err
	}
	batch, err := stream.Recv()
	if err != nil {
		return err
	}
	welcomed := false
	for _, out := range batch.GetMessages() {
		if w := out.GetWelcome(); w != nil {
			if v := w.GetVersion(); v < Oldest {
				return &FieldError{"welcome.version", fmt.Sprintf("%d, want at least %d", v, Oldest)}
			}
			welcomed = true
		}
	}
	msgs, err := decodeBatch(batch)
	if err != nil {
		return err
	}
	if !welcomed {
		return &FieldError{"welcome", "the scheduler did not begin with it"}
	}
	s.first = msgs
	return nil
}

// Send sends messages in order. It waits while the scheduler does not read.
// A message that is out of bounds is logged and left out, so that one
// mistake does not cost the stream, again and again.
func (s *Stream) Send(msgs []scheduler.In) error {
	var batch []*wirepb.In
	for _, msg := range msgs {
		list, err := appendIn(nil, s.id, msg)
		for _, in := range list {
			if err == nil {
				_, err = decodeIn(in)
			}
		}
		if err != nil {
			if _, ok := msg.(scheduler.Hello); ok {
				return err
			}
			s.log.Error("message to the scheduler left out", "error", err)
			continue
		}
		batch = append(batch, list...)
	}
	return cut(batch, func(part []*wirepb.In) error {
		return s.stream.Send(&wirepb.ToScheduler{Messages: part})
	})
}

// Recv returns the next messages, in order: *scheduler.Swarm, Assign, Revoke,
// Ask, Probe, Hold, Ban or Refused. The error is a *GoodbyeError when the
// scheduler ended the stream, and a *FieldError when it sent what it must
// not.
func (s *Stream) Recv() ([]any, error) {
	if first := s.first; len(first) > 0 {
		s.first = nil
		return first, nil
	}
	for {
		batch, err := s.stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("stream from the scheduler: %w", err)
		}
		msgs, err := decodeBatch(batch)
		if err != nil || len(msgs) > 0 {
			return msgs, err
		}
	}
}

// Close ends the stream. Send and Recv return soon with errors.
func (s *Stream) Close() error {
	s.cancel()
	if err := s.conn.Close(); err != nil && status.Code(err) != codes.Canceled { // closed before
		return fmt.Errorf("closing the connection to the scheduler: %w", err)
	}
	return nil
}

func decodeBatch(batch *wirepb.FromScheduler) ([]any, error) {
	list := batch.GetMessages()
	if len(list) > maxBatch {
		return nil, &FieldError{"messages", fmt.Sprintf("%d at once, want at most %d", len(list), maxBatch)}
	}
	msgs := make([]any, 0, len(list))
	for _, out := range list {
		if bye := out.GetGoodbye(); bye != nil {
			var c claims
			detail := bye.GetDetail()
			return nil, &GoodbyeError{Why: c.reason(bye.GetReason()), Detail: detail[:min(len(detail), maxDetail)]}
		}
		msg, err := decodeOut(out)
		if err != nil {
			return nil, err
		}
		if msg != nil {
			msgs = append(msgs, msg)
		}
	}
	return msgs, nil
}

// cut sends messages in as many gRPC messages as their bounds ask for.
func cut[M proto.Message](msgs []M, send func([]M) error) error {
	for len(msgs) > 0 {
		n, bytes := 0, 0
		for n < len(msgs) && n < maxBatch && bytes < batchBytes {
			bytes += proto.Size(msgs[n]) + 4
			n++
		}
		if err := send(msgs[:n]); err != nil {
			return err
		}
		msgs = msgs[n:]
	}
	return nil
}

func atLeast13(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS13)
	return cfg
}
