// Package logbound bounds what others can make a process log, in length and
// rate: they choose paths, names and error texts, and how often they fail.
package logbound

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

const (
	// MaxValue bounds one value of a line, in bytes. What is cut off is
	// counted in its place. The cause of an error stands at its end: that of a
	// failed handshake after some 300 bytes.
	MaxValue = 1024
	// perSecond and burst bound the lines of one message, which is a constant
	// of the program and so a cause.
	perSecond = 5
	burst     = 50
	// maxMessages bounds the messages that are told apart; the others share
	// one bound.
	maxMessages = 1024
	// tellAfter is how long a count of lines left out waits for the next line
	// of its message before it gets a line of its own.
	tellAfter = 10 * time.Second
)

// Handler hands lines on to another handler, within the bounds. Lines of level
// debug are bounded in length alone.
type Handler struct {
	next  slog.Handler
	rates *rates
}

// New returns a Handler in front of next.
func New(next slog.Handler) *Handler {
	return &Handler{next, &rates{causes: map[string]*cause{}}}
}

// Enabled asks the next handler.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs returns a Handler that shares the bounds.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	short := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		short[i] = shorten(a)
	}
	return &Handler{h.next.WithAttrs(short), h.rates}
}

// WithGroup returns a Handler that shares the bounds.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.next.WithGroup(name), h.rates}
}

// Handle hands the line on, shortened, unless there are too many of its
// message. The first line that follows those left out has their number as
// left_out.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, cut(r.Message), r.PC)
	if r.Level > slog.LevelDebug {
		left, ok := h.rates.take(out.Message, func(left int) { h.tell(out, left) })
		if !ok {
			return nil
		}
		if left > 0 {
			out.AddAttrs(slog.Int("left_out", left))
		}
	}
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(shorten(a))
		return true
	})
	return h.next.Handle(ctx, out)
}

// tell logs how many lines of a message were left out at the end.
func (h *Handler) tell(r slog.Record, left int) {
	r = slog.NewRecord(time.Now(), r.Level, r.Message, r.PC)
	r.AddAttrs(slog.Int("left_out", left))
	// There is nowhere to log that it cannot be logged.
	_ = h.next.Handle(context.Background(), r)
}

type rates struct {
	mu     sync.Mutex // guards all below
	causes map[string]*cause
}

type cause struct {
	limit *rate.Limiter
	left  int         // lines left out since the last one
	timer *time.Timer // tells of them; nil if there are none
}

// take reports whether a line of that message may go, and how many did not
// since the last one. If none follows, tell is called with the number.
func (s *rates) take(message string, tell func(left int)) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.causes[message]
	if c == nil {
		if len(s.causes) >= maxMessages {
			message = ""
			c = s.causes[message]
		}
		if c == nil {
			c = &cause{limit: rate.NewLimiter(perSecond, burst)}
			s.causes[message] = c
		}
	}
	if !c.limit.Allow() {
		c.left++
		if c.timer == nil {
			c.timer = time.AfterFunc(tellAfter, func() {
				if left := s.clear(c); left > 0 {
					tell(left)
				}
			})
		}
		return 0, false
	}
	left, c.left = c.left, 0
	return left, true
}

// clear returns how many lines were left out, and forgets them.
func (s *rates) clear(c *cause) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := c.left
	c.left, c.timer = 0, nil
	return left
}

// shorten returns a with no text longer than MaxValue.
func shorten(a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, cut(v.String()))
	case slog.KindGroup:
		group := make([]slog.Attr, len(v.Group()))
		for i, g := range v.Group() {
			group[i] = shorten(g)
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(group...)}
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			return slog.String(a.Key, cut(x.Error()))
		case fmt.Stringer:
			return slog.String(a.Key, cut(x.String()))
		}
	}
	return slog.Attr{Key: a.Key, Value: v}
}

// cut returns s, without what is beyond MaxValue bytes.
func cut(s string) string {
	if len(s) <= MaxValue {
		return s
	}
	end := MaxValue
	for end > MaxValue-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s… (%d bytes more)", s[:end], len(s)-end)
}
