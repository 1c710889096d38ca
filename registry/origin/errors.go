package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/shoalproject/shoal/registry"
)

var (
	// ErrForbiddenAddress is wrapped by the error of a request that would
	// have reached an address which this upstream may not reach. Nothing was
	// sent.
	ErrForbiddenAddress = errors.New("this registry may not lead to the address, which is loopback, link-local, a metadata service, or private where the registry is not (allow=HOST:PORT permits it)")
	// ErrBadAnswer is wrapped by the error of a request whose answer is not
	// what was asked for: another range or length, wrong digest, an HTML
	// page, an encoding. Nothing of it may be kept.
	ErrBadAnswer = errors.New("origin sent something else than was asked for")
)

// IsUnavailable reports whether err means that the origin gave no usable
// answer (unreachable, 5xx, rate-limited, misbehaving), as opposed to a
// refusal (401, 403, 404) or a caller that went away.
func IsUnavailable(err error) bool {
	var e *registry.Error
	return errors.As(err, &e) && (e.Status >= 500 || e.Status == http.StatusTooManyRequests)
}

// IsLimitedForAll reports whether err means that the origin asked to be left
// alone by this node as a whole, as opposed to one caller of it.
func IsLimitedForAll(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.limited && f.all
}

// failure is an error of a request: what to tell the runtime, what caused it,
// and what the retry loops need to know.
type failure struct {
	reg   *registry.Error
	cause error // may be nil
	// retry: the same request may well succeed if repeated.
	retry bool
	// down: no connection or no headers came, so that a repetition may cost
	// the time-out again.
	down bool
	// answered: an answer came, whatever it was.
	answered bool
	// limited: the origin asked to be left alone, by whatever credential it is
	// asked if all is set, else by the one of this request.
	limited, all bool
	// status is what came, before it was put into words for a runtime.
	status int
}

func (f *failure) Error() string { return f.reg.Error() }

func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.reg}
	}
	return []error{f.reg, f.cause}
}

func shouldRetry(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.retry
}

func isDown(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.down
}

// badAnswer returns the error for an answer that breaks the protocol.
func (q *call) badAnswer(format string, args ...any) error {
	why := fmt.Errorf("%w: %s", ErrBadAnswer, fmt.Sprintf(format, args...))
	return &failure{
		reg:   &registry.Error{Status: http.StatusBadGateway, Code: registry.CodeUnavailable, Message: q.String() + ": " + why.Error()},
		cause: why, answered: true,
	}
}

// failed returns the error for a request that got no answer.
func (q *call) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", q, context.Cause(ctx))
	}
	var f *failure
	if errors.As(err, &f) {
		return err
	}
	err = clean(err)
	f = &failure{
		reg:   &registry.Error{Status: http.StatusServiceUnavailable, Code: registry.CodeUnavailable},
		cause: err,
		retry: true,
	}
	var op *net.OpError
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	verb := "no answer from registry " + q.e.host
	switch {
	case errors.Is(err, ErrForbiddenAddress), errors.Is(err, errRule), errors.Is(err, ErrBadAnswer):
		f.reg.Status, f.retry = http.StatusBadGateway, false
		verb = "refused to follow registry " + q.e.host
	case errors.As(err, &op) && op.Op == "dial", errors.As(err, &dns):
		f.down = true
		verb = "registry " + q.e.host + " cannot be reached"
	case errors.Is(err, errBulk):
		f.down = true
		verb = "registry " + q.e.host + " was not asked"
	case errors.As(err, &timeout) && timeout.Timeout():
		f.down = true
	}
	f.reg.Message = limit(fmt.Sprintf("%s: %s: %s", q, verb, err), 512)
	return f
}

// clean returns err without the query of URLs in it: signed URLs and token
// requests carry secrets there.
func clean(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("%s: %w", strings.ToLower(u.Op), u.Err)
	}
	return err
}

// scrub returns s without any of the secrets in it: an origin may repeat in
// its answer what it was sent.
func scrub(s string, secrets ...string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	return s
}

func limit(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
