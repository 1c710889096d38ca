package origin

import (
	"context"
	"net"
	"sync"
	"time"
)

const (
	// downMemory is how long a failed connection attempt answers for the
	// next ones.
	downMemory = time.Second
	// maxDown bounds the servers remembered as down.
	maxDown = 1024
)

// dialMemory remembers for a moment which servers could not be reached, so
// that not every request waits for the dial timeout, and lets one attempt at
// a time find out whether they are back.
type dialMemory struct {
	mu   sync.Mutex // guards the map and what it points to
	down map[string]*downServer
}

type downServer struct {
	until time.Time
	err   error
	probe chan struct{} // closed when the attempt under way ends
}

type dialFunc func(ctx context.Context) (net.Conn, error)

// dial connects to addr by dial, or fails at once with the error of a
// moment ago.
func (m *dialMemory) dial(ctx context.Context, addr string, dial dialFunc) (net.Conn, error) {
	probe, waitFor, err := m.ask(addr)
	if waitFor != nil {
		// What a probe finds out holds for all who wait, but none waits as
		// long as the probe itself may.
		t := time.NewTimer(shortWait)
		defer t.Stop()
		select {
		case <-waitFor:
		case <-t.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if err = m.last(addr); err == nil {
			return dial(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx)
	m.note(addr, probe, err, ctx.Err() != nil)
	return conn, err
}

// ask returns the remembered error, or the probe to be or to wait for.
func (m *dialMemory) ask(addr string) (probe, wait chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.down[addr]
	switch {
	case s == nil:
		return nil, nil, nil
	case s.probe != nil:
		return nil, s.probe, nil
	case time.Now().Before(s.until):
		return nil, nil, s.err
	}
	s.probe = make(chan struct{})
	return s.probe, nil, nil
}

func (m *dialMemory) last(addr string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.down[addr]; s != nil {
		return s.err
	}
	return nil
}

// note keeps the outcome of an attempt, which was the probe if probe is set.
func (m *dialMemory) note(addr string, probe chan struct{}, err error, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.down[addr]
	if probe != nil {
		close(probe)
		s.probe = nil
	}
	switch {
	case err == nil:
		if s != nil && s.probe == nil {
			delete(m.down, addr)
		}
	case gone: // says nothing of the server
	case s != nil:
		s.until, s.err = time.Now().Add(downMemory), err
	case len(m.down) < maxDown:
		if m.down == nil {
			m.down = make(map[string]*downServer)
		}
		m.down[addr] = &downServer{until: time.Now().Add(downMemory), err: err}
	default: // expired entries make room for the next one
		for a, s := range m.down {
			if s.probe == nil && time.Now().After(s.until) {
				delete(m.down, a)
			}
		}
	}
}
