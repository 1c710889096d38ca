package origin

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// contentRange is a parsed Content-Range: the bytes from first to last,
// inclusive, of size, which is -1 if the origin does not say.
type contentRange struct{ first, last, size int64 }

// parseContentRange reads "bytes FIRST-LAST/SIZE" (RFC 9110, 14.4). A range
// that is not inside its size is not one.
func parseContentRange(s string) (r contentRange, ok bool) {
	unit, rest, ok := strings.Cut(strings.TrimSpace(s), " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return r, false
	}
	span, size, ok := strings.Cut(strings.TrimSpace(rest), "/")
	if !ok {
		return r, false
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		return r, false
	}
	var ok1, ok2, ok3 bool
	r.first, ok1 = parseNumber(first)
	r.last, ok2 = parseNumber(last)
	if size == "*" {
		r.size, ok3 = -1, true
	} else {
		r.size, ok3 = parseNumber(size)
		ok3 = ok3 && r.last < r.size
	}
	if !ok1 || !ok2 || !ok3 || r.first > r.last {
		return contentRange{}, false
	}
	return r, true
}

// parseNumber reads digits only: no sign, no blank. The bound leaves room for
// adding one.
func parseNumber(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n < 1<<62
}

// maxRetryAfter bounds how long an origin can make us leave it alone. Longer
// ones have been seen from broken proxies, and one probe per five minutes
// hurts nobody.
const maxRetryAfter = 5 * time.Minute

// parseRetryAfter reads both forms of Retry-After (RFC 9110, 10.2.3) and
// returns 0 if there is none that makes sense.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0
	}
	if strings.Trim(s, "0123456789") == "" {
		n, ok := parseNumber(s)
		if !ok || n > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
