package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/shoalproject/shoal/scheduler"
	"github.com/shoalproject/shoal/scheduler/wire/wirepb"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// serve runs a scheduler's end on loopback until the returned function is
// called.
func serve(t *testing.T, cfg ServeConfig, handle func(context.Context, *Conn) error) (addr string, stop func()) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := Serve(ctx, lis, cfg, handle); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	return lis.Addr().String(), stop
}

// greet accepts a daemon and reads until it goes.
func greet(_ context.Context, c *Conn) error {
	if err := c.Accept("seen:1"); err != nil {
		return err
	}
	for {
		if _, err := c.Recv(); err != nil {
			c.Close(err)
			return err
		}
	}
}

func dialContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

var hello = scheduler.Hello{Addr: "127.0.0.1:4401", Zone: "z"}

// raw opens a stream without the client's checks.
func raw(t *testing.T, addr string) grpc.BidiStreamingClient[wirepb.ToScheduler, wirepb.FromScheduler] {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := wirepb.NewSwarmsClient(conn).Connect(dialContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func batch(msgs ...*wirepb.In) *wirepb.ToScheduler { return &wirepb.ToScheduler{Messages: msgs} }

func helloIn() *wirepb.In {
	return &wirepb.In{Msg: &wirepb.In_Hello{Hello: &wirepb.Hello{Version: Version, Peer: "n", Addr: "10.0.0.1:1"}}}
}

// What a daemon must not send ends its stream and no other; the error names
// the field.
func TestHostileDaemon(t *testing.T) {
	addr, _ := serve(t, ServeConfig{}, greet)
	d := Dialer{}
	honest, err := d.Open(dialContext(t), addr, "", "honest", hello)
	if err != nil {
		t.Fatal(err)
	}
	defer honest.Close()
	leave := &wirepb.In{Msg: &wirepb.In_Leave{Leave: &wirepb.Leave{Blob: "nothing"}}}
	for name, c := range map[string]struct {
		send []*wirepb.ToScheduler
		code codes.Code
		says string
	}{
		"nothing first":     {[]*wirepb.ToScheduler{batch()}, codes.InvalidArgument, "not hello"},
		"no hello first":    {[]*wirepb.ToScheduler{batch(leave)}, codes.InvalidArgument, "not hello"},
		"bad digest":        {[]*wirepb.ToScheduler{batch(helloIn()), batch(leave)}, codes.InvalidArgument, "leave.blob"},
		"bad digest behind": {[]*wirepb.ToScheduler{batch(helloIn(), leave)}, codes.InvalidArgument, "leave.blob"},
		"too many at once":  {[]*wirepb.ToScheduler{batch(helloIn()), batch(make([]*wirepb.In, maxBatch+1)...)}, codes.InvalidArgument, "messages"},
		"too long": {[]*wirepb.ToScheduler{batch(helloIn()), batch(&wirepb.In{Msg: &wirepb.In_Join{Join: &wirepb.Join{
			Have: make([]byte, MaxMessage),
		}}})}, codes.ResourceExhausted, "larger than max"},
	} {
		t.Run(name, func(t *testing.T) {
			stream := raw(t, addr)
			for _, b := range c.send {
				if err := stream.Send(b); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			var err error
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the stream ended by %v", err)
			}
		})
	}
	if err := honest.Send([]scheduler.In{scheduler.Leave{Blob: scheduler.Digest("sha256:" + strings.Repeat("0", 64))}}); err != nil {
		t.Errorf("the honest daemon: %v", err)
	}
}

// The reason why a stream ends reaches the daemon.
func TestGoodbye(t *testing.T) {
	why := &GoodbyeError{scheduler.ReasonFull, "no room"}
	for name, handle := range map[string]func(context.Context, *Conn) error{
		"at once": func(_ context.Context, c *Conn) error {
			c.Close(why)
			return why
		},
		"later": func(_ context.Context, c *Conn) error {
			err := c.Accept("seen:1")
			c.Close(why)
			for err == nil {
				_, err = c.Recv()
			}
			return why
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := serve(t, ServeConfig{}, handle)
			stream, err := (&Dialer{}).Open(dialContext(t), addr, "", "n", hello)
			if err == nil {
				defer stream.Close()
				_, err = stream.Recv()
			}
			var bye *GoodbyeError
			if !errors.As(err, &bye) || bye.Why != why.Why || !strings.Contains(bye.Detail, why.Detail) {
				t.Errorf("the daemon hears %v", err)
			}
		})
	}
}

// A stream without a hello, and a connection without a handshake, are cut.
func TestLateHello(t *testing.T) {
	addr, _ := serve(t, ServeConfig{HelloTimeout: 50 * time.Millisecond}, greet)
	stream := raw(t, addr)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a stream without hello: %v", err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("a silent connection was not closed: %v", err)
	}
}

