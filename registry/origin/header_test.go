package origin

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

func TestContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1": {0, 0, 1}, "bytes 5-9/*": {5, 9, -1}, "Bytes  5-9/10": {5, 9, 10},
		"bytes 0-4611686018427387902/4611686018427387903": {0, 1<<62 - 2, 1<<62 - 1},
	} {
		if got, ok := parseContentRange(s); !ok || got != want {
			t.Errorf("%q: %v %v", s, got, ok)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes */10", "bytes 5-4/10", "bytes 0-10/10", "bytes -1-5/10", "bytes +1-5/10", "items 0-1/2", "bytes 0-1/2/3",
		"bytes 0 - 1/2", "bytes 0-1", "bytes 0x0-0x1/2", "bytes 0-9223372036854775807/9223372036854775808", "bytes 0-1/-1",
	} {
		if got, ok := parseContentRange(s); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/100")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, ok := parseContentRange(s)
		if !ok {
			return
		}
		if r.first < 0 || r.last < r.first || r.size >= 0 && r.last >= r.size || r.last+1 <= 0 {
			t.Errorf("%q: %+v", s, r)
		}
		size := "*"
		if r.size >= 0 {
			size = fmt.Sprint(r.size)
		}
		if again, ok := parseContentRange(fmt.Sprintf("bytes %d-%d/%s", r.first, r.last, size)); !ok || again != r {
			t.Errorf("%q: %+v, again %+v", s, r, again)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "1.5": 0, "soon": 0,
		"300": maxRetryAfter, "301": maxRetryAfter, "99999999999999999999999": maxRetryAfter,
		now.Add(time.Minute).Format(http.TimeFormat):  time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat): 0,
		now.Add(time.Hour).Format(http.TimeFormat):    maxRetryAfter,
	} {
		if got := parseRetryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Fri, 31 Dec 1999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if d := parseRetryAfter(s, time.Now()); d < 0 || d > maxRetryAfter {
			t.Errorf("%q: %v", s, d)
		}
	})
}
