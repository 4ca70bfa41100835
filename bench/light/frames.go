package light

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	frameHeaderBytes = 9
	settingBytes     = 6
	maxHeaderBlock   = 1 << 20
)

// frame is a frame's header.
type frame struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	id     uint32
}

func parseFrame(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   http2.FrameType(b[3]),
		flags:  http2.Flags(b[4]),
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendFrameHeader(dst []byte, length int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(dst, id)
}

func appendSetting(dst []byte, s http2.Setting) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(dst, uint16(s.ID)), s.Val)
}

func appendWindowUpdate(dst []byte, id uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(dst, 4, http2.FrameWindowUpdate, 0, id), uint32(n))
}

// frames handles all complete frames and returns what is left. An error ends the connection.
func (c *Conn) frames(b []byte) (rest []byte, err error) {
	for len(b) >= frameHeaderBytes {
		f := parseFrame(b)
		if f.length > defaultMaxFrame {
			return nil, fmt.Errorf("a frame of %d bytes", f.length)
		}
		end := frameHeaderBytes + f.length
		if len(b) < end {
			break
		}
		if err := c.handle(f, b[frameHeaderBytes:end]); err != nil {
			return nil, err
		}
		b = b[end:]
	}
	return b, nil
}

func (c *Conn) handle(f frame, payload []byte) (err error) {
	if c.blockOf.id != 0 && (f.kind != http2.FrameContinuation || f.id != c.blockOf.id) {
		return errors.New("a frame within a header block")
	}
	switch f.kind {
	case http2.FrameData:
		return c.data(f, payload)
	case http2.FrameHeaders:
		return c.headers(f, payload)
	case http2.FrameContinuation:
		return c.continuation(f, payload)
	case http2.FrameRSTStream:
		if len(payload) != 4 {
			return errors.New("a malformed RST_STREAM")
		}
		if call := c.call(f.id); call != nil {
			c.finish(call, reset(http2.ErrCode(binary.BigEndian.Uint32(payload))))
		}
	case http2.FrameSettings:
		return c.settings(f, payload)
	case http2.FramePing:
		return c.ping(f, payload)
	case http2.FrameGoAway:
		return c.goAway(payload)
	case http2.FrameWindowUpdate:
		return c.windowUpdate(f, payload)
	case http2.FramePushPromise:
		return errors.New("a pushed stream")
	}
	return nil // other kinds are ignored, as HTTP/2 wants it
}

// call is the call of a stream, nil when it is over.
func (c *Conn) call(id uint32) *Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[id]
}

// answering is call, for a stream on which the server answers.
func (c *Conn) answering(id uint32) *Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[id]
	if call != nil {
		c.answeredAll(call)
	}
	return call
}

// unpad removes what the flags say is not content.
func unpad(f frame, payload []byte) ([]byte, error) {
	var pad int
	if f.flags.Has(http2.FlagDataPadded) { // the same flag for headers
		if len(payload) < 1 {
			return nil, errors.New("padding without its length")
		}
		pad, payload = int(payload[0]), payload[1:]
	}
	if f.kind == http2.FrameHeaders && f.flags.Has(http2.FlagHeadersPriority) {
		if len(payload) < 5 {
			return nil, errors.New("priority that is not there")
		}
		payload = payload[5:]
	}
	if pad > len(payload) {
		return nil, errors.New("more padding than content")
	}
	return payload[:len(payload)-pad], nil
}

func (c *Conn) data(f frame, payload []byte) error {
	if f.id == 0 {
		return errors.New("data of no stream")
	}
	if c.consumed += f.length; c.consumed >= connWindow/2 {
		c.allow(0, c.consumed)
		c.consumed = 0
	}
	call := c.answering(f.id)
	if call == nil {
		return nil
	}
	content, err := unpad(f, payload)
	if err != nil {
		return err
	}
	if !call.answered {
		return errors.New("data before headers")
	}
	if err := c.receive(call, content); err != nil {
		c.abandon(call, err)
		return nil
	}
	if f.flags.Has(http2.FlagDataEndStream) {
		c.finish(call, status.Error(codes.Internal, "the server ended the stream without a status"))
		return nil
	}
	if call.consumed += f.length; call.consumed >= streamWindow/2 {
		c.allow(call.id, call.consumed)
		call.consumed = 0
	}
	return nil
}

// allow lets the server send more.
func (c *Conn) allow(id uint32, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = appendWindowUpdate(c.out, id, n)
}

// abandon resets a stream and ends its call.
func (c *Conn) abandon(call *Call, err error) {
	c.mu.Lock()
	c.out = appendFrameHeader(c.out, 4, http2.FrameRSTStream, 0, call.id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(http2.ErrCodeCancel))
	c.mu.Unlock()
	c.finish(call, err)
}

