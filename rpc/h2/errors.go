package h2

import (
	"errors"
	"fmt"
)

// Code says why a stream or connection ended (RFC 9113, section 7).
type Code uint32

// The codes.
const (
	NoError Code = iota
	Protocol
	Internal
	FlowControl
	SettingsTimeout
	StreamClosed
	FrameSize
	RefusedStream
	Cancel
	Compression
	Connect
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

// Why a stream has ended before it was answered.
var (
	ErrReset   = errors.New("h2: the stream was reset")
	ErrExpired = errors.New("h2: the stream's deadline has passed")
	ErrClosed  = errors.New("h2: the connection is closed")
	// ErrEnded: the stream has been answered already.
	ErrEnded = errors.New("h2: the stream has ended")
	// ErrTooMuch: more unsent output than Config.MaxUnsent.
	ErrTooMuch = errors.New("h2: too much output that the peer does not read")
)

// connError ends the connection.
type connError struct {
	code   Code
	reason string
}

func (e connError) Error() string {
	return fmt.Sprintf("h2: connection error %d: %s", e.code, e.reason)
}

// streamError ends one stream.
type streamError struct {
	stream uint32
	code   Code
	reason string
}

func (e streamError) Error() string {
	return fmt.Sprintf("h2: error %d of stream %d: %s", e.code, e.stream, e.reason)
}
