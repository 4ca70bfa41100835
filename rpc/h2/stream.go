package h2

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"
)

// Stream is one request and its answer. Its methods may be called from any goroutine while the
// Handler has it; Read by one at a time, and those that write by one at a time.
//
// Nothing that is written blocks on the network, but Send and Answer may wait for room, as they say.
type Stream struct {
	// Local is for the Handler. A Stream that is reused keeps it.
	Local any

	c      *Conn
	change sync.Cond // of what its methods wait for
	request
}

// request is what of a Stream begins anew with each request.
type request struct {
	id      uint32
	header  *Header
	varying string
	empty   bool // there is no body

	// Of the reading goroutine.
	body     Body
	received int64 // of the body

	// The rest is guarded by Conn.mu.

	deadline time.Time
	cancel   func(error) // told when the stream ends, once

	remoteDone bool  // the peer sends no more
	ended      bool  // nothing more is sent; the stream is no longer in the table
	endErr     error // why, if not by the answer
	held       bool  // the Handler has it
	running    bool  // and a goroutine goes on with it
	reusable   bool
	headSent   bool

	recvWindow, recvCredit int // what the peer may send; what it was not told yet
	sendWindow             int

	unsent    []byte // of the answer's body, to be framed
	unsentAt  int    // how much of it has been
	queued    bool   // in Conn.ready
	finishing bool   // the trailer follows unsent
	trailer   []Field

	next, prev *Stream // in Conn.ready

	whole []byte // collected, if it comes in more than one frame
	in    []byte // received and not read
	inAt  int    // how much of it has been

	take   func([]byte) int // what Take was given, while it waits
	taking bool             // take is being called
}

// Header returns the request's header.
func (s *Stream) Header() *Header { return s.header }

// Varying returns the field of the request's header that Config.Varying names, or nothing.
func (s *Stream) Varying() string { return s.varying }

// Empty tells whether the request's header was all there is to it.
func (s *Stream) Empty() bool { return s.empty }

// After looks at so many streams at most, in a table of so many slots.
const (
	maxLooked      = 8
	maxLookedSlots = 4 * minSlots
)

// After has f called on the goroutine that reads the connection, when all that has been read is
// handled and before anything more is read; what f answers is written afterwards. It reports whether
// it will: not if others would have to wait for that, because more has been read, or other requests are not
// answered. Only Handler.Whole may call it.
//
// f may wait for what takes as long as waking a goroutine. If it takes longer all the same, f has late called:
// the connection goes on without it.
func (s *Stream) After(f func(late func())) bool {
	c := s.c
	if c.r < c.w || c.after != nil || c.failed {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > 0 || c.closed || c.table.n > maxLooked || c.table.n > 1 && len(c.table.slots) > maxLookedSlots {
		return false
	}
	alone := true
	if c.table.n > 1 {
		c.table.each(func(other *Stream) { alone = alone && (other == s || !other.remoteDone) })
	}
	if alone {
		c.after = f
	}
	return alone
}

// RemoteAddr returns the peer's address.
func (s *Stream) RemoteAddr() net.Addr { return s.c.nc.RemoteAddr() }

// LocalAddr returns the server's address.
func (s *Stream) LocalAddr() net.Addr { return s.c.nc.LocalAddr() }

// TLS returns the state of the connection's TLS; nil without.
func (s *Stream) TLS() *tls.ConnectionState { return s.c.tls }

// ConnLocal returns what ConnOptions.Local is.
func (s *Stream) ConnLocal() any { return s.c.local }

// SetDeadline sets when the request is ended, with Config.ExpiredTrailer, if it has not been
// answered. It is called by Handler.Request.
func (s *Stream) SetDeadline(t time.Time) {
	s.c.mu.Lock()
	s.deadline = t
	s.c.wakeAt(later(t, s.c.lookAt))
	s.c.mu.Unlock()
}

// Deadline returns what SetDeadline has set; it is zero otherwise.
func (s *Stream) Deadline() time.Time { return s.deadline }

// OnEnd has f called when the stream ends: with nil when it has been answered, or when all is
// answered but for what the peer has no room for, else with the reason. f is called once, at
// once if it is late, under a lock: it must not call back.
func (s *Stream) OnEnd(f func(error)) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.ended {
		f(s.endErr)
		return
	}
	s.cancel = f
}

