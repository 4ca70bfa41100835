package h2

import "sync"

// Appender is a part of an answer's body that encodes itself.
type Appender interface {
	// AppendBody appends the part to dst. It runs under the connection's lock, so it must be quick,
	// and must not call the Stream.
	AppendBody(dst []byte) ([]byte, error)
}

// Bytes is a part of a body that needs no encoding.
type Bytes []byte

// AppendBody implements Appender.
func (b Bytes) AppendBody(dst []byte) ([]byte, error) { return append(dst, b...), nil }

// Answer sends a whole answer: the header, unless one has been sent, a body, and a trailer. If
// wait is true, and more is unsent on the connection than Config.MaxUnsentBytes, it waits for
// room; else the stream is reset then, with ErrTooMuch. If the body cannot be encoded nothing
// is sent, and the error returned. It returns why the stream has ended, if it has.
func (s *Stream) Answer(head []Field, body Appender, trailer []Field, wait bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.answer(head, body, trailer, wait)
}

// AnswerAndRelease is Answer and Release. If the body cannot be encoded the stream is not released.
func (s *Stream) AnswerAndRelease(head []Field, body Appender, trailer []Field, wait, reuse bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	err := s.answer(head, body, trailer, wait)
	if err == nil || s.ended || s.finishing {
		s.release(reuse && err == nil) // else somebody may keep the body
		return nil
	}
	return err
}

func (s *Stream) answer(head []Field, body Appender, trailer []Field, wait bool) error {
	c := s.c
	for wait && !s.ended && c.unsent > c.s.cfg.MaxUnsentBytes {
		c.room.Wait()
	}
	if s.ended || s.finishing {
		return s.reason()
	}
	if c.unsent > c.s.cfg.MaxUnsentBytes {
		c.reset(s, EnhanceYourCalm, ErrTooMuch)
		c.scheduleFlush()
		return ErrTooMuch
	}
	if err := s.send(head, body); err != nil {
		return err
	}
	s.finish(trailer)
	c.scheduleFlush()
	return nil
}

// Send sends the header, unless one has been sent, and a part of the body. It waits first, while
// much that was sent before has not gone out, but for what Take calls. If the part cannot be encoded nothing is sent.
func (s *Stream) Send(head []Field, body Appender) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !s.ended && !s.finishing && !s.taking {
		if len(s.unsent)-s.unsentAt >= sendQuota {
			s.change.Wait()
		} else if c.unsent > c.s.cfg.MaxUnsentBytes {
			c.room.Wait()
		} else {
			break
		}
	}
	if s.ended || s.finishing {
		return s.reason()
	}
	err := s.send(head, body)
	c.scheduleFlush()
	return err
}

// SendHeader sends the header, if none has been sent.
func (s *Stream) SendHeader(head []Field) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ended || s.finishing {
		return s.reason()
	}
	s.sendHead(head, 0)
	c.scheduleFlush()
	return nil
}

// SendInformation sends a header that comes before the header of the answer (status 1xx).
func (s *Stream) SendInformation(head []Field) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ended || s.headSent {
		return s.reason()
	}
	c.appendBlock(s.id, 0, head, nil)
	c.scheduleFlush()
	return nil
}

// Finish ends the answer: with head and trailer in one block if no header has been sent, else
// with trailer. Without a trailer, the body just ends.
func (s *Stream) Finish(head, trailer []Field) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ended || s.finishing {
		return s.reason()
	}
	if !s.headSent {
		s.headSent = true
		c.appendBlock(s.id, flagEndStream, head, trailer)
		c.end(s, nil)
	} else {
		s.finish(trailer)
	}
	c.scheduleFlush()
	return nil
}

// Reset ends the stream at once.
func (s *Stream) Reset(code Code) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.ended {
		c.reset(s, code, ErrEnded)
		c.scheduleFlush()
	}
}

func (s *Stream) sendHead(head []Field, flags uint8) {
	if !s.headSent {
		s.headSent = true
		s.c.appendBlock(s.id, flags, head, nil)
	}
}

// send frames a part of the body if the peer takes all of it now, and keeps it otherwise.
func (s *Stream) send(head []Field, body Appender) error {
	c := s.c
	if len(s.unsent) > s.unsentAt || c.ready.first != nil || len(c.out) >= outHigh || c.closed {
		return s.keep(head, body)
	}
	before := len(c.out)
	encoder, sent := c.encoder, s.headSent
	s.sendHead(head, 0)
	at := len(c.out)
	out := append(c.buffer(), make([]byte, frameHeaderLen)...)
	out, err := body.AppendBody(out)
	if err != nil {
		c.out, c.encoder, s.headSent = c.out[:before], encoder, sent
		return err
	}
	n := len(out) - at - frameHeaderLen
	switch {
	case n == 0:
	case n > maxFrame || n > c.sendWindow || n > s.sendWindow:
		c.out = out[:at]
		s.unsent = append(s.unsent[:0], out[at+frameHeaderLen:]...)
		s.unsentAt = 0
		c.unsent += n
		c.enqueue(s)
		c.pump()
	default:
		putFrameHeader(out[at:], n, frameData, 0, s.id)
		c.out = out
		c.sendWindow -= n
		s.sendWindow -= n
		c.sentData = true
	}
	return nil
}

