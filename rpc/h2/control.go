package h2

import (
	"encoding/binary"
	"time"
)

// What follows handles the frames that carry no message, on the reading goroutine.

func (c *Conn) handlePriority(f *frame) error {
	switch {
	case f.stream == 0:
		return connError{Protocol, "PRIORITY of no stream"}
	case f.length != 5:
		return streamError{f.stream, FrameSize, "PRIORITY of a wrong size"}
	case binary.BigEndian.Uint32(f.payload)&(1<<31-1) == f.stream:
		return streamError{f.stream, Protocol, "a stream that depends on itself"}
	}
	return nil
}

func (c *Conn) handleReset(f *frame) error {
	switch {
	case f.length != 4:
		return connError{FrameSize, "RST_STREAM of a wrong size"}
	case f.stream == 0 || c.idle(f.stream):
		return connError{Protocol, "RST_STREAM of a stream that is not open"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.table.get(f.stream); s != nil {
		s.remoteDone = true
		c.end(s, ErrReset)
		return nil
	}
	if known := &c.opened[f.stream>>1&31]; known.id == f.stream {
		known.done = true
	}
	return nil
}

func (c *Conn) handleSettings(f *frame) error {
	switch {
	case f.stream != 0:
		return connError{Protocol, "SETTINGS of a stream"}
	case f.has(flagAck) && f.length != 0, f.length%6 != 0:
		return connError{FrameSize, "SETTINGS of a wrong size"}
	case f.has(flagAck):
		return nil
	}
	if f.length > 6*maxSettings {
		return connError{EnhanceYourCalm, "too many settings in a frame"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := f.payload; len(p) > 0; p = p[6:] {
		if err := c.set(setting{binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])}); err != nil {
			return err
		}
	}
	c.control(appendFrameHeader(nil, 0, frameSettings, flagAck, 0))
	return nil
}

func (c *Conn) set(s setting) error {
	switch s.id {
	case settingTableSize:
		c.encoder.setTableSize(s.value)
	case settingEnablePush:
		if s.value > 1 {
			return connError{Protocol, "ENABLE_PUSH is neither 0 nor 1"}
		}
	case settingMaxFrame:
		if s.value < maxFrame || s.value > 1<<24-1 {
			return connError{Protocol, "MAX_FRAME_SIZE is out of range"}
		}
	case settingInitialWindow:
		if s.value > maxWindow {
			return connError{FlowControl, "INITIAL_WINDOW_SIZE is too large"}
		}
		by := int(s.value) - c.initial
		if by == 0 {
			return nil
		}
		if c.looks -= c.table.n; c.looks < 0 {
			return connError{EnhanceYourCalm, "INITIAL_WINDOW_SIZE changes too often"}
		}
		c.initial = int(s.value)
		tooLarge := false
		c.table.each(func(s *Stream) {
			s.sendWindow += by
			tooLarge = tooLarge || s.sendWindow > maxWindow
			c.enqueue(s)
		})
		if tooLarge {
			return connError{FlowControl, "INITIAL_WINDOW_SIZE makes a window too large"}
		}
		c.pump()
	}
	return nil
}

func (c *Conn) handlePing(f *frame) error {
	switch {
	case f.stream != 0:
		return connError{Protocol, "PING of a stream"}
	case f.length != 8:
		return connError{FrameSize, "PING of a wrong size"}
	}
	var data [8]byte
	copy(data[:], f.payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.has(flagAck) {
		if data == drainPing {
			c.goAwayNow()
		}
		return nil
	}
	c.control(appendPing(nil, flagAck, data))
	now := time.Now()
	last := c.lastPing
	c.lastPing = now
	if c.sentData {
		c.sentData = false
		c.pingStrikes = 0
		return nil
	}
	shortest := c.s.cfg.PingMinTime
	if c.table.n == 0 {
		shortest = pingWithoutStreams
	}
	if last.Add(shortest).After(now) {
		c.pingStrikes++
	}
	if c.pingStrikes > maxPingStrikes {
		return connError{EnhanceYourCalm, "too_many_pings"}
	}
	return nil
}

func (c *Conn) handleGoAway(f *frame) error {
	switch {
	case f.stream != 0:
		return connError{Protocol, "GOAWAY of a stream"}
	case f.length < 8:
		return connError{FrameSize, "GOAWAY of a wrong size"}
	}
	return nil // the client opens no more streams; that is all there is to it
}

func (c *Conn) handleWindowUpdate(f *frame) error {
	if f.length != 4 {
		return connError{FrameSize, "WINDOW_UPDATE of a wrong size"}
	}
	if f.stream != 0 && c.idle(f.stream) {
		return connError{Protocol, "WINDOW_UPDATE of a stream that is not open"}
	}
	by := int(binary.BigEndian.Uint32(f.payload) & maxWindow)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.stream == 0 {
		if by == 0 {
			return connError{Protocol, "WINDOW_UPDATE by nothing"}
		}
		if c.sendWindow += by; c.sendWindow > maxWindow {
			return connError{FlowControl, "the window becomes too large"}
		}
		c.pump()
		return nil
	}
	if by == 0 {
		return streamError{f.stream, Protocol, "WINDOW_UPDATE by nothing"}
	}
	s := c.table.get(f.stream)
	if s == nil {
		return nil
	}
	if s.sendWindow += by; s.sendWindow > maxWindow {
		return streamError{f.stream, FlowControl, "the window becomes too large"}
	}
	c.enqueue(s)
	c.pump()
	return nil
}
