package mirror

import (
	"strings"
	"testing"
)

func TestRanges(t *testing.T) {
	for in, want := range map[string]struct {
		span
		ok bool
	}{
		"":              {span{0, 100}, true},
		"bytes=0-":      {span{0, 100}, true},
		"bytes=10-":     {span{10, 90}, true},
		"bytes=10-10":   {span{10, 1}, true},
		"bytes=10-999":  {span{10, 90}, true},
		"bytes=-30":     {span{70, 30}, true},
		"bytes=-300":    {span{0, 100}, true},
		"bytes=-0":      {span{}, false},
		"bytes=100-":    {span{}, false},
		"bytes=20-10":   {span{}, false},
		"bytes=0-1,3-4": {span{0, 100}, true},
		"bytes=":        {span{0, 100}, true},
		"bytes=-":       {span{0, 100}, true},
		"bytes=--5":     {span{0, 100}, true},
		"chunks=0-5":    {span{0, 100}, true},
	} {
		got, err := parseRange(in).of(100)
		if got != want.span || (err == nil) != want.ok {
			t.Errorf("%q of 100 bytes: %v, %v; want %v", in, got, err, want)
		}
	}
}

// Whatever is asked for, what is sent lies within the content.
func FuzzRange(f *testing.F) {
	f.Add("bytes=0-", int64(100))
	f.Add("bytes=-5", int64(0))
	f.Add("bytes=9223372036854775807-9223372036854775807", int64(5))
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		r := parseRange(header)
		if r.start() < 0 {
			t.Fatalf("starts at %d", r.start())
		}
		s, err := r.of(size)
		if err != nil {
			if !r.set {
				t.Fatalf("a header that is ignored is unsatisfiable: %v", err)
			}
			return
		}
		if s.off < 0 || s.n < 0 || s.off > size || s.n > size-s.off || r.set && s.n == 0 {
			t.Fatalf("%q of %d bytes gives %+v", header, size, s)
		}
		if r.set && !strings.HasPrefix(header, "bytes=") {
			t.Fatalf("%q was read as a range", header)
		}
	})
}
