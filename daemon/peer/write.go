package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"
)

// keepReader is how long a Reader stays open after the last block, so that a
// spell of requests opens it once and an idle connection holds no descriptor.
const keepReader = 5 * time.Second

// pieceHeader is the length of what precedes the payload of a PIECE message:
// length, type, index, begin.
const pieceHeader = 4 + 1 + 4 + 4

// writer is the state of the goroutine that writes.
type writer struct {
	*Conn
	buf    bytes.Buffer // being written
	taken  int          // bytes of buf that count as queued
	reader Reader       // nil if not open
	last   int          // piece of the last block
	until  time.Time    // the deadline that is set
}

// write sends what is queued until the connection is closed.
func (c *Conn) write() error {
	w := &writer{Conn: c, last: -1}
	defer w.closeReader()
	defer w.written()
	for {
		if err := w.takeOut(); err != nil {
			return err
		}
		b, ok := c.nextBlock(w.last)
		var err error
		switch {
		case ok:
			err = w.block(b)
		case w.buf.Len() > 0:
			err = w.flush()
		default:
			err = w.idle()
		}
		if err != nil {
			return err
		}
	}
}

// takeOut takes the queued messages over.
func (w *writer) takeOut() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.err
	}
	w.taken += w.out.Len()
	w.buf.Write(w.out.Bytes())
	w.out.Reset()
	return nil
}

// written empties the buffer, which is out.
func (w *writer) written() {
	w.queue(-w.taken)
	w.taken = 0
	w.buf.Reset()
}

// deadline sets by when a write must end, to the second: a timer that is moved
// for each block shows in the profile.
func (w *writer) deadline() {
	until := time.Now().Add(w.e.cfg.WriteTimeout)
	if until.Sub(w.until) > time.Second {
		w.nc.SetWriteDeadline(until)
		w.until = until
	}
}

func (w *writer) flush() error {
	w.deadline()
	_, err := w.nc.Write(w.buf.Bytes())
	w.written()
	if err != nil {
		return fmt.Errorf("peer: writing: %w", err)
	}
	return nil
}

// idle waits for something to write.
func (w *writer) idle() error {
	wait := w.e.cfg.KeepAlive
	if w.reader != nil {
		wait = min(wait, keepReader)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-w.wake:
	case <-w.ctx.Done():
	case <-timer.C:
		if w.reader != nil {
			w.closeReader()
			return nil
		}
		w.mu.Lock()
		w.put(pp.Message{Keepalive: true})
		w.mu.Unlock()
	}
	return nil
}

func (w *writer) closeReader() {
	if w.reader != nil {
		if err := w.reader.Close(); err != nil {
			w.e.cfg.Logger.Warn("cannot close content", "digest", w.s.digest, "err", err)
		}
		w.reader = nil
	}
}

// block sends one block, and the queued messages before it.
func (w *writer) block(b block) error {
	if w.reader == nil {
		r, err := w.s.reader()
		if err != nil {
			return w.cannot(b, err)
		}
		w.reader = r
	}
	var header [pieceHeader]byte
	binary.BigEndian.PutUint32(header[0:], uint32(pieceHeader-4+b.length))
	header[4] = byte(pp.Piece)
	binary.BigEndian.PutUint32(header[5:], uint32(b.index))
	binary.BigEndian.PutUint32(header[9:], uint32(b.begin))
	w.buf.Write(header[:])

	w.deadline()
	err := writeMore(w.nc, w.buf.Bytes())
	w.written()
	if err != nil {
		return fmt.Errorf("peer: writing: %w", err)
	}
	if err := w.payload(b); err != nil {
		return err
	}
	w.last = b.index
	w.sent(b)
	return nil
}

// payload sends the bytes of a block.
func (w *writer) payload(b block) error {
	off, _ := w.s.layout.Span(b.index)
	off += int64(b.begin)
	for left := int64(b.length); left > 0; {
		n := left
		if limit := w.e.cfg.Upload; limit != nil {
			n = min(n, int64(limit.Burst()))
			began := time.Now()
			w.throttled.Store(true) // which is not the peer's fault
			err := limit.WaitN(w.ctx, int(n))
			w.throttled.Store(false)
			w.heldBack(time.Since(began))
			if err != nil {
				return fmt.Errorf("peer: waiting to upload: %w", err)
			}
			w.deadline()
		}
		m, err := w.reader.CopyRange(w.nc, off, n)
		if err == nil && m < n {
			err = fmt.Errorf("content ends %d bytes early", n-m)
		}
		if err != nil {
			var network *net.OpError
			if !errors.As(err, &network) && w.ctx.Err() == nil {
				// The header is out: all that can be said now is goodbye.
				w.e.cfg.Logger.Warn("piece cannot be uploaded", "digest", w.s.digest, "piece", b.index, "err", err)
				w.s.Lost(b.index)
			}
			return fmt.Errorf("peer: sending piece %d: %w", b.index, err)
		}
		off += n
		left -= n
	}
	return nil
}

// cannot answers a request for what cannot be read.
func (w *writer) cannot(b block, err error) error {
	w.e.cfg.Logger.Warn("content cannot be opened for upload", "digest", w.s.digest, "err", err)
	w.mu.Lock()
	w.sending = false
	w.reject(b)
	w.mu.Unlock()
	w.s.Lost(b.index)
	w.drained()
	return nil
}

func (s *Swarm) reader() (Reader, error) {
	s.mu.Lock()
	content := s.content
	s.mu.Unlock()
	if content == nil {
		return nil, errors.New("peer: swarm has no content")
	}
	return content.Reader()
}
