package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/shoalproject/shoal/mtls"
)

// A certificate with less than expiresSoon and less than a fifth of its life
// left should have been renewed: issuers do it with a third left.
const expiresSoon = 7 * 24 * time.Hour

// certificate looks at what the node proves itself with.
func (e *examination) certificate() {
	const name = "certificate"
	if e.node == nil || e.node.TLS == nil {
		return
	}
	if e.node.TLS.Issuer != "" {
		e.issuedCertificate(name)
		return
	}
	id, err := mtls.Load(e.node.TLS.Cert, e.node.TLS.Key, e.node.TLS.CA)
	if err != nil {
		remedy := "issue it anew, as in docs/operations.md"
		if strings.Contains(err.Error(), "is the clock right") {
			remedy = "set the clock, and keep it by NTP"
		}
		e.add(Trap, name, remedy, "others do not take it: "+err.Error())
		return
	}
	pair, err := tls.LoadX509KeyPair(e.node.TLS.Cert, e.node.TLS.Key)
	if err != nil {
		e.add(Trap, name, "issue it anew, as in docs/operations.md", err.Error())
		return
	}
	left := pair.Leaf.NotAfter.Sub(e.Now())
	if left < expiresSoon && left < pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore)/5 {
		e.add(Trap, name, "renew it: the daemon takes a new one without a restart",
			fmt.Sprintf("%s expires in %s, on %s", e.node.TLS.Cert, left.Round(time.Minute), id.Expires().Format(time.RFC3339)))
		return
	}
	e.add(OK, name, "", fmt.Sprintf("%s, until %s", strings.Join(id.Names(), ", "), id.Expires().Format(time.DateOnly)))
}

// issuedCertificate looks at a certificate that only the daemon has: it is
// renewed when about half of its life is over.
func (e *examination) issuedCertificate(name string) {
	tls := e.node.TLS
	const remedy = "look into the daemon's log, which says why no certificate could be had, and see that the scheduler runs"
	until := time.Unix(tls.Expires, 0)
	switch {
	case tls.Expires == 0:
		e.add(Trap, name, remedy, "there is none yet from "+tls.Issuer+": the node is on its own")
	case !e.Now().Before(until):
		e.add(Trap, name, remedy, fmt.Sprintf("it has expired, on %s, and %s gave no other: the node is on its own", until.UTC().Format(time.RFC3339), tls.Issuer))
	default:
		e.add(OK, name, "", fmt.Sprintf("%s, until %s, from %s", e.node.Name, until.UTC().Format(time.RFC3339), tls.Issuer))
	}
}

// schedulers looks whether each of them answers, as it answers daemons.
func (e *examination) schedulers(ctx context.Context) {
	const name = "scheduler"
	switch {
	case e.node == nil:
		e.add(Skipped, name, "", "needs the daemon")
		return
	case len(e.node.Schedulers) == 0:
		e.add(OK, name, "", "none: this node is alone")
		return
	}
	if e.node.TLS != nil && e.node.TLS.Issuer != "" {
		// Only the daemon has the certificate that schedulers want to see.
		if !e.node.Connected {
			e.add(Trap, name, "look into the daemon's log for \"scheduler lost\", which says why", "the daemon is not connected")
			return
		}
		e.add(OK, name, "", strings.Join(e.node.Schedulers, ", "))
		return
	}
	var creds *tls.Config
	if e.node.TLS != nil {
		id, err := mtls.Load(e.node.TLS.Cert, e.node.TLS.Key, e.node.TLS.CA)
		if err != nil {
			e.add(Skipped, name, "", "needs a certificate that is good")
			return
		}
		creds = id.Config(slog.New(slog.DiscardHandler))
	}
	failed := false
	for _, s := range e.node.Schedulers {
		for _, to := range resolve(ctx, s) {
			if remedy, err := askScheduler(ctx, to, creds); err != nil {
				failed = true
				e.add(Trap, name, remedy, fmt.Sprintf("%s: %v", s, err))
			}
		}
	}
	switch {
	case failed:
	case !e.node.Connected:
		e.add(Trap, name, "look into the daemon's log for \"scheduler lost\", which says why", "it answers here, and the daemon is not connected")
	default:
		e.add(OK, name, "", strings.Join(e.node.Schedulers, ", "))
	}
}

// target is one address of a scheduler.
type target struct {
	addr, serverName string
	err              error
}

