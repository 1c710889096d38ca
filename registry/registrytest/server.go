package registrytest

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// server is an HTTP server that can go away and come back at its address.
type server struct {
	addr    string
	handler http.Handler
	conf    *tls.Config

	mu      sync.Mutex // guards running, stopped
	running *http.Server
	stopped chan struct{} // closed when running has ended

	accepted atomic.Int64
}

func startServer(addr string, conf *tls.Config, h http.Handler) (*server, error) {
	s := &server{addr: addr, handler: h, conf: conf}
	return s, s.up()
}

func (s *server) up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return nil
	}
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	s.addr = ln.Addr().String()
	srv := &http.Server{
		Handler: s.handler, TLSConfig: s.conf, ReadHeaderTimeout: 30 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.accepted.Add(1)
			}
		},
		ErrorLog: log.New(io.Discard, "", 0), // aborted handlers and handshakes are what tests order
	}
	stopped := make(chan struct{})
	s.running, s.stopped = srv, stopped
	go func() {
		defer close(stopped)
		if s.conf != nil {
			_ = srv.ServeTLS(ln, "", "") // ends by Close
		} else {
			_ = srv.Serve(ln)
		}
	}()
	return nil
}

func (s *server) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return
	}
	_ = s.running.Close()
	<-s.stopped
	s.running = nil
}

func (s *server) close() { s.down() }
