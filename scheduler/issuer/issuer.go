package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/shoalproject/shoal/mtls"
)

// Path is where certificates are asked for.
const Path = "/v1/certificate"

const (
	// maxRequest bounds the body of a request. One with a P-256 key has 400
	// bytes.
	maxRequest = 16 << 10
	// Of one address (IPv4) or network (IPv6, /64), this many requests are
	// looked at. Nodes behind one address come through one after the other.
	hostRate, hostBurst = 2, 20
	maxHosts            = 4096
	// A node gets this many certificates at once, and then one each nodeEvery,
	// or oftener where certificates live so short.
	nodeBurst = 10
	nodeEvery = 30 * time.Second
	maxNodes  = 16384
	// reviews are under way at once; a request waits reviewWait for its turn,
	// and reviewTimeout for the answer.
	reviews       = 8
	reviewWait    = 2 * time.Second
	reviewTimeout = 5 * time.Second
)

// A Reviewer says which node holds a token. The error is a *Refusal if the token
// is not good; any other means that nobody could tell.
type Reviewer interface {
	Review(ctx context.Context, token string) (node string, err error)
}

// Refusal says why a token is not good for a certificate.
type Refusal struct {
	// Known is set if the token is genuine, but of somebody else.
	Known  bool
	Detail string
}

func (r *Refusal) Error() string { return r.Detail }

// Config says who gets certificates, and which.
type Config struct {
	CA       *mtls.CA
	Reviewer Reviewer
	// Valid is how long certificates live.
	Valid time.Duration
	// Reserved are names that no node gets: those of the schedulers.
	Reserved []string
	Log      *slog.Logger
}

// Issuer answers requests for certificates.
type Issuer struct {
	cfg   Config
	log   *slog.Logger
	turns chan struct{}
	hosts *lru.Cache[netip.Prefix, *rate.Limiter]
	nodes *lru.Cache[string, *rate.Limiter]

	issued, refused, limited, failed atomic.Int64
}

// New returns an Issuer.
func New(cfg Config) (*Issuer, error) {
	i := &Issuer{cfg: cfg, log: cfg.Log, turns: make(chan struct{}, reviews)}
	var err error
	if i.hosts, err = lru.New[netip.Prefix, *rate.Limiter](maxHosts); err != nil {
		return nil, err
	}
	i.nodes, err = lru.New[string, *rate.Limiter](maxNodes)
	return i, err
}

// Stats are how many requests ended how, since the start.
type Stats struct {
	Issued  int64
	Refused int64 // no good token, or no good request
	Limited int64 // too many requests of an address or a node
	Failed  int64 // nobody could review the token
}

// Stats returns the counts so far.
func (i *Issuer) Stats() Stats {
	return Stats{i.issued.Load(), i.refused.Load(), i.limited.Load(), i.failed.Load()}
}

// Handler serves Path.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, i.serve)
	return mux
}

// answer is an error with the status that tells it.
type answer struct {
	status int
	err    error
}

func (a *answer) Error() string { return a.err.Error() }

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	if !allow(i.hosts, hostOf(r.RemoteAddr), rate.Limit(hostRate), hostBurst) {
		i.limited.Add(1)
		tell(w, &answer{http.StatusTooManyRequests, errors.New("too many requests from this address")})
		return
	}
	node, cert, err := i.issue(r, http.MaxBytesReader(w, r.Body, maxRequest))
	var a *answer
	switch {
	case err == nil:
		i.issued.Add(1)
		i.log.Info("certificate issued", "node", node, "from", r.RemoteAddr, "valid", i.cfg.Valid)
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(cert) // an error means that the node has gone
		return
	case !errors.As(err, &a):
		a = &answer{http.StatusServiceUnavailable, errors.New("tokens cannot be reviewed at the moment; the scheduler's log says why")}
		fallthrough
	case a.status >= 500:
		i.failed.Add(1)
		i.log.Error("certificate not issued", "from", r.RemoteAddr, "err", err)
	case a.status == http.StatusTooManyRequests:
		i.limited.Add(1)
	default:
		i.refused.Add(1)
		i.log.Warn("certificate refused", "node", node, "from", r.RemoteAddr, "cause", err)
	}
	tell(w, a)
}

func tell(w http.ResponseWriter, a *answer) {
	if a.status == http.StatusTooManyRequests || a.status >= 500 {
		w.Header().Set("Retry-After", "5")
	}
	if a.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	http.Error(w, a.Error(), a.status)
}

// issue returns the name of the node that a request comes from, if that is
// known, and its certificate. An error that is no *answer means that the token
// could not be reviewed.
func (i *Issuer) issue(r *http.Request, body io.Reader) (node string, cert []byte, err error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", nil, &answer{http.StatusUnauthorized, errors.New("a token is needed: Authorization: Bearer TOKEN")}
	}
	request, err := io.ReadAll(body)
	if err != nil {
		return "", nil, &answer{http.StatusBadRequest, fmt.Errorf("reading the certificate request: %w", err)}
	}
	key, err := mtls.RequestedKey(request)
	if err != nil {
		return "", nil, &answer{http.StatusBadRequest, err}
	}
	if node, err = i.review(r.Context(), token); err != nil {
		var no *Refusal
		switch {
		case !errors.As(err, &no):
			return "", nil, err
		case no.Known:
			return "", nil, &answer{http.StatusForbidden, no}
		}
		return "", nil, &answer{http.StatusUnauthorized, no}
	}
	if slices.ContainsFunc(i.cfg.Reserved, func(name string) bool { return strings.EqualFold(name, node) }) {
		return node, nil, &answer{http.StatusForbidden, fmt.Errorf("the node is called %s, which is the name of a scheduler", node)}
	}
	every := min(nodeEvery, i.cfg.Valid/8)
	if !allow(i.nodes, node, rate.Every(every), nodeBurst) {
		return node, nil, &answer{http.StatusTooManyRequests, errors.New("too many certificates for this node")}
	}
	cert, err = i.cfg.CA.Sign(key, i.cfg.Valid, node)
	if err != nil {
		return node, nil, &answer{http.StatusInternalServerError, err}
	}
	return node, cert, nil
}

// review asks the reviewer when it is this request's turn.
func (i *Issuer) review(ctx context.Context, token string) (string, error) {
	wait := time.NewTimer(reviewWait)
	defer wait.Stop()
	select {
	case i.turns <- struct{}{}:
		defer func() { <-i.turns }()
	case <-wait.C:
		return "", &answer{http.StatusServiceUnavailable, errors.New("too many requests at once")}
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	return i.cfg.Reviewer.Review(ctx, token)
}

// allow takes one event from the budget of a key.
func allow[K comparable](budgets *lru.Cache[K, *rate.Limiter], key K, limit rate.Limit, burst int) bool {
	budget, ok := budgets.Get(key)
	if !ok {
		budget = rate.NewLimiter(limit, burst)
		if old, there, _ := budgets.PeekOrAdd(key, budget); there {
			budget = old
		}
	}
	return budget.Allow()
}

// hostOf returns what one host's address is: an IPv4 address, or the network
// that one host of IPv6 has all addresses of.
func hostOf(remote string) netip.Prefix {
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := addr.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