func resolve(ctx context.Context, scheduler string) []target {
	name, many := strings.CutPrefix(scheduler, "dns:///")
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return []target{{err: err}}
	}
	if !many {
		return []target{{addr: name, serverName: host}}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return []target{{err: err}}
	}
	var list []target
	for _, a := range addrs {
		list = append(list, target{addr: net.JoinHostPort(a, port), serverName: host})
	}
	return list
}

// askScheduler asks for the scheduler's health. The error comes with a remedy.
func askScheduler(ctx context.Context, to target, creds *tls.Config) (remedy string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*dialTimeout)
	defer cancel()
	if to.err != nil {
		return "correct the name, or the DNS", fmt.Errorf("its name does not resolve: %w", to.err)
	}
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", to.addr)
	if err != nil {
		return "start the scheduler, or let this node through to its port", fmt.Errorf("it is not reachable: %w", err)
	}
	conn.Close()
	if creds != nil {
		if remedy, err := handshake(ctx, to, creds); err != nil {
			return remedy, err
		}
	}
	c := insecure.NewCredentials()
	if creds != nil {
		creds = creds.Clone()
		creds.ServerName = to.serverName
		c = credentials.NewTLS(creds)
	}
	client, err := grpc.NewClient("passthrough:///"+to.addr, grpc.WithTransportCredentials(c), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return "", err
	}
	defer client.Close()
	answer, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.HealthCheckRequest{})
	switch {
	case err != nil && creds == nil && speaksTLS(ctx, to.addr):
		return "give the daemon --tls-cert, --tls-key and --tls-ca", errors.New("TLS mismatch: it wants TLS, and the daemon has none")
	case err != nil:
		return "name the scheduler's --listen with --scheduler", fmt.Errorf("what answers is no scheduler: %w", err)
	case answer.Status != healthpb.HealthCheckResponse_SERVING:
		return "look into the scheduler's log", fmt.Errorf("it is %s", answer.Status)
	}
	return "", nil
}

// handshake tells in which way TLS does not come about.
func handshake(ctx context.Context, to target, creds *tls.Config) (remedy string, err error) {
	creds = creds.Clone()
	creds.ServerName = to.serverName
	creds.NextProtos = []string{"h2"}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: creds}).DialContext(ctx, "tcp", to.addr)
	if err == nil {
		defer conn.Close()
		// In TLS 1.3 the other end says only afterwards whether it takes our
		// certificate; one that does begins to speak HTTP/2.
		_ = conn.SetReadDeadline(time.Now().Add(dialTimeout))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return "give both certificates of the same CA", fmt.Errorf("TLS mismatch: it does not take this node's certificate: %w", err)
		}
		return "", nil
	}
	var (
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &record):
		return "give the scheduler --tls-cert, --tls-key and --tls-ca", errors.New("TLS mismatch: the daemon wants TLS, and the scheduler has none")
	case errors.As(err, &unknown):
		return "give both certificates of the same CA", fmt.Errorf("TLS mismatch: its certificate is of another CA: %w", err)
	case errors.As(err, &name):
		return "issue the scheduler's certificate for the name by which daemons reach it", fmt.Errorf("TLS mismatch: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the scheduler's certificate, and see that the clocks of both are right", fmt.Errorf("its certificate is not valid now: %w", err)
	}
	return "see that both have certificates of the same CA", fmt.Errorf("TLS mismatch: %w", err)
}

// speaksTLS reports whether an address answers to TLS at all.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is said over it
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
		return true
	}
	// An alert is TLS too, such as the one that a certificate is required.
	return strings.Contains(err.Error(), "remote error: tls:")
}

// peers looks whether nodes that this one was told of can be reached. Some may
// be gone; all of them never are.
func (e *examination) peers(ctx context.Context) {
	const name = "peers"
	switch {
	case e.node == nil:
		e.add(Skipped, name, "", "needs the daemon")
		return
	case len(e.node.Peers) == 0:
		e.add(OK, name, "", "none are known yet")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	errs := make([]error, len(e.node.Peers))
	var group errgroup.Group
	for i, addr := range e.node.Peers {
		group.Go(func() error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if errs[i] = err; err == nil {
				conn.Close()
			}
			return nil
		})
	}
	_ = group.Wait() // none fails
	reached := 0
	for _, err := range errs {
		if err == nil {
			reached++
		}
	}
	if reached == 0 {
		e.add(Trap, name, "let nodes through to each other's --peer-listen (4401), or give them a --peer-advertise that others reach",
			fmt.Sprintf("of %d that this node was told of, none is reachable: %v", len(errs), errs[0]))
		return
	}
	e.add(OK, name, "", fmt.Sprintf("%d of %d answer", reached, len(errs)))
}
