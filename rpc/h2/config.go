package h2

import "time"

// Handler answers requests.
type Handler interface {
	// Request is told of each request when its header has come, and says what becomes of its body.
	// It runs on the goroutine that reads the connection and must not block. It may answer the
	// request and return Discard. Before it returns Flow it calls Stream.Hold; the stream is then
	// the Handler's until Stream.Release.
	Request(*Stream) Body
	// Whole is given a body that was to be collected. It runs where Request does. The body is valid
	// until Whole returns. If it is larger than Config.MaxBodyBytes, whole is false and body is
	// how it begins. The stream is the Handler's from now on until Stream.Release.
	Whole(s *Stream, body []byte, whole bool)
}

// Body is what becomes of the body of a request.
type Body uint8

const (
	Discard Body = iota // it is thrown away
	Collect             // Handler.Whole is given all of it at once
	Flow                // Stream.Read returns it
)

// Config configures a Server. Fields without a default are required.
type Config struct {
	Handler Handler

	// MaxHeaderBytes bounds the header of a request, counted as RFC 9113, section 6.5.2 does; a
	// larger one resets its stream, and one whose encoding alone is larger ends the connection.
	MaxHeaderBytes int
	// MaxBodyBytes bounds a collected body.
	MaxBodyBytes int
	// MaxStreams bounds the streams open at a time; further ones are refused.
	MaxStreams uint32
	// MaxHeldBytes bounds the bodies, incomplete or not yet read, of all streams of a connection;
	// streams that go beyond are reset.
	MaxHeldBytes int
	// MaxUnsentBytes bounds the answers that wait because the peer does not read. At the bound a
	// goroutine that answers waits, and what must not wait is reset; new requests are refused.
	MaxUnsentBytes int
	// MaxAbandoned bounds the requests that the peer has given up and the Handler has not released.
	// At the bound nothing is read until half of them are released.
	MaxAbandoned int

	// StreamWindow and ConnWindow are how many bytes of a body, and of all, a peer may send ahead.
	StreamWindow, ConnWindow int

	// HandshakeTimeout bounds the time until the peer's preface and settings have come.
	HandshakeTimeout time.Duration
	// PingMinTime is the shortest interval between pings that the peer may choose while it has
	// streams. Two hours without.
	PingMinTime time.Duration
	// KeepaliveInterval and KeepaliveTimeout: a peer that was silent for the one is pinged, and
	// disconnected after the other.
	KeepaliveInterval, KeepaliveTimeout time.Duration

	// Varying names a field of requests that is mostly different each time, and not part of Header.
	Varying string
	// ExpiredHead and ExpiredTrailer answer requests whose deadline passes: both in one block, or
	// the trailer alone where a header has been sent.
	ExpiredHead, ExpiredTrailer []Field
}

const (
	// pingWithoutStreams is the shortest interval between the pings of a peer without streams.
	pingWithoutStreams = 2 * time.Hour
	// maxPingStrikes is how many pings may come too soon.
	maxPingStrikes = 2
	// drainTimeout bounds the wait for the peer to have seen that the server is going away.
	drainTimeout = 5 * time.Second
	// lingerTimeout bounds the wait for the peer to hang up after all has been said. If the
	// server closed at once, what the peer still sends would have its system drop what came last.
	lingerTimeout = time.Second

	// sendQuota is how much a stream may have unsent before Send waits.
	sendQuota = 64 << 10
	// outHigh is how much is framed ahead of the socket, after which answers wait in their streams.
	outHigh = 256 << 10
	// outMax is how much may be framed before no request is read any more: what is beyond outHigh are header blocks, as of
	// requests that are refused, and answers to control frames.
	outMax = 1 << 20
	// maxControls bounds what answers control frames and is not written: a peer that gets there asks and does not
	// read, and is disconnected.
	maxControls = 1 << 20
	// maxSettings bounds the settings of a frame.
	maxSettings = 100
	// Each change of the initial window looks at all streams. So every request lets the peer cause so many looks, and
	// some are free: a client that adapts its window does so ten times.
	looksForStream = 16
	freeLooks      = 1 << 16
	// lookingCost is how long after it has looked through its streams a connection does not do so again, for each of them,
	// so that it spends a part of its time on that.
	lookingCost = time.Microsecond
	// maxContinuations bounds the frames of one header block.
	maxContinuations = 64
	// keptStreams bounds the Stream objects that a connection keeps for reuse.
	keptStreams = 64
)