// keep encodes a part of the body to be framed later.
func (s *Stream) keep(head []Field, body Appender) error {
	c := s.c
	if s.unsentAt > len(s.unsent)/2 {
		s.unsent = append(s.unsent[:0], s.unsent[s.unsentAt:]...)
		s.unsentAt = 0
	}
	before := len(s.unsent)
	b, err := body.AppendBody(s.unsent)
	if err != nil {
		return err
	}
	s.sendHead(head, 0)
	s.unsent = b
	c.unsent += len(b) - before
	c.enqueue(s)
	c.pump()
	return nil
}

// finish has the trailer follow the body.
func (s *Stream) finish(trailer []Field) {
	if len(s.unsent) > s.unsentAt {
		s.finishing, s.trailer = true, trailer
		s.change.Broadcast() // to Send on another goroutine
		c := s.c
		if c.unsent > c.s.cfg.MaxUnsentBytes {
			c.room.Broadcast()
		}
		return
	}
	s.sendTrailer(trailer)
}

func (s *Stream) sendTrailer(trailer []Field) {
	c := s.c
	if len(trailer) > 0 {
		c.appendBlock(s.id, flagEndStream, trailer, nil)
	} else {
		c.out = appendFrameHeader(c.buffer(), 0, frameData, flagEndStream, s.id)
	}
	c.end(s, nil)
}

// enqueue has a stream wait for its turn, if it has something to send and may.
func (c *Conn) enqueue(s *Stream) {
	if !s.queued && len(s.unsent) > s.unsentAt && s.sendWindow > 0 {
		c.ready.push(s)
	}
}

// pump frames what waits, a frame of each stream in turn, as far as the peer takes it.
func (c *Conn) pump() {
	before := c.unsent
	for c.ready.first != nil && c.sendWindow > 0 && len(c.out) < outHigh {
		s := c.ready.first
		c.ready.remove(s)
		n := min(len(s.unsent)-s.unsentAt, maxFrame, c.sendWindow, s.sendWindow)
		if n <= 0 {
			continue // its window has shrunk
		}
		c.out = appendFrameHeader(c.buffer(), n, frameData, 0, s.id)
		c.out = append(c.out, s.unsent[s.unsentAt:s.unsentAt+n]...)
		c.sentData = true
		s.unsentAt += n
		c.unsent -= n
		c.sendWindow -= n
		s.sendWindow -= n
		switch left := len(s.unsent) - s.unsentAt; {
		case left > 0:
			c.enqueue(s)
		case s.finishing:
			s.sendTrailer(s.trailer)
			continue
		default:
			s.unsent, s.unsentAt = nil, 0
		}
		if len(s.unsent)-s.unsentAt < sendQuota {
			s.change.Broadcast()
		}
	}
	if c.unsent < before {
		c.room.Broadcast()
	}
}

// appendBlock frames a header block.
func (c *Conn) appendBlock(id uint32, flags uint8, fields, more []Field) {
	c.sentData = true
	at := len(c.out)
	out := append(c.buffer(), make([]byte, frameHeaderLen)...)
	out = c.encoder.append(out, fields)
	if len(more) > 0 {
		out = c.encoder.append(out, more)
	}
	n := len(out) - at - frameHeaderLen
	if n > maxFrame {
		c.out = appendLongBlock(out[:at], id, flags, append([]byte(nil), out[at+frameHeaderLen:]...))
		return
	}
	putFrameHeader(out[at:], n, frameHeaders, flags|flagEndHeaders, id)
	c.out = out
}

// appendLongBlock appends a block that needs several frames.
func appendLongBlock(dst []byte, id uint32, flags uint8, block []byte) []byte {
	kind := uint8(frameHeaders)
	for len(block) > maxFrame {
		dst = append(appendFrameHeader(dst, maxFrame, kind, flags, id), block[:maxFrame]...)
		block = block[maxFrame:]
		kind, flags = frameContinuation, 0
	}
	return append(appendFrameHeader(dst, len(block), kind, flags|flagEndHeaders, id), block...)
}

// control frames something that answers the peer. A peer that makes the server say more and more
// of that without reading it is cut off.
func (c *Conn) control(frames []byte) {
	if c.controls += len(frames); c.controls > maxControls {
		c.cutLocked(connError{EnhanceYourCalm, "a peer that asks and does not read"})
		return
	}
	c.out = append(c.buffer(), frames...)
}

// takeOut returns what is framed, to be written.
func (c *Conn) takeOut() []byte {
	b := c.out
	c.out, c.controls = nil, 0
	if c.paused {
		c.released.Broadcast()
	}
	return b
}

const writeBuffer = 16 << 10

var writeBuffers = sync.Pool{New: func() any { return new([writeBuffer]byte) }}

// buffer returns c.out, to append to.
func (c *Conn) buffer() []byte {
	if c.out == nil {
		c.out = writeBuffers.Get().(*[writeBuffer]byte)[:0]
	}
	return c.out
}

// recycle gives a buffer back that has been written.
func recycle(b []byte) {
	if cap(b) == writeBuffer {
		writeBuffers.Put((*[writeBuffer]byte)(b[:writeBuffer]))
	}
}
