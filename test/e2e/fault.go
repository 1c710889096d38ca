package e2e

import (
	"errors"
	"net/http"
	"sync"
)

// Fault is what a tap does to the bodies that pass it. The zero value does
// nothing.
type Fault struct {
	// Flip turns over one bit of the first byte.
	Flip bool
	// CutAfter closes the connection after so many bytes of body; 0 never.
	CutAfter int64
	// HoldAfter stops the flow after so many bytes of body, until the fault is
	// released or the client goes away; 0 never. Once one body is stopped, others
	// are before their first byte: asking again does not get round it.
	HoldAfter int64
	// Gate stops the flow of all bodies together; nil never.
	Gate *Gate

	init, hold, release sync.Once
	held                chan struct{} // closed when the first body is stopped
	released            chan struct{} // closed by Release
}

var errCut = errors.New("cut by order of the test")

func (f *Fault) prepare() {
	f.init.Do(func() {
		f.held = make(chan struct{})
		f.released = make(chan struct{})
	})
}

// Held is closed once a body has been stopped.
func (f *Fault) Held() <-chan struct{} {
	f.prepare()
	return f.held
}

func (f *Fault) isHeld() bool {
	select {
	case <-f.held:
		return true
	default:
		return false
	}
}

// Release lets what is held flow on, and holds nothing any more.
func (f *Fault) Release() {
	f.prepare()
	f.release.Do(func() { close(f.released) })
	if f.Gate != nil {
		f.Gate.Open()
	}
}

// Order has the tap do a fault to every body that matches, from now on, in
// place of what was ordered before.
func (tap *Tap) Order(match func(Request) bool, fault *Fault) {
	fault.prepare()
	tap.mu.Lock()
	defer tap.mu.Unlock()
	tap.match, tap.fault = match, fault
}

// Heal ends the fault that was ordered.
func (tap *Tap) Heal() {
	tap.mu.Lock()
	fault := tap.fault
	tap.match, tap.fault = nil, nil
	tap.mu.Unlock()
	if fault != nil {
		fault.Release()
	}
}

// faultFor is the fault ordered for a request, or nil.
func (tap *Tap) faultFor(r Request) *Fault {
	tap.mu.Lock()
	defer tap.mu.Unlock()
	if tap.fault == nil || !tap.match(r) {
		return nil
	}
	return tap.fault
}

// faultyWriter does a fault to a body. It never writes less than it says
// without an error.
type faultyWriter struct {
	http.ResponseWriter
	fault  *Fault
	gone   <-chan struct{} // closed when the client has gone
	passed int64
}

// Unwrap lets the proxy flush through it.
func (w *faultyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write passes p on as far as the fault lets it.
func (w *faultyWriter) Write(p []byte) (int, error) {
	if w.fault.Flip && w.passed == 0 && len(p) > 0 {
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	if w.fault.HoldAfter > 0 && w.passed == 0 && w.fault.isHeld() {
		w.hold()
	}
	if w.fault.Gate != nil {
		w.fault.Gate.pass(int64(len(p)), w.gone)
	}
	if after := w.fault.HoldAfter; after > 0 && w.passed < after && w.passed+int64(len(p)) >= after {
		n, err := w.pass(p[:after-w.passed])
		if err != nil {
			return n, err
		}
		if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
			return n, err
		}
		w.hold()
		m, err := w.pass(p[n:])
		return n + m, err
	}
	if after := w.fault.CutAfter; after > 0 && w.passed+int64(len(p)) > after {
		n, err := w.pass(p[:after-w.passed])
		if err == nil {
			err = errCut
		}
		return n, err
	}
	return w.pass(p)
}

func (w *faultyWriter) pass(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.passed += int64(n)
	return n, err
}

func (w *faultyWriter) hold() {
	w.fault.hold.Do(func() { close(w.fault.held) })
	select {
	case <-w.fault.released:
	case <-w.gone:
	}
}

// Gate lets a number of bytes pass, of all bodies together, and stops each body
// that would bring more, until it is raised. With it the middle of a transfer is
// a place and not a time.
type Gate struct {
	mu     sync.Mutex // guards what follows
	limit  int64      // bytes
	open   bool
	passed int64         // bytes
	held   bool          // something is stopped, or was since the gate was raised
	raised chan struct{} // closed when the gate is raised
}

// NewGate makes a gate that is shut after limit bytes.
func NewGate(limit int64) *Gate {
	return &Gate{limit: limit, raised: make(chan struct{})}
}

// Raise lets bytes pass up to another limit, counted from the beginning.
func (g *Gate) Raise(limit int64) { g.set(limit, false) }

// Open lets everything pass.
func (g *Gate) Open() { g.set(0, true) }

// Held says whether a body has been stopped since the gate was raised.
func (g *Gate) Held() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

func (g *Gate) set(limit int64, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit, g.open, g.held = limit, open, false
	close(g.raised)
	g.raised = make(chan struct{})
}

// pass returns when n more bytes may pass, or when gone is closed.
func (g *Gate) pass(n int64, gone <-chan struct{}) {
	for {
		g.mu.Lock()
		if g.open || g.passed+n <= g.limit {
			g.passed += n
			g.mu.Unlock()
			return
		}
		g.held = true
		raised := g.raised
		g.mu.Unlock()
		select {
		case <-raised:
		case <-gone:
			return
		}
	}
}
