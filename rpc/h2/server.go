package h2

import (
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// Server serves connections.
type Server struct {
	cfg      Config
	flushers []*flusher
	next     atomic.Uint32 // flusher

	mu sync.Mutex
	// Guarded by mu.
	conns            map[*Conn]struct{}
	draining, closed bool
	serving          sync.WaitGroup // connections; Add under mu, before closed
}

// NewServer returns a server. Close ends it.
func NewServer(cfg Config) *Server {
	s := &Server{cfg: cfg, conns: map[*Conn]struct{}{}}
	for range max(1, runtime.GOMAXPROCS(0)/4) {
		s.flushers = append(s.flushers, newFlusher())
	}
	return s
}

// ConnOptions says what is known of a connection.
type ConnOptions struct {
	// Head is what has been read of it already.
	Head []byte
	// Socket, if set, is the socket itself: reads and writes go to it instead of to the connection.
	Socket syscall.Conn
	// TLS is what was agreed on.
	TLS *tls.ConnectionState
	// Local is for the Handler.
	Local any
}

// ServeConn serves a connection until it has ended and the Handler has released the streams that it
// holds. It closes the connection. It returns why it ended; nil if in order.
func (s *Server) ServeConn(nc net.Conn, o ConnOptions) error {
	c := newConn(s, nc, o)
	s.mu.Lock()
	if s.draining || s.closed {
		s.mu.Unlock()
		return nc.Close()
	}
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	err := c.serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	return err
}

// Drain tells all peers to go elsewhere. Connections end when their streams have.
func (s *Server) Drain() {
	for _, c := range s.all(&s.draining) {
		c.drain()
	}
}

// Close cuts all connections and waits for the Handler to release their streams.
func (s *Server) Close() {
	for _, c := range s.all(&s.closed) {
		c.cut(ErrClosed)
	}
	s.serving.Wait()
	for _, f := range s.flushers {
		f.close()
	}
}

// Wait returns when all connections have ended. It is called after Drain or Close.
func (s *Server) Wait() { s.serving.Wait() }

// all sets a flag and returns the connections that were there before.
func (s *Server) all(flag *bool) []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	*flag = true
	var out []*Conn
	for c := range s.conns {
		out = append(out, c)
	}
	return out
}
