package h2

import "encoding/binary"

// handle handles a frame, on the reading goroutine.
func (c *Conn) handle(f *frame) error {
	if c.block.stream != 0 && (f.kind != frameContinuation || f.stream != c.block.stream) {
		return connError{Protocol, "a header block is interrupted"}
	}
	switch f.kind { // a table of functions would have each frame allocated
	case frameData:
		return c.handleData(f)
	case frameHeaders:
		return c.handleHeaders(f)
	case framePriority:
		return c.handlePriority(f)
	case frameReset:
		return c.handleReset(f)
	case frameSettings:
		return c.handleSettings(f)
	case framePushPromise:
		return connError{Protocol, "PUSH_PROMISE from a client"}
	case framePing:
		return c.handlePing(f)
	case frameGoAway:
		return c.handleGoAway(f)
	case frameWindowUpdate:
		return c.handleWindowUpdate(f)
	case frameContinuation:
		return c.handleContinuation(f)
	}
	return nil // frames of unknown types are ignored (RFC 9113, section 5.5)
}

// idle tells whether a stream has not been opened.
func (c *Conn) idle(id uint32) bool { return id > c.lastID || id%2 == 0 }

func (c *Conn) handleData(f *frame) error {
	if f.stream == 0 || c.idle(f.stream) {
		return connError{Protocol, "DATA for a stream that is not open"}
	}
	payload, err := unpadded(f)
	if err != nil {
		return err
	}
	// The connection's window only limits what is on its way: what has come is given back. Streams
	// have windows of their own, and MaxHeldBytes bounds them all.
	if c.recvCredit += f.length; c.recvCredit >= c.s.cfg.ConnWindow/2 {
		c.mu.Lock()
		c.control(appendWindowUpdate(nil, 0, uint32(c.recvCredit)))
		c.mu.Unlock()
		c.recvCredit = 0
	}
	end := f.has(flagEndStream)

	c.mu.Lock()
	s := c.table.get(f.stream)
	if s == nil {
		late := c.answeredEarly(f.stream, end)
		c.mu.Unlock()
		if late {
			return nil
		}
		return streamError{f.stream, StreamClosed, "DATA for a stream that has ended"}
	}
	if s.remoteDone {
		c.mu.Unlock()
		return streamError{f.stream, StreamClosed, "DATA after the end"}
	}
	if s.recvWindow -= f.length; s.recvWindow < 0 {
		c.mu.Unlock()
		return streamError{f.stream, FlowControl, "more DATA than allowed"}
	}
	s.received += int64(len(payload))
	if want := s.header.ContentLength; want >= 0 && (s.received > want || end && s.received < want) {
		c.mu.Unlock()
		return streamError{f.stream, Protocol, "not as long as content-length says"}
	}
	s.remoteDone = end
	switch s.body {
	case Discard:
		s.credit(f.length)
	case Flow:
		s.credit(f.length - len(payload))
		if payload = s.giveAway(payload); s.ended {
			s.change.Broadcast()
			break
		}
		if len(payload) == 0 && !end {
			break
		}
		if s.inAt > len(s.in)/2 { // or it would grow for as long as the reader is not quite done
			s.in = s.in[:copy(s.in, s.in[s.inAt:])]
			s.inAt = 0
		}
		s.in = append(s.in, payload...)
		s.change.Broadcast()
		if c.heldBytes += len(payload); c.heldBytes > c.s.cfg.MaxHeldBytes {
			c.reset(s, EnhanceYourCalm, ErrReset)
		}
	case Collect:
		return c.collect(s, f.length, payload) // unlocks
	}
	c.mu.Unlock()
	return nil
}

// collect adds to a body, and hands it over when it is complete or too large. It unlocks.
func (c *Conn) collect(s *Stream, length int, payload []byte) error {
	end := s.remoteDone
	if s.whole == nil && end {
		c.handOver(s, payload, len(payload) <= c.s.cfg.MaxBodyBytes)
		return nil
	}
	s.credit(length)
	s.whole = append(s.whole, payload...)
	c.heldBytes += len(payload)
	switch tooLarge := len(s.whole) > c.s.cfg.MaxBodyBytes; {
	case end || tooLarge:
		whole := s.whole
		c.heldBytes -= len(whole)
		s.whole = nil
		s.body = Discard
		c.handOver(s, whole, !tooLarge)
		return nil
	case c.heldBytes > c.s.cfg.MaxHeldBytes:
		c.reset(s, EnhanceYourCalm, ErrReset)
	}
	c.mu.Unlock()
	return nil
}

// handOver gives a body to the Handler. It unlocks.
func (c *Conn) handOver(s *Stream, body []byte, whole bool) {
	s.hold()
	c.mu.Unlock()
	c.s.cfg.Handler.Whole(s, body, whole)
}

func (c *Conn) handleHeaders(f *frame) error {
	if f.stream%2 == 0 {
		return connError{Protocol, "HEADERS for a stream that clients do not open"}
	}
	p, err := unpadded(f)
	if err != nil {
		return err
	}
	self := false
	if f.has(flagPriority) {
		if len(p) < 5 {
			return connError{FrameSize, "HEADERS without its priority"}
		}
		self = binary.BigEndian.Uint32(p)&(1<<31-1) == f.stream
		p = p[5:]
	}
	b := header{stream: f.stream, end: f.has(flagEndStream), self: self}
	if f.has(flagEndHeaders) {
		b.bytes = p
		return c.handleBlock(&b)
	}
	b.bytes = append([]byte(nil), p...)
	c.block = b
	return nil
}