// A daemon that neither reads nor goes is cut after the grace.
func TestCut(t *testing.T) {
	ended := make(chan struct{})
	addr, _ := serve(t, ServeConfig{Grace: 50 * time.Millisecond}, func(_ context.Context, c *Conn) error {
		defer close(ended)
		err := c.Accept("seen:1")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			ban := &scheduler.Ban{Peer: scheduler.PeerID(strings.Repeat("x", 200))}
			for c.Send(slices.Repeat([]any{ban}, 200)) == nil {
			}
		}()
		for err == nil {
			_, err = c.Recv()
			if err == nil { // hello
				c.Close(errors.New("enough"))
			}
		}
		<-sent
		return nil
	})
	stream := raw(t, addr)
	if err := stream.Send(batch(helloIn())); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the stream did not end")
	}
}

// Connections beyond the bounds are closed at once, and those within served.
func TestTooManyConnections(t *testing.T) {
	addr, _ := serve(t, ServeConfig{MaxConnsPerHost: 3}, greet)
	var idle []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The server's settings frame says that it was let in.
		if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	refused, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	refused.SetReadDeadline(time.Now().Add(patience))
	if n, err := io.Copy(io.Discard, refused); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many: %d bytes, %v", n, err)
	}
	idle[0].Close()
	for ctx := dialContext(t); ; { // until the server has seen it close
		stream, err := (&Dialer{}).Open(ctx, addr, "", "n", hello)
		if err == nil {
			stream.Close()
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestHealth(t *testing.T) {
	addr, stop := serve(t, ServeConfig{Grace: time.Second}, greet)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := healthpb.NewHealthClient(conn).Watch(dialContext(t), &healthpb.HealthCheckRequest{Service: wirepb.Swarms_ServiceDesc.ServiceName})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watch.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("while it serves: %v, %v", r, err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	if r, err := watch.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("when it stops: %v, %v", r, err)
	}
	<-stopped
}

// With TLS both ends prove who they are, by TLS 1.3.
func TestTLS(t *testing.T) {
	ours, others := newCA(t), newCA(t)
	names := make(chan []string, 8)
	addr, _ := serve(t, ServeConfig{TLS: ours.config(t, "scheduler")}, func(ctx context.Context, c *Conn) error {
		names <- c.Names
		return greet(ctx, c)
	})
	open := func(cfg *tls.Config, server string) error {
		stream, err := (&Dialer{TLS: cfg}).Open(dialContext(t), addr, server, "node-a", hello)
		if err == nil {
			stream.Close()
		}
		return err
	}
	if err := open(ours.config(t, "node-a", "node-a.example"), "scheduler"); err != nil {
		t.Fatal(err)
	}
	if got := <-names; !slices.Equal(got, []string{"node-a", "node-a.example"}) {
		t.Errorf("the certificate proves %v", got)
	}
	old := ours.config(t, "node-a")
	old.MaxVersion = tls.VersionTLS12
	none := ours.config(t, "node-a")
	none.Certificates = nil
	foreign := others.config(t, "node-a")
	foreign.RootCAs = ours.pool
	for what, err := range map[string]error{
		"plaintext":                   open(nil, ""),
		"another scheduler's name":    open(ours.config(t, "node-a"), "other"),
		"no certificate":              open(none, "scheduler"),
		"a foreign certificate":       open(foreign, "scheduler"),
		"a scheduler of a foreign CA": open(others.config(t, "node-a"), "scheduler"),
		"TLS 1.2":                     open(old, "scheduler"),
	} {
		if err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	if len(names) != 0 {
		t.Errorf("a stream of %v was served", <-names)
	}
}

// A stream ends with the certificate that it was opened by.
func TestCertificateEnds(t *testing.T) {
	ours := newCA(t)
	addr, _ := serve(t, ServeConfig{TLS: ours.config(t, "scheduler"), Grace: 100 * time.Millisecond}, greet)
	cfg := ours.config(t, "node-a")
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	cert, key := ours.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(3), DNSNames: []string{"node-a"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ours.cert, ours.key)
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	stream, err := (&Dialer{TLS: cfg}).Open(dialContext(t), addr, "scheduler", "node-a", hello)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), "has expired") || time.Now().Before(end) {
			t.Errorf("%v, %v before its end", err, time.Until(end))
		}
	case <-time.After(patience):
		t.Fatal("the stream outlives its certificate")
	}
}

type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := &ca{pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	c.cert, c.key = c.sign(t, template, nil, nil)
	c.pool.AddCert(c.cert)
	return c
}

func (c *ca) sign(t *testing.T, template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (c *ca) config(t *testing.T, names ...string) *tls.Config {
	t.Helper()
	cert, key := c.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, c.cert, c.key)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, RootCAs: c.pool, ClientCAs: c.pool,
	}
}