// Read returns what has come of the body. It waits for more, until the stream ends. The end of
// the body is io.EOF.
func (s *Stream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(s.in) == s.inAt {
		switch {
		case s.ended:
			return 0, s.reason()
		case s.remoteDone:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		s.change.Wait()
	}
	if s.ended {
		return 0, s.reason()
	}
	n := copy(p, s.in[s.inAt:])
	s.inAt += n
	c.heldBytes -= n
	if s.inAt == len(s.in) {
		s.in, s.inAt = nil, 0
	}
	s.credit(n)
	return n, nil
}

// Take has f called with what comes of the body, on the goroutine that reads the connection, for
// as long as f takes all of it. It returns when there is something for Read: what f has left, or
// the end. Until then nobody else may use the stream. f must not block; what it sends does not,
// since it is not called while much that was sent before has not gone out.
func (s *Stream) Take(f func(body []byte) (taken int)) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.take = f
	for s.taking || !s.ended && !s.remoteDone && len(s.in) == s.inAt {
		s.change.Wait()
	}
	s.take = nil
}

// giveAway has what has come taken where it is read, if somebody waits for it there, and returns
// the rest. It is called under mu, and unlocks it meanwhile.
func (s *Stream) giveAway(body []byte) []byte {
	c := s.c
	if s.take == nil || len(body) == 0 || len(s.in) > s.inAt || len(s.unsent)-s.unsentAt >= sendQuota {
		return body
	}
	s.taking = true
	c.mu.Unlock()
	n := s.take(body)
	c.mu.Lock()
	s.taking = false
	s.credit(n)
	return body[n:]
}

// credit lets the peer send n bytes more.
func (s *Stream) credit(n int) {
	if s.recvCredit += n; s.recvCredit < s.c.s.cfg.StreamWindow/4 || s.remoteDone || s.ended {
		return
	}
	s.c.control(appendWindowUpdate(nil, s.id, uint32(s.recvCredit)))
	s.recvWindow += s.recvCredit
	s.recvCredit = 0
	s.c.scheduleFlush()
}

// reason says why the stream has ended.
func (s *Stream) reason() error {
	if s.endErr != nil {
		return s.endErr
	}
	return ErrEnded
}

// Release gives the stream back. If reuse is true nothing keeps it: it becomes another request.
// A stream that has not been answered is reset.
func (s *Stream) Release(reuse bool) {
	s.c.mu.Lock()
	s.release(reuse)
	s.c.mu.Unlock()
}

// Hold has ServeConn wait for Release. Handler.Request calls it before it returns Flow, and
// Handler.Whole where a goroutine goes on with the request. What is answered without one, say by
// a callback, is not waited for when the connection has ended: the answer goes nowhere.
func (s *Stream) Hold() {
	s.c.mu.Lock()
	if !s.held {
		s.hold()
	}
	s.running = true
	s.c.running++
	s.c.mu.Unlock()
}

func (s *Stream) hold() {
	s.held = true
	if s.ended {
		s.c.abandoned++
	}
}

func (s *Stream) release(reuse bool) {
	if !s.held {
		panic("h2: a stream is released that the handler does not have")
	}
	c := s.c
	if !s.ended && !s.finishing {
		c.reset(s, Internal, ErrEnded)
		c.scheduleFlush()
	}
	if s.running {
		c.running--
	}
	s.held, s.running, s.reusable = false, false, reuse
	if s.ended {
		c.abandoned--
		c.reuse(s)
	}
	if c.paused && c.abandoned <= c.s.cfg.MaxAbandoned/2 || c.closed && c.running == 0 {
		c.released.Broadcast()
	}
}
