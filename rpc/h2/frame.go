package h2

import "encoding/binary"

// Types of frames (RFC 9113, section 6).
const (
	frameData = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

// Flags of frames.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113, section 6.5.2).
const (
	settingTableSize = iota + 1
	settingEnablePush
	settingMaxStreams
	settingInitialWindow
	settingMaxFrame
	settingMaxHeaderList
)

const (
	frameHeaderLen = 9
	// maxFrame bounds the payload of frames in both directions: what every peer accepts.
	maxFrame = 1 << 14
	// maxWindow is the largest a flow-control window may grow.
	maxWindow = 1<<31 - 1
	// defaultWindow is what windows begin with.
	defaultWindow = 1<<16 - 1
	// defaultTableSize bounds the compression table of each direction.
	defaultTableSize = 4096
)

// Preface is what a client begins with (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frame is the header of a frame, and its payload while that is in the read buffer.
type frame struct {
	length  int
	kind    uint8
	flags   uint8
	stream  uint32
	payload []byte
}

func (f *frame) has(flag uint8) bool { return f.flags&flag != 0 }

// parseFrameHeader reads the header of a frame from the first bytes of b.
func parseFrameHeader(b []byte) frame {
	return frame{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   b[3],
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
}

// appendFrameHeader appends the header of a frame.
func appendFrameHeader(dst []byte, length int, kind, flags uint8, stream uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(dst, stream)
}

// putFrameHeader writes the header of a frame to the first bytes of b.
func putFrameHeader(b []byte, length int, kind, flags uint8, stream uint32) {
	_ = b[frameHeaderLen-1]
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length), kind, flags
	binary.BigEndian.PutUint32(b[5:], stream)
}

func appendReset(dst []byte, stream uint32, code Code) []byte {
	dst = appendFrameHeader(dst, 4, frameReset, 0, stream)
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

func appendWindowUpdate(dst []byte, stream, increment uint32) []byte {
	dst = appendFrameHeader(dst, 4, frameWindowUpdate, 0, stream)
	return binary.BigEndian.AppendUint32(dst, increment)
}

func appendPing(dst []byte, flags uint8, data [8]byte) []byte {
	return append(appendFrameHeader(dst, 8, framePing, flags, 0), data[:]...)
}

func appendGoAway(dst []byte, last uint32, code Code, debug string) []byte {
	dst = appendFrameHeader(dst, 8+len(debug), frameGoAway, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, last)
	dst = binary.BigEndian.AppendUint32(dst, uint32(code))
	return append(dst, debug...)
}

// setting is one parameter of a connection.
type setting struct {
	id    uint16
	value uint32
}

func appendSettings(dst []byte, settings ...setting) []byte {
	dst = appendFrameHeader(dst, 6*len(settings), frameSettings, 0, 0)
	for _, s := range settings {
		dst = binary.BigEndian.AppendUint16(dst, s.id)
		dst = binary.BigEndian.AppendUint32(dst, s.value)
	}
	return dst
}

// unpadded returns a payload without padding (RFC 9113, section 6.1).
func unpadded(f *frame) ([]byte, error) {
	p := f.payload
	if !f.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError{FrameSize, "padding without length"}
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, connError{Protocol, "more padding than payload"}
	}
	return p[1 : len(p)-pad], nil
}
