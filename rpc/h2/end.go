package h2

// end ends a stream: with an error, or because it has been answered. A peer that has not said its
// last is told that nobody listens.
func (c *Conn) end(s *Stream, err error) {
	if s.ended {
		return
	}
	s.ended, s.endErr = true, err
	if !s.remoteDone && err == nil {
		c.out = append(c.buffer(), appendReset(nil, s.id, NoError)...)
	}
	if known := &c.opened[s.id>>1&31]; known.id == s.id && s.remoteDone {
		known.done = true
	}
	c.table.remove(s)
	c.dropUnsent(s)
	c.heldBytes -= len(s.in) - s.inAt + len(s.whole)
	s.in, s.inAt, s.whole = nil, 0, nil
	if s.cancel != nil {
		s.cancel(err)
		s.cancel = nil
	}
	s.change.Broadcast()
	if c.unsent > c.s.cfg.MaxUnsentBytes {
		c.room.Broadcast() // it may wait for room itself
	}
	if s.held {
		c.abandoned++
	} else {
		c.reuse(s)
	}
	if c.goneAway && c.table.n == 0 {
		c.finishing = true
	}
}

// dropUnsent forgets what a stream had to send.
func (c *Conn) dropUnsent(s *Stream) {
	if n := len(s.unsent) - s.unsentAt; n > 0 {
		c.unsent -= n
		c.room.Broadcast()
	}
	s.unsent, s.unsentAt, s.trailer = nil, 0, nil
	if s.queued {
		c.ready.remove(s)
	}
}

// reset ends a stream with an error.
func (c *Conn) reset(s *Stream, code Code, err error) {
	if s.ended {
		return
	}
	c.control(appendReset(nil, s.id, code))
	c.end(s, err)
}

// reuse keeps a stream that has ended for another request.
func (c *Conn) reuse(s *Stream) {
	if !s.reusable || len(c.free) >= keptStreams {
		return
	}
	s.request = request{}
	c.free = append(c.free, s)
}

// drainPing asks whether the peer has seen that the server is going away: it has when it answers.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

// drain tells the peer to open no more streams. Those that are on their way are still served.
func (c *Conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.goingAway {
		return
	}
	c.goingAway = true
	c.goAway(1<<31-1, NoError, "")
	c.control(appendPing(nil, 0, drainPing))
	c.goneAt = c.wakeIn(drainTimeout)
	c.scheduleFlush()
}

// goAwayNow tells the peer which stream was the last.
func (c *Conn) goAwayNow() {
	if c.closed || !c.goingAway || c.goneAway {
		return
	}
	c.goneAway = true
	c.goAway(c.lastTaken, NoError, "")
	if c.table.n == 0 {
		c.finishing = true
	}
	c.scheduleFlush()
}

func (c *Conn) goAway(last uint32, code Code, debug string) {
	c.out = appendGoAway(c.buffer(), last, code, debug)
}
