package peer

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a member and those who dial it, and does to their
// connections what networks do.
type proxy struct {
	listener net.Listener
	target   string
	group    sync.WaitGroup
	flip     atomic.Int64 // the bits of the byte with this number, of a connection's bytes to the target, are changed; 0: none
	count    atomic.Int64 // bytes to the target, of all connections
	onBytes  func(total int64)
	buried   atomic.Int64 // connections up to this number, from 1, swallow all that comes

	mu     sync.Mutex
	thawed chan struct{} // Guarded by mu. Closed while bytes flow.
	conns  map[net.Conn]bool
	made   int64 // Guarded by mu. Connections.
	closed bool
}

func newProxy(t testing.TB, target string) *proxy {
	p := &proxy{listener: listen(t), target: target, thawed: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(p.thawed)
	p.group.Go(func() {
		for {
			c, err := p.listener.Accept()
			if err != nil {
				return
			}
			p.group.Go(func() { p.connect(c) })
		}
	})
	t.Cleanup(p.close)
	return p
}

func (p *proxy) url() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) connect(from net.Conn) {
	to, err := net.Dial("tcp", p.target)
	if err != nil {
		from.Close()
		return
	}
	number, ok := p.add(from, to)
	if !ok {
		return
	}
	p.group.Go(func() { p.pipe(to, from, number, true) })
	p.pipe(from, to, number, false)
}

func (p *proxy) add(cs ...net.Conn) (number int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		if p.closed {
			c.Close()
		}
		p.conns[c] = true
	}
	p.made++
	return p.made, !p.closed
}

func (p *proxy) pipe(to, from net.Conn, number int64, forth bool) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	passed := int64(0)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		thawed := p.thawed
		p.mu.Unlock()
		<-thawed
		if number <= p.buried.Load() {
			continue
		}
		if forth {
			if at := p.flip.Load(); at > passed && at <= passed+int64(n) {
				b[at-passed-1] ^= 0x10
			}
			passed += int64(n)
			if total := p.count.Add(int64(n)); p.onBytes != nil {
				p.onBytes(total)
			}
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// bury swallows all that comes on the connections of now, and lets new ones be,
// as a network does that was cut for long: TCP tries the old ones ever less often.
func (p *proxy) bury() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buried.Store(p.made)
}

// freeze lets no byte pass until thaw; connections stay.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thawed = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.thawed:
	default:
		close(p.thawed)
	}
}

func (p *proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.thaw()
	p.cut()
	p.group.Wait()
}