func (c *Conn) headers(f frame, payload []byte) error {
	content, err := unpad(f, payload)
	switch {
	case err != nil:
		return err
	case f.id == 0:
		return errors.New("headers of no stream")
	case f.flags.Has(http2.FlagHeadersEndHeaders):
		return c.answer(f, content)
	}
	c.blockOf = f
	c.block = append(c.block[:0], content...)
	return nil
}

func (c *Conn) continuation(f frame, payload []byte) error {
	if c.blockOf.id == 0 {
		return errors.New("a continuation of nothing")
	}
	if len(c.block)+len(payload) > maxHeaderBlock {
		return errors.New("endless headers")
	}
	c.block = append(c.block, payload...)
	if !f.flags.Has(http2.FlagContinuationEndHeaders) {
		return nil
	}
	first := c.blockOf
	c.blockOf = frame{}
	return c.answer(first, c.block)
}

// answer handles a complete header block: the first one of a stream, or its trailers, or both in one.
func (c *Conn) answer(f frame, block []byte) error {
	a, err := c.answers.decode(block)
	if err != nil {
		return fmt.Errorf("a header block: %w", err)
	}
	call := c.call(f.id)
	if call == nil {
		return nil
	}
	if !call.answered {
		if err := a.refusal(); err != nil {
			c.abandon(call, err)
			return nil
		}
		call.answered = !a.interim
	}
	if f.flags.Has(http2.FlagHeadersEndStream) {
		c.finish(call, a.status)
	}
	return nil
}

func (c *Conn) settings(f frame, payload []byte) error {
	if f.flags.Has(http2.FlagSettingsAck) {
		return nil
	}
	if len(payload)%settingBytes != 0 {
		return errors.New("malformed settings")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(payload) > 0; payload = payload[settingBytes:] {
		s := http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(payload)), Val: binary.BigEndian.Uint32(payload[2:])}
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			for _, call := range c.calls {
				call.window += int64(s.Val) - c.peer.initialWindow
			}
			c.peer.initialWindow = int64(s.Val)
		case http2.SettingMaxFrameSize:
			c.peer.maxFrame = int64(s.Val)
		case http2.SettingMaxConcurrentStreams:
			c.peer.maxStreams = int(s.Val)
		case http2.SettingHeaderTableSize:
			c.requests.limitTable(s.Val)
		}
	}
	c.out = appendFrameHeader(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.windowsGrew()
	c.admit()
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
	return nil
}

func (c *Conn) ping(f frame, payload []byte) error {
	if len(payload) != 8 {
		return errors.New("a malformed ping")
	}
	if f.flags.Has(http2.FlagPingAck) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) > maxUnwritten {
		return errors.New("pings without end, while it reads nothing")
	}
	c.out = appendFrameHeader(c.out, len(payload), http2.FramePing, http2.FlagPingAck, 0)
	c.out = append(c.out, payload...)
	return nil
}

// goAway ends the calls that the server will not answer, and leaves the others to it.
func (c *Conn) goAway(payload []byte) error {
	if len(payload) < 8 {
		return errors.New("a malformed GOAWAY")
	}
	last := binary.BigEndian.Uint32(payload) & maxStreamID
	var over []*Call
	c.mu.Lock()
	c.leaving = true
	over, c.waiting = c.waiting, nil
	for id, call := range c.calls {
		if id > last {
			over = append(over, call)
			delete(c.calls, id)
		}
	}
	for _, call := range over {
		call.open = false
		c.answeredAll(call)
	}
	c.mu.Unlock()
	code := http2.ErrCode(binary.BigEndian.Uint32(payload[4:]))
	for _, call := range over {
		call.End(status.Errorf(codes.Unavailable, "the server is leaving: %v %.100q", code, payload[8:]))
	}
	return nil
}

func (c *Conn) windowUpdate(f frame, payload []byte) error {
	if len(payload) != 4 {
		return errors.New("a malformed WINDOW_UPDATE")
	}
	n := int64(binary.BigEndian.Uint32(payload) & math.MaxInt32)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.id == 0 {
		c.window += n
	} else if call := c.calls[f.id]; call != nil {
		call.window += n
	}
	if len(c.blocked) > 0 {
		c.windowsGrew()
	}
	return nil
}

// reset is the error of a stream that the server reset.
func reset(code http2.ErrCode) error {
	to := codes.Internal
	switch code {
	case http2.ErrCodeRefusedStream:
		to = codes.Unavailable
	case http2.ErrCodeCancel:
		to = codes.Canceled
	case http2.ErrCodeEnhanceYourCalm:
		to = codes.ResourceExhausted
	}
	return status.Errorf(to, "the server reset the stream: %v", code)
}
