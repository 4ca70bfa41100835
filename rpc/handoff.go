package rpc

import (
	"net"
	"sync"
)

// handoff is a net.Listener whose connections come from Go code instead of a socket. The
// servers of grpc-go and net/http accept from one each.
//
// It holds no queue: deliver blocks until the server accepts. What waits is bounded by the
// number of open connections, which the listeners limit.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(name string) *handoff {
	return &handoff{addr: memAddr(name), conns: make(chan net.Conn), done: make(chan struct{})}
}

// deliver passes c to the server, or closes it when the server has stopped accepting.
func (h *handoff) deliver(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It does not touch connections already delivered.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }

type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }
