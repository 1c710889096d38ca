package logbound

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func logger(b io.Writer) *slog.Logger {
	return slog.New(New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

func TestLinesAreShort(t *testing.T) {
	var b bytes.Buffer
	long := strings.Repeat("ä", 40<<10)
	log := logger(&b).With("with", long).WithGroup("g")
	log.Warn(long, "path", long, "err", errors.New(long), slog.Group("in", "x", long), "stringer", slogStringer(long), "n", 7)
	log.Debug("debug", "path", long)
	for line := range strings.Lines(b.String()) {
		if len(line) > 6*2*MaxValue {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if !utf8.Valid(b.Bytes()) || strings.Contains(b.String(), `\x`) {
		t.Error("a letter is cut in two")
	}
	if !strings.Contains(b.String(), "bytes more") || !strings.Contains(b.String(), "g.n=7") {
		t.Errorf("%.2000s", b.String())
	}
}

type slogStringer string

func (s slogStringer) String() string { return string(s) }

// lockedBuffer is a buffer that timers write to while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestLinesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b lockedBuffer
		log := logger(&b)
		other := log.With("part", "x") // shares the bounds
		for range 1000 {
			log.Warn("request", "path", "/")
			other.Warn("request", "path", "/")
			time.Sleep(time.Millisecond)
		}
		log.Error("another cause")
		if n := strings.Count(b.String(), "msg=request"); n < burst || n > burst+2*perSecond {
			t.Errorf("%d lines in a second", n)
		}
		if !strings.Contains(b.String(), "another cause") {
			t.Error("one cause keeps another from being told")
		}
		time.Sleep(tellAfter)
		synctest.Wait()
		told := 0
		for line := range strings.Lines(b.String()) {
			if _, n, ok := strings.Cut(line, "left_out="); ok {
				var left int
				fmt.Sscan(n, &left)
				told += left
			}
		}
		if lines := strings.Count(b.String(), "path=/"); told+lines != 2000 {
			t.Errorf("%d lines, and %d left out: together not 2000", lines, told)
		}
		for range 100 {
			log.Debug("request")
		}
		if n := strings.Count(b.String(), "level=DEBUG"); n != 100 {
			t.Errorf("%d of 100 debug lines", n)
		}
	})
}

func TestMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := logger(&b)
		for i := range 10 * maxMessages {
			log.Warn(fmt.Sprint("message ", i))
		}
		if n := len(log.Handler().(*Handler).rates.causes); n > maxMessages+1 {
			t.Errorf("%d messages are remembered", n)
		}
		time.Sleep(tellAfter)
	})
}

func FuzzCut(f *testing.F) {
	f.Add("short")
	f.Add(strings.Repeat("ä", 200))
	f.Add(strings.Repeat("\x80", 300))
	f.Fuzz(func(t *testing.T, s string) {
		got := cut(s)
		if len(got) > MaxValue+40 {
			t.Errorf("%d bytes of %d", len(got), len(s))
		}
		if utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Errorf("%q is not valid", got)
		}
	})
}
