package daemon

import (
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
)

// pipes is a listener whose connections are there at once.
type pipes struct{ closed chan struct{} }

func (p pipes) Accept() (net.Conn, error) {
	select {
	case <-p.closed:
		return nil, net.ErrClosed
	default:
		c, _ := net.Pipe()
		return c, nil
	}
}
func (p pipes) Close() error   { close(p.closed); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestListenerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limitListener(pipes{make(chan struct{})}, 2)
		accepted := make(chan error)
		go func() {
			for {
				_, err := l.Accept()
				accepted <- err
				if err != nil {
					return
				}
			}
		}()
		<-accepted
		<-accepted
		synctest.Wait()
		select {
		case <-accepted:
			t.Fatal("a third connection was accepted")
		default:
		}
		for _, s := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateClosed} {
			l.connState(nil, s)
		}
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	})
}
