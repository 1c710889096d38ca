package mirror

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// span is a range of bytes of some content: [off, off+n).
type span struct{ off, n int64 }

// errUnsatisfiable is a range that lies outside the content.
var errUnsatisfiable = errors.New("range lies outside the content")

// byteRange is a Range header that has been read but not yet applied to a
// size.
type byteRange struct {
	first, last int64 // last is -1 if open; first is -1 for a suffix of last bytes
	set         bool
}

// parseRange reads a Range header. Anything but one well-formed range of
// bytes is as if it had not been sent, which RFC 9110 section 14.2 allows:
// several ranges at once are asked for by no runtime and are how servers get
// worn out.
func parseRange(s string) byteRange {
	spec, ok := strings.CutPrefix(s, "bytes=")
	if !ok {
		return byteRange{}
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return byteRange{}
	}
	if first == "" {
		n, ok := number(last)
		return byteRange{first: -1, last: n, set: ok}
	}
	r := byteRange{last: -1}
	if r.first, r.set = number(first); r.set && last != "" {
		r.last, r.set = number(last)
	}
	return r
}

func number(s string) (int64, bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// start is where the range starts, as far as that is known without a size.
func (r byteRange) start() int64 {
	if !r.set || r.first < 0 {
		return 0
	}
	return r.first
}

// whole reports whether the range is the whole content, whatever its size.
func (r byteRange) whole() bool { return !r.set || r.first == 0 && r.last < 0 }

// of applies the range to content of that size.
func (r byteRange) of(size int64) (span, error) {
	switch {
	case !r.set:
		return span{0, size}, nil
	case r.first < 0:
		n := min(r.last, size)
		if n == 0 {
			return span{}, errUnsatisfiable
		}
		return span{size - n, n}, nil
	case r.first >= size, r.last >= 0 && r.last < r.first:
		return span{}, errUnsatisfiable
	case r.last < 0 || r.last >= size:
		return span{r.first, size - r.first}, nil
	default:
		return span{r.first, r.last - r.first + 1}, nil
	}
}

// contentRange is the header that goes with a span of content of that size.
func (s span) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", s.off, s.off+s.n-1, size)
}
