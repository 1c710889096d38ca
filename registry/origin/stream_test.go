package origin

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/shoalproject/shoal/registry"
	rt "github.com/shoalproject/shoal/registry/registrytest"
	"golang.org/x/time/rate"
)

func TestBlobRanges(t *testing.T) {
	data := randomBytes(t, 300_000)
	for name, opts := range map[string][]rt.Option{
		"plain": nil, "TLS": {rt.WithTLS()}, "TLS without HTTP/2": {rt.WithTLS(), rt.WithoutHTTP2()}, "IPv6": {rt.WithAddress("[::1]:0")},
	} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t, opts...)
			d := o.AddBlob(repo, data)
			empty := o.AddBlob(repo, nil)
			c := newClient(t, o)
			for _, r := range [][2]int64{{0, -1}, {0, 1}, {100, 200}, {299_999, -1}, {299_999, 300_000}, {1000, 1 << 40}} {
				b, s, err := readBlob(t, c, d, r[0], r[1])
				if err != nil {
					t.Fatalf("%v: %v", r, err)
				}
				end := r[1]
				if end < 0 || end > int64(len(data)) {
					end = int64(len(data))
				}
				if !bytes.Equal(b, data[r[0]:end]) || s.Size() != int64(len(data)) || s.Offset() != r[0] {
					t.Errorf("%v: %d bytes, size %d, offset %d", r, len(b), s.Size(), s.Offset())
				}
			}
			if b, s, err := readBlob(t, c, empty, 0, -1); err != nil || len(b) != 0 || s.Size() != 0 {
				t.Errorf("empty blob: %d bytes, %v", len(b), err)
			}
			if n, err := c.HeadBlob(t.Context(), target, d); err != nil || n != int64(len(data)) {
				t.Errorf("HeadBlob: %d, %v", n, err)
			}
			if _, _, err := readBlob(t, c, d, 300_000, -1); err == nil {
				t.Error("a range behind the end was served")
			} else {
				wantStatus(t, err, http.StatusRequestedRangeNotSatisfiable)
			}
			if _, _, err := readBlob(t, c, d, 5, 5); err == nil {
				t.Error("an empty range was taken")
			}
		})
	}
}