func (c *Conn) handleContinuation(f *frame) error {
	if c.block.stream == 0 {
		return connError{Protocol, "CONTINUATION of nothing"}
	}
	b := &c.block
	b.bytes = append(b.bytes, f.payload...)
	if b.frames++; b.frames > maxContinuations || len(b.bytes) > c.s.cfg.MaxHeaderBytes {
		return connError{EnhanceYourCalm, "a header block that is too large"}
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	whole := *b
	c.block = header{}
	return c.handleBlock(&whole)
}

// handleBlock handles a complete header block: of a request, or of its trailer.
func (c *Conn) handleBlock(b *header) error {
	if b.stream <= c.lastID {
		return c.handleTrailer(b)
	}
	h, varying, err := c.headers.read(b.bytes)
	if se, ok := err.(streamError); ok {
		c.lastID = b.stream
		c.noteOpened(b.stream, true)
		se.stream = b.stream
		return se
	}
	if err != nil {
		return err
	}
	c.lastID = b.stream
	if b.self {
		c.noteOpened(b.stream, true)
		return streamError{b.stream, Protocol, "a stream that depends on itself"}
	}
	if b.end && h.ContentLength > 0 {
		c.noteOpened(b.stream, true)
		return streamError{b.stream, Protocol, "content-length without a body"}
	}
	s := c.open(b.stream, h, varying, b.end)
	if s == nil {
		return nil
	}
	body := c.s.cfg.Handler.Request(s)
	if body == Flow {
		return nil // what comes is kept as if it were so from the beginning
	}
	c.mu.Lock()
	s.body = body
	if body == Collect && b.end && !s.ended {
		c.handOver(s, nil, true)
		return nil
	}
	c.mu.Unlock()
	return nil
}

// handleTrailer handles a second header block of a stream.
func (c *Conn) handleTrailer(b *header) error {
	malformed := c.headers.readTrailer(b.bytes) // in any case, for the table
	if _, ok := malformed.(connError); ok {
		return malformed
	}
	c.mu.Lock()
	s := c.table.get(b.stream)
	if s == nil {
		known := c.opened[b.stream>>1&31]
		c.mu.Unlock()
		switch {
		case known.id != b.stream:
			return connError{Protocol, "HEADERS for an older stream than the last"}
		case known.done:
			return connError{StreamClosed, "HEADERS for a stream that has ended"}
		}
		return nil // it was answered before its end
	}
	refused := func(code Code, reason string) error {
		c.mu.Unlock()
		return streamError{b.stream, code, reason}
	}
	switch {
	case s.remoteDone:
		return refused(StreamClosed, "HEADERS after the end")
	case !b.end:
		return refused(Protocol, "a trailer that does not end the stream")
	case malformed != nil:
		return refused(Protocol, malformed.Error())
	case s.header.ContentLength >= 0 && s.received != s.header.ContentLength:
		return refused(Protocol, "not as long as content-length says")
	}
	s.remoteDone = true
	if s.body == Collect {
		whole := s.whole
		c.heldBytes -= len(whole)
		s.whole = nil
		c.handOver(s, whole, true)
		return nil
	}
	s.change.Broadcast()
	c.mu.Unlock()
	return nil
}

// open makes a stream, unless the connection has reached a bound.
func (c *Conn) open(id uint32, h *Header, varying string, end bool) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandoned > c.s.cfg.MaxAbandoned || len(c.out) > outMax {
		c.pause()
	}
	if c.closed || c.finishing {
		return nil
	}
	if code := c.refusal(); code != NoError {
		c.opened[id>>1&31] = openedStream{id, end}
		c.control(appendReset(nil, id, code))
		return nil
	}
	var s *Stream
	if n := len(c.free); n > 0 {
		s = c.free[n-1]
		c.free = c.free[:n-1]
	} else {
		s = &Stream{c: c}
		s.change.L = &c.mu
	}
	s.id, s.header, s.varying, s.empty = id, h, varying, end
	s.body, s.remoteDone = Flow, end
	s.recvWindow, s.sendWindow = c.s.cfg.StreamWindow, c.initial
	c.opened[id>>1&31] = openedStream{id, end}
	c.lastTaken = id
	c.table.put(s)
	c.looks += looksForStream
	return s
}

// refusal says why no stream can be opened.
func (c *Conn) refusal() Code {
	switch {
	case c.goneAway, uint32(c.table.n) >= c.s.cfg.MaxStreams:
		return RefusedStream // it may be tried again, elsewhere or later
	case c.unsent > c.s.cfg.MaxUnsentBytes:
		return EnhanceYourCalm
	}
	return NoError
}

// noteOpened remembers a stream that ended before it began.
func (c *Conn) noteOpened(id uint32, done bool) {
	c.mu.Lock()
	c.opened[id>>1&31] = openedStream{id, done}
	c.mu.Unlock()
}

// answeredEarly tells whether a stream that has ended was answered before the peer had said its
// last, so that more may come; and notes when that has.
func (c *Conn) answeredEarly(id uint32, end bool) bool {
	known := &c.opened[id>>1&31]
	early := known.id == id && !known.done
	if early && end {
		known.done = true
	}
	return early
}

// pause waits until the Handler has released half of the abandoned streams, and the peer has read most of what
// is framed. That is written meanwhile.
func (c *Conn) pause() {
	c.paused = true
	c.batch.Store(false)
	c.scheduleFlush()
	for (c.abandoned > c.s.cfg.MaxAbandoned/2 || len(c.out) > outHigh) && !c.closed {
		c.released.Wait()
	}
	c.batch.Store(true)
	c.paused = false
}
