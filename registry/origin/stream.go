package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/shoalproject/shoal/registry"
)

const (
	// minProgress is what an attempt must bring, in bytes, to count as
	// progress, so that an origin which cuts after every byte is not asked
	// once per byte.
	minProgress = 64 << 10
	// maxSkips bounds how often a stream is begun anew at an origin that
	// does not honour ranges: each costs the bytes before it again.
	maxSkips = 3
)

// Stream is a blob, or a range of one, on its way from an origin. It resumes
// by itself after a cut, a stall, a 5xx, an expired token or an expired
// signed URL. It is for one goroutine; cancelling its context ends a Read.
type Stream struct {
	ctx   context.Context
	q     *call
	start int64 // where the bytes given out begin
	pos   int64 // the next byte
	end   int64 // exclusive; -1 while unknown
	size  int64 // of the whole blob; -1 while unknown
	first bool  // nothing was given out yet
	whole bool  // the body is the whole blob, whatever was asked
	skips int

	body  io.ReadCloser // nil between attempts
	came  int64         // bytes of this attempt
	fails int           // attempts in a row without progress
	cause error         // why the last attempt ended
	err   error         // why the stream ended
}

// Size returns the size of the whole blob in bytes, or -1 while the origin
// has not said it.
func (s *Stream) Size() int64 { return s.size }

// Offset returns where the bytes start: at the offset asked for, or at 0 if
// the origin does not honour ranges. Then the whole blob comes.
func (s *Stream) Offset() int64 { return s.start }

// Read reads the next bytes. It returns io.EOF exactly at the end of what was
// asked for, and no bytes with an error. An answer that is not what was asked
// for ends the stream with ErrBadAnswer.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, s.err
	}
	for s.err == nil {
		switch {
		case s.end >= 0 && s.pos == s.end:
			s.err = s.finish()
		case s.body == nil:
			s.err = s.reopen()
		default:
			if n := s.step(p); n > 0 {
				return n, nil
			}
		}
	}
	return 0, s.err
}

// Close ends the stream. It returns nil.
func (s *Stream) Close() error {
	s.drop()
	if s.err == nil {
		s.err = errors.New("read from a closed stream")
	}
	return nil
}

func (s *Stream) drop() {
	if s.body != nil {
		_ = s.body.Close() // nothing was written, nothing can be lost
		s.body = nil
	}
}

// step reads once from the body.
func (s *Stream) step(p []byte) int {
	if s.end >= 0 {
		p = p[:min(int64(len(p)), s.end-s.pos)]
	}
	n, err := s.body.Read(p)
	s.pos += int64(n)
	s.came += int64(n)
	if s.came >= minProgress {
		s.fails = 0
	}
	switch {
	case n > 0 || err == nil: // the error comes again with the next read
	case err == io.EOF && s.end < 0:
		s.end, s.size = s.pos, s.pos
	case err == io.EOF:
		s.cut(io.ErrUnexpectedEOF)
	default:
		s.cut(err)
	}
	return n
}

func (s *Stream) cut(err error) {
	s.drop()
	s.cause = err
	if s.came < minProgress {
		s.fails++
	}
	s.came = 0
}

// finish returns io.EOF, or the error of a body that goes on after the last
// byte.
func (s *Stream) finish() error {
	if s.body == nil {
		return io.EOF
	}
	defer s.drop()
	if s.whole && s.end < s.size {
		return io.EOF
	}
	var more [1]byte
	if n, _ := s.body.Read(more[:]); n > 0 { // all bytes are here: a cut now does no harm
		return s.q.badAnswer("more bytes than the %d it said", s.end)
	}
	return io.EOF
}

func (s *Stream) reopen() error {
	for s.fails < maxAttempts {
		if s.fails > 0 {
			if err := s.q.pause(s.ctx, s.fails); err != nil {
				return err
			}
		}
		s.q.e.cfg.Logger.Debug("resuming from the origin", "call", s.q.String(), "at", s.pos, "err", s.cause)
		err := s.open()
		if err == nil {
			return nil
		}
		if !shouldRetry(err) {
			return err
		}
		s.fails++
		s.cause = err
	}
	var f *failure
	if errors.As(s.cause, &f) {
		return s.cause
	}
	return s.q.failed(s.ctx, fmt.Errorf("%d attempts at byte %d: %w", s.fails, s.pos, s.cause))
}

// open makes one attempt from the byte reached.
func (s *Stream) open() error {
	q := *s.q
	ranged := s.pos > 0 || s.end >= 0
	if ranged {
		q.header = http.Header{"Range": {rangeHeader(s.pos, s.end)}}
	}
	resp, err := q.do(s.ctx)
	if err != nil {
		return s.refused(err)
	}
	if ranged && resp.StatusCode == http.StatusPartialContent {
		err = s.partial(resp)
	} else {
		err = s.complete(resp)
	}
	if err != nil {
		_ = resp.Body.Close() // not to be used again: what is in it is not known
		return err
	}
	s.body = resp.Body
	return nil
}

func rangeHeader(off, end int64) string {
	if end < 0 {
		return fmt.Sprintf("bytes=%d-", off)
	}
	return fmt.Sprintf("bytes=%d-%d", off, end-1)
}

// refused turns a 416 in the middle into what it means: the origin first
// said that there is more.
func (s *Stream) refused(err error) error {
	var e *registry.Error
	if !s.first && errors.As(err, &e) && e.Status == http.StatusRequestedRangeNotSatisfiable {
		return s.q.badAnswer("no byte %d although it said that there is one", s.pos)
	}
	return err
}

// partial takes a 206.
func (s *Stream) partial(resp *http.Response) error {
	if err := s.q.checkPlain(resp, http.StatusPartialContent); err != nil {
		return err
	}
	text := resp.Header.Get("Content-Range")
	r, ok := parseContentRange(text)
	end := s.end
	if end < 0 || r.size >= 0 && end > r.size {
		end = r.size
	}
	if end < 0 {
		end = r.last + 1 // no end was asked for, and the size is not said
	}
	switch n := r.last - r.first + 1; {
	case !ok, r.first != s.pos, r.last+1 != end, !s.first && s.end >= 0 && end != s.end:
		return s.q.badAnswer("Content-Range %.80q for the range %s", text, rangeHeader(s.pos, s.end))
	case resp.ContentLength >= 0 && resp.ContentLength != n:
		return s.q.badAnswer("Content-Length %d for a range of %d bytes", resp.ContentLength, n)
	}
	if err := s.setSize(r.size); err != nil {
		return err
	}
	s.end, s.whole = end, false
	return nil
}

// complete takes a 200, which is the whole blob whatever was asked for.
func (s *Stream) complete(resp *http.Response) error {
	if err := s.q.checkPlain(resp, http.StatusOK); err != nil {
		return err
	}
	if err := s.setSize(resp.ContentLength); err != nil {
		return err
	}
	s.whole = true
	if s.first {
		s.start, s.pos, s.end = 0, 0, s.size
		return nil
	}
	if s.pos == 0 {
		return nil
	}
	if s.skips++; s.skips > maxSkips {
		return s.q.badAnswer("the whole blob for a range, %d times", s.skips)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, s.pos); err != nil {
		return s.q.failed(s.ctx, fmt.Errorf("skipping to byte %d: %w", s.pos, err))
	}
	return nil
}

func (s *Stream) setSize(n int64) error {
	if n < 0 {
		return nil
	}
	if s.size >= 0 && s.size != n {
		return s.q.badAnswer("a size of %d bytes after one of %d", n, s.size)
	}
	s.size = n
	if !s.first && s.end < 0 {
		s.end = n
	}
	return nil
}