func TestSHA512(t *testing.T) {
	o := rt.New(t)
	data := randomBytes(t, 1000)
	d := digest.SHA512.FromBytes(data)
	o.AddVirtual(repo, d, bytes.NewReader(data), 1000)
	if b, _, err := readBlob(t, newClient(t, o), d, 0, -1); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestStreamSurvives orders faults that a stream must ride out, and holds
// what comes out against the blob.
func TestStreamSurvives(t *testing.T) {
	data := randomBytes(t, 1<<20)
	forever := make(chan struct{})
	t.Cleanup(func() { close(forever) })
	for name, c := range map[string]struct {
		faults []rt.Fault // one per request, nil for none
		off    int64
	}{
		"cut":                      {faults: []rt.Fault{rt.Cut(300_000)}},
		"cut twice without a byte": {faults: []rt.Fault{rt.Cut(0), rt.Cut(0)}},
		"many cuts":                {faults: []rt.Fault{rt.Cut(100_000), rt.Cut(100_000), rt.Cut(100_000), rt.Cut(100_000), rt.Cut(100_000)}},
		"cut of a range":           {faults: []rt.Fault{rt.Cut(300_000)}, off: 1000},
		"stall":                    {faults: []rt.Fault{rt.HangAfter(200_000, forever)}},
		"reset at first":           {faults: []rt.Fault{rt.Reset()}},
		"5xx at first":             {faults: []rt.Fault{rt.Status(500), rt.Status(502)}},
		"5xx in the middle":        {faults: []rt.Fault{rt.Cut(100_000), rt.Status(503), rt.Status(500)}},
		"no ranges in the middle":  {faults: []rt.Fault{rt.Cut(100_000), rt.NoRanges()}},
		"no length and cut":        {faults: []rt.Fault{rt.Chain(rt.Cut(100_000), rt.Header("Content-Length", ""))}},
		"short wait":               {faults: []rt.Fault{rt.Status(503, "Retry-After", "0")}},
		"408":                      {faults: []rt.Fault{rt.Status(408)}},
	} {
		t.Run(name, func(t *testing.T) {
			for proto, opts := range map[string][]rt.Option{"http1": nil, "http2": {rt.WithTLS()}} {
				t.Run(proto, func(t *testing.T) {
					o := rt.New(t, opts...)
					d := o.AddBlob(repo, data)
					for i, f := range c.faults {
						o.Inject(rt.Order{Kind: rt.Blob, Skip: i, Times: 1}, f)
					}
					cl := newClient(t, o, func(c *Config) {
						if name == "stall" {
							c.StallTimeout = 300 * time.Millisecond
						}
					})
					b, _, err := readBlob(t, cl, d, c.off, -1)
					if err != nil || !bytes.Equal(b, data[c.off:]) {
						t.Fatalf("%d bytes of %d, %v", len(b), int64(len(data))-c.off, err)
					}
					if got := o.Count(rt.Blob); got > len(c.faults)+1 {
						t.Errorf("%d requests, want at most %d", got, len(c.faults)+1)
					}
				})
			}
		})
	}
}

// TestStreamEndsWithError orders faults that make a stream worthless: it must
// never end with io.EOF.
func TestStreamEndsWithError(t *testing.T) {
	data := randomBytes(t, 200_000)
	always := func(f rt.Fault) []rt.Fault { return []rt.Fault{nil, f} }
	for name, c := range map[string]struct {
		faults   []rt.Fault // nil first: the second for all requests
		off, end int64
		bad      bool // ErrBadAnswer
		requests int
	}{
		"more bytes than said":      {faults: always(rt.Chain(rt.Extra(10), rt.Header("Content-Range", "bytes 0-99999/200000"))), end: 100_000, bad: true, requests: 1},
		"other range":               {faults: always(rt.Header("Content-Range", "bytes 5-104/200000")), off: 6, end: 106, bad: true, requests: 1},
		"longer range":              {faults: always(rt.Header("Content-Range", "bytes 0-199999/200000")), end: 100, bad: true, requests: 1},
		"shorter range":             {faults: always(rt.Header("Content-Range", "bytes 0-49/200000")), end: 100, bad: true, requests: 1},
		"no Content-Range":          {faults: always(rt.Header("Content-Range", "")), off: 1, end: 100, bad: true, requests: 1},
		"Content-Length of another": {faults: always(rt.Length(-5)), off: 1, end: 100, bad: true, requests: 1},
		"HTML":                      {faults: always(rt.HTML()), end: -1, bad: true, requests: 1},
		"encoded":                   {faults: always(rt.Gzip()), end: -1, bad: true, requests: 1},
		"longer than said":          {faults: always(rt.Length(10)), end: -1, bad: true, requests: 2},
		"HTML in the middle":        {faults: []rt.Fault{rt.Cut(100_000), rt.HTML()}, end: -1, bad: true, requests: 2},
		"other size in the middle":  {faults: []rt.Fault{rt.Cut(100_000), rt.Header("Content-Range", "bytes 100000-199998/199999")}, end: -1, bad: true, requests: 2},
		"206 unasked":               {faults: always(rt.Answer(206, "abc", "Content-Range", "bytes 0-2/200000")), end: -1, bad: true, requests: 1},
		"204":                       {faults: always(rt.Status(204)), end: -1, bad: true, requests: 1},
		"never a byte":              {faults: always(rt.Cut(0)), end: -1, requests: 3},
		"a byte at a time":          {faults: always(rt.Cut(1)), end: -1, requests: 3},
		"no ranges, always cut":     {faults: always(rt.Chain(rt.NoRanges(), rt.Cut(150_000))), end: -1, requests: 4},
		"500":                       {faults: always(rt.Status(500)), end: -1, requests: 3},
	} {
		t.Run(name, func(t *testing.T) {
			o := rt.New(t)
			d := o.AddBlob(repo, data)
			for i, f := range c.faults {
				if f == nil {
					continue
				}
				order := rt.Order{Kind: rt.Blob, Skip: i, Times: 1}
				if c.faults[0] == nil {
					order = rt.Order{Kind: rt.Blob}
				}
				o.Inject(order, f)
			}
			_, _, err := readBlob(t, newClient(t, o), d, c.off, c.end)
			if err == nil {
				t.Fatal("no error")
			}
			if errors.Is(err, ErrBadAnswer) != c.bad {
				t.Errorf("ErrBadAnswer %v: %v", !c.bad, err)
			}
			if !IsUnavailable(err) {
				t.Errorf("not unavailable: %v", err)
			}
			var e *registry.Error
			if errors.As(err, &e) && (!bytes.Contains([]byte(e.Message), []byte(host)) || !bytes.Contains([]byte(e.Message), []byte(d))) {
				t.Errorf("the message names neither upstream nor digest: %s", e.Message)
			}
			if got := o.Count(rt.Blob); got != c.requests {
				t.Errorf("%d requests, want %d", got, c.requests)
			}
		})
	}
}

func TestOriginWithoutRanges(t *testing.T) {
	data := randomBytes(t, 10_000)
	o := rt.New(t)
	d := o.AddBlob(repo, data)
	o.Inject(rt.Order{Kind: rt.Blob}, rt.NoRanges())
	b, s, err := readBlob(t, newClient(t, o), d, 5000, 6000)
	if err != nil || s.Offset() != 0 || s.Size() != 10_000 || !bytes.Equal(b, data) {
		t.Errorf("offset %d, %d bytes, %v", s.Offset(), len(b), err)
	}
	if n := o.Count(rt.Blob); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestRefusals(t *testing.T) {
	o := rt.New(t)
	d := o.AddBlob(repo, []byte("data"))
	c := newClient(t, o)
	for status, unavailable := range map[int]bool{403: false, 404: false, 400: false, 410: false, 504: true} {
		cancel := o.Inject(rt.Order{}, rt.Status(status))
		_, _, err := readBlob(t, c, d, 0, -1)
		wantStatus(t, err, status)
		if IsUnavailable(err) != unavailable {
			t.Errorf("%d: unavailable %v", status, !unavailable)
		}
		_, err = c.HeadBlob(t.Context(), target, d)
		e := wantStatus(t, err, status)
		if status == 404 && e.Code != registry.CodeBlobUnknown {
			t.Errorf("code %s of a HEAD", e.Code)
		}
		cancel()
	}
	other := target
	other.Host = "elsewhere.test"
	_, err := c.HeadBlob(t.Context(), other, d)
	wantStatus(t, err, 403)
}

func TestRateLimit(t *testing.T) {
	// A rate so high that nothing waits: what is shown is that reads keep to
	// the burst, without which WaitN would fail.
	data := randomBytes(t, 10_000)
	o := rt.New(t)
	d := o.AddBlob(repo, data)
	l := rate.NewLimiter(1e9, 1000)
	c := newClient(t, o, func(c *Config) { c.Rate = l })
	s, err := c.Blob(t.Context(), target, d, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.Read(make([]byte, 5000)); err != nil || n > 1000 {
		t.Errorf("one read of %d bytes, %v: more than the burst", n, err)
	}
	if b, err := io.ReadAll(s); err != nil || len(b) < 9000 {
		t.Errorf("the rest: %d bytes, %v", len(b), err)
	}
	if _, err := New(Config{Rate: rate.NewLimiter(1, 0)}); err == nil {
		t.Error("a burst of 0 was taken")
	}
}

func TestConnectionsAreReused(t *testing.T) {
	o := rt.New(t, rt.WithTLS(), rt.WithoutHTTP2(), rt.WithStore(), rt.WithAuth(aliceOnly()))
	img := o.AddImage(repo, "latest", randomBytes(t, 100_000))
	c := newClient(t, o, alice, allowing(o.StoreHost()))
	for range 10 {
		if _, err := c.Manifest(t.Context(), target, "latest", nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readBlob(t, c, img.Layers[0].Digest, 0, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Manifest(t.Context(), target, "nothing", nil); err == nil {
			t.Fatal("no error")
		}
		wantConnections(t, o, 2) // API with tokens, store
	}
}

func wantConnections(t *testing.T, o *rt.Origin, n int) {
	t.Helper()
	if got := o.Connections(); got > n {
		t.Fatalf("%d connections, want at most %d", got, n)
	}
}
